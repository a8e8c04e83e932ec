"""Chat models behind OpenAI-compatible servers, instead of in this process; see docs/servers.md.

Requests are shared out over all addresses, a bounded number at a time. What fails in a way that may pass is
tried again after a pause, longer from time to time; when a request has failed for good, the call stops, and
what was answered until then is in the error.
"""

from __future__ import annotations

import base64
import io
import logging
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from PIL import Image
from tqdm import tqdm

from generation.server_endpoint import Answer, Endpoint, RequestFailed
from index.decode import to_rgb

log = logging.getLogger(__name__)

ATTEMPTS = 5  # of one request, the first included
MAX_PAUSE_SECONDS = 30.0
MAX_ASKED_SECONDS = 120.0  # a server that asks for more time is as good as gone
MAX_SIDE = 1344  # pixels: the longest side that LLaVA-1.6 looks at; datasets' pictures are smaller
JPEG_QUALITY = 95
SERVED = "server "  # how the name of a model begins whose files nobody here can see

# What chat templates take as their own, whatever the family: <|eot_id|>, </s>, <image>, <start_of_turn>.
_TEMPLATE_TOKEN = re.compile(r" *<[^<>\s]{1,60}> *")

Item = TypeVar("Item")


class ServersFailed(ValueError):
    """A request failed for good.

    Attributes:
        answers: What was answered until then, by position; None where nothing was.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.answers: list[str | None] = []


class ChatServers:
    """One chat model, offered by one or several servers.

    Stands where `generation.text_model.TextModel` does, and describes pictures as well.

    Attributes:
        model_id: What the servers call the model.
        tokens_read: Tokens of all prompts so far, as the servers count them.
        tokens_written: Tokens of all answers so far, likewise.
    """

    special_tokens: tuple[str, ...] = ()  # unknown here: `complete` takes out whatever looks like one

    def __init__(
        self,
        addresses: Sequence[str],
        model_id: str,
        *,
        requests: int = 8,
        max_seconds: float = 120.0,
        prices: tuple[float, float] = (0.0, 0.0),
        first_pause_seconds: float = 0.5,
    ) -> None:
        """Connects to nothing yet.

        Args:
            addresses: Such as ``http://127.0.0.1:8000/v1``; all offer the same model.
            model_id: What the servers call it.
            requests: At a time, to each server.
            max_seconds: For one answer.
            prices: Of a million tokens read and of a million written, in any currency.
            first_pause_seconds: After a failure; each further pause in a row is twice as long.

        Raises:
            ValueError: If an address is none.
        """
        if not addresses or requests < 1 or max_seconds <= 0:
            raise ValueError(
                f"got {len(addresses)} servers, {requests} requests at a time, {max_seconds:g} s for each;"
                " expected at least one server, one request and some time"
            )
        self.model_id = model_id
        self.tokens_read = 0
        self.tokens_written = 0
        self._prices = prices
        self._first_pause = first_pause_seconds
        self._requests = requests
        self._endpoints = [
            Endpoint(address, max_seconds=max_seconds, connections=requests)
            for address in dict.fromkeys(addresses)
        ]
        self._lock = threading.Lock()

    @property
    def at_a_time(self) -> int:
        """Requests that are under way together."""
        return self._requests * len(self._endpoints)

    @property
    def money(self) -> float:
        """What all tokens so far cost at the given prices."""
        read, written = self._prices
        return (self.tokens_read * read + self.tokens_written * written) / 1e6

    def check(self) -> None:
        """Asks every server whether it has the model.

        Raises:
            ValueError: If one does not answer, or has other models.
        """
        for endpoint in self._endpoints:
            try:
                offered = endpoint.models()
            except RequestFailed as error:
                raise ValueError(f"the server {endpoint.address} cannot be used: {error}") from error
            if self.model_id not in offered:
                named = ", ".join(offered[:5]) or "none"
                raise ValueError(
                    f"the server {endpoint.address} offers the models {named}, expected {self.model_id!r};"
                    " name one of them with --caption-model or --rewrite-model"
                )

    def describe(self, images: Sequence[Image.Image], prompt: str, *, max_tokens: int) -> list[str]:
        """Describes pictures greedily.

        Args:
            images: RGB pictures; larger ones go out with a longest side of `MAX_SIDE`, all of them as JPEG.
            prompt: What to say of each.
            max_tokens: Most tokens of an answer.

        Returns:
            As many texts, in order.

        Raises:
            ServersFailed: If a request failed for good; it holds the texts that were written.
        """

        def content(image: Image.Image) -> list[dict[str, Any]]:
            picture = {"type": "image_url", "image_url": {"url": data_url(image)}}
            return [picture, {"type": "text", "text": prompt}]

        return self._ask(images, content, max_tokens, "captioning")

    def chat_prompt(self, message: str) -> str:
        """Returns the message: the server puts it into its model's chat template."""
        return message

    def complete(self, prompts: Sequence[str], *, max_tokens: int) -> list[str]:
        """Answers messages greedily.

        Args:
            prompts: Messages; tokens of chat templates are taken out of them.
            max_tokens: Most tokens of an answer.

        Returns:
            As many texts, in order.

        Raises:
            ServersFailed: If a request failed for good; it holds the texts that were written.
        """
        return self._ask(prompts, without_template_tokens, max_tokens, "writing")

    def release(self) -> None:
        """Has nothing to let go of: the model is not in this process."""

    def _ask(
        self, items: Sequence[Item], content_of: Callable[[Item], Any], max_tokens: int, doing: str
    ) -> list[str]:
        """Sends a request an item, `at_a_time` of them together.

        Threads fetch, this one counts. They are daemons: somebody who stops the run need not wait for
        answers that are under way.
        """
        todo = iter(range(len(items)))
        done: queue.SimpleQueue[tuple[int | None, Answer | Exception | None]] = queue.SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                with self._lock:
                    row = next(todo, None)
                if row is None:
                    break
                try:
                    message = {"role": "user", "content": content_of(items[row])}
                    request = {"model": self.model_id, "messages": [message], "max_tokens": max_tokens}
                    done.put((row, self._answer(request | {"temperature": 0.0}, stop)))
                except Exception as error:  # raised again in the thread that asked
                    done.put((row, error))
            done.put((None, None))

        answers: list[str | None] = [None] * len(items)
        failure: Exception | None = None
        running = min(self.at_a_time, len(items))
        for _ in range(running):
            threading.Thread(target=work, daemon=True).start()
        try:
            with tqdm(total=len(items), desc=doing, disable=len(items) <= running, leave=False) as bar:
                while running:
                    row, result = done.get()
                    if row is None:
                        running -= 1
                    elif isinstance(result, Answer):
                        answers[row] = result.text
                        self.tokens_read += result.tokens_read
                        self.tokens_written += result.tokens_written
                        bar.update()
                    elif not isinstance(result, _Stopped):
                        failure = failure or result
                        stop.set()  # no new requests; those under way are waited for
        finally:
            stop.set()
        if isinstance(failure, ServersFailed):
            failure.answers = answers
        if failure is not None:
            raise failure
        return [answer or "" for answer in answers]

    def _answer(self, request: dict[str, Any], stop: threading.Event) -> Answer:
        """Tries a request until it is answered, on whichever server is ready first."""
        attempt = 0
        while True:
            attempt += 1
            with self._lock:
                now = time.monotonic()
                endpoint = min(self._endpoints, key=lambda each: (max(each.ready_at, now), each.busy))
                wait = endpoint.ready_at - now
                endpoint.busy += 1
            try:
                if wait > MAX_ASKED_SECONDS:
                    raise _failed(endpoint, attempt - 1, f"it asks to be left alone for {wait:.0f} s")
                if wait > 0 and stop.wait(wait * random.uniform(1.0, 1.25)):  # not all at the same moment
                    raise _Stopped
                sent_at = time.monotonic()
                answer = endpoint.complete(request)
            except RequestFailed as error:
                if not error.may_pass:
                    raise _failed(endpoint, attempt, str(error)) from error
                with self._lock:
                    endpoint.pause(sent_at, self._first_pause, MAX_PAUSE_SECONDS, error.wait_seconds)
                if attempt == ATTEMPTS:
                    raise _failed(endpoint, attempt, str(error)) from error
                log.debug("%s, attempt %d: %s", endpoint.address, attempt, error)
            else:
                with self._lock:
                    endpoint.failures = 0
                return answer
            finally:
                with self._lock:
                    endpoint.busy -= 1


class _Stopped(Exception):
    """Another request has failed for good."""


def _failed(endpoint: Endpoint, attempts: int, reason: str) -> ServersFailed:
    times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    return ServersFailed(
        f"the server {endpoint.address} gave no answer in {times}: {reason}; what was done is kept, the same"
        " command goes on from here"
    )


def data_url(image: Image.Image) -> str:
    """Returns a picture as the URL of a JPEG, none of its sides longer than `MAX_SIDE`."""
    picture = to_rgb(image)  # a copy, which `thumbnail` may change
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def without_template_tokens(text: str) -> str:
    """Takes out what a chat template could take as its own, such as ``<|im_start|>``."""
    return _TEMPLATE_TOKEN.sub(" ", text)  # a space, so that what is left joins to no other
