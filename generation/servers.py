"""Chat models behind OpenAI-compatible servers, instead of in this process; see docs/servers.md.

The `openai` client sends a request, tries again what may pass, and heeds ``Retry-After``. Here requests are
shared among the servers, a bounded number at a time, and every answer has a deadline. When a request has
failed for good the call stops, and the error holds what was answered until then.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from PIL import Image
from tqdm import tqdm

from index.decode import to_rgb

log = logging.getLogger(__name__)

KEY_VARIABLE = "SERVER_API_KEY"  # the only place a key is read from; it is in no file and no message
RETRIES = 4  # of one request
CONNECT_SECONDS = 10.0
MAX_SIDE = 1344  # pixels: the longest side that LLaVA-1.6 looks at; datasets' pictures are smaller
JPEG_QUALITY = 95
SERVED = "server "  # how the name of a model begins whose files nobody here can see

_MAX_COUNTED = 1_000_000  # tokens of one request: a server that says more miscounts
_LETTERS_QUOTED = 160  # of what a server says when it refuses
_HINTS = {
    401: f"set the environment variable {KEY_VARIABLE}",
    403: f"set the environment variable {KEY_VARIABLE}",
    404: "does the address end in /v1, and does the server have the model?",
    413: "the server takes no request of this size",
}

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


class RequestFailed(Exception):
    """One server gave no answer to one request.

    Attributes:
        refused: Whether the request is to blame, so that another server would refuse it too.
    """

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class Answer(NamedTuple):
    """What a model said, and the tokens it took; 0 where the server does not count."""

    text: str
    tokens_read: int
    tokens_written: int


class ChatServers:
    """One chat model, offered by one or several servers.

    Takes the place of `generation.text_model.TextModel`, and describes pictures as well.

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
    ) -> None:
        """Connects to nothing yet.

        Args:
            addresses: Such as ``http://127.0.0.1:8000/v1``; all offer the same model.
            model_id: What the servers call it.
            requests: At a time, to each server.
            max_seconds: For one answer, all attempts and pauses included.
            prices: Of a million tokens read and of a million written, in any currency.

        Raises:
            ValueError: If there is no address, or no request or time is allowed.
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
        self._requests = requests
        self._max_seconds = max_seconds
        self._servers = [_Server(address.rstrip("/"), max_seconds) for address in dict.fromkeys(addresses)]

    @property
    def at_a_time(self) -> int:
        """Requests that are under way together."""
        return self._requests * len(self._servers)

    @property
    def money(self) -> float:
        """What all tokens so far cost at the given prices."""
        read, written = self._prices
        return (self.tokens_read * read + self.tokens_written * written) / 1e6

    def check(self) -> None:
        """Asks every server whether it has the model.

        Raises:
            ValueError: If one does not answer, or has other models.
            ModuleNotFoundError: If the openai package is missing.
        """
        for server in self._servers:
            try:
                offered = server.models()
            except RequestFailed as error:
                raise ValueError(f"the server {server.address} cannot be used: {error}") from error
            if self.model_id not in offered:
                named = ", ".join(offered[:5]) or "none"
                raise ValueError(
                    f"the server {server.address} offers the models {named}, expected {self.model_id!r};"
                    " name one of them with --caption-model or --rewrite-model"
                )

    def describe(self, images: Sequence[Image.Image], prompt: str, *, max_tokens: int) -> list[str]:
        """Describes pictures greedily.

        Args:
            images: Pictures; they go out as JPEG, none of their sides longer than `MAX_SIDE`.
            prompt: What to say of each.
            max_tokens: Limit of new tokens of an answer.

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
            max_tokens: Limit of new tokens of an answer.

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
        """Sends a request for each item, at most `at_a_time` together, each to the least busy server.

        A thread a request; this one counts, and looks at the deadlines: a request that is late is written
        off wherever it hangs. The threads are daemons, so that nobody who stops the run waits for them.
        A server that fails is left out, and its requests go to the others while there are any.
        """
        answers: list[str | None] = [None] * len(items)
        waiting = deque(range(len(items)))
        under_way: dict[object, tuple[int, _Server, float]] = {}  # ticket: row, server, deadline
        news: queue.SimpleQueue[tuple[object, Answer | Exception]] = queue.SimpleQueue()
        working = list(self._servers)
        failure: Exception | None = None

        def send(ticket: object, server: _Server, item: Item) -> None:
            try:
                message = {"role": "user", "content": content_of(item)}
                news.put((ticket, server.complete(self.model_id, message, max_tokens)))
            except Exception as error:  # raised again in the thread that asked
                news.put((ticket, error))

        def busy(server: _Server) -> int:
            return sum(server is other for _, other, _ in under_way.values())

        with tqdm(total=len(items), desc=doing, disable=len(items) <= self.at_a_time, leave=False) as bar:
            while under_way or (waiting and failure is None):
                while waiting and failure is None:
                    server = min(working, key=busy)
                    if busy(server) >= self._requests:
                        break
                    row, ticket = waiting.popleft(), object()
                    under_way[ticket] = (row, server, time.monotonic() + self._max_seconds)
                    threading.Thread(target=send, args=(ticket, server, items[row]), daemon=True).start()
                ticket, result = self._next(news, under_way)
                if ticket not in under_way:
                    continue  # an answer that was written off
                row, server, _ = under_way.pop(ticket)
                if isinstance(result, Answer):
                    answers[row] = result.text
                    self.tokens_read += result.tokens_read
                    self.tokens_written += result.tokens_written
                    bar.update()
                elif not isinstance(result, RequestFailed):
                    failure = failure or result
                elif server in working and (result.refused or len(working) == 1):
                    failure = failure or ServersFailed(
                        f"the server {server.address} gave no answer: {result}; what was done is kept, the"
                        " same command goes on from here"
                    )
                elif failure is None:
                    waiting.append(row)
                    if server in working:
                        working.remove(server)
                        log.warning("%s is left out: %s", server.address, result)
        if isinstance(failure, ServersFailed):
            failure.answers = answers
        if failure is not None:
            raise failure
        return [answer or "" for answer in answers]

    def _next(
        self,
        news: queue.SimpleQueue[tuple[object, Answer | Exception]],
        under_way: dict[object, tuple[int, _Server, float]],
    ) -> tuple[object, Answer | Exception]:
        """Waits for the next answer, or for the first request that is late."""
        ticket = min(under_way, key=lambda each: under_way[each][2])
        try:
            return news.get(timeout=max(0.0, under_way[ticket][2] - time.monotonic()))
        except queue.Empty:
            return ticket, RequestFailed(f"no whole answer within {self._max_seconds:g} s")


class _Server:
    """One address; threads may share it."""

    def __init__(self, address: str, max_seconds: float) -> None:
        self.address = address
        self._max_seconds = max_seconds
        self._has_miscounted = False

    def models(self) -> list[str]:
        """Returns the ids of the models that the server offers."""
        listed = self._said(lambda client: client.with_options(max_retries=0).models.with_raw_response.list())
        try:
            return [str(model["id"]) for model in listed["data"]]
        except (KeyError, TypeError) as error:
            raise RequestFailed(f"expected a list of models, got {_quoted(str(listed))}") from error

    def complete(self, model_id: str, message: Any, max_tokens: int) -> Answer:
        """Has one message answered greedily."""
        said = self._said(
            lambda client: client.chat.completions.with_raw_response.create(
                model=model_id, messages=[message], max_tokens=max_tokens, temperature=0.0
            )
        )
        try:
            text = said["choices"][0]["message"].get("content") or ""
            usage = said.get("usage") or {}
            counts = [usage.get(f"{kind}_tokens") or 0 for kind in ("prompt", "completion")]
        except (LookupError, TypeError, AttributeError) as error:
            raise RequestFailed(f"expected a chat completion, got {_quoted(str(said))}") from error
        return Answer(str(text), *map(self._checked, counts))

    def _checked(self, count: Any) -> int:
        """Returns a count of tokens that can be, 0 for one that cannot: sums of money depend on it."""
        if type(count) is int and 0 <= count <= _MAX_COUNTED:
            return count
        if not self._has_miscounted:
            self._has_miscounted = True
            log.warning(
                "%s: got %s tokens for one request, expected 0 to %d: tokens and money will be too low",
                self.address, _quoted(str(count)), _MAX_COUNTED,
            )  # fmt: skip
        return 0

    def _said(self, ask: Callable[[Any], Any]) -> Any:
        """Returns the JSON that the server answers."""
        client = self._client
        import openai

        try:
            response = ask(client)
        except openai.APIStatusError as error:
            status = error.status_code
            hint = f" ({_HINTS[status]})" if status in _HINTS else ""
            said = f"status {status}{hint}: {_quoted(error.response.text)}"
            raise RequestFailed(said, refused=status < 500 and status not in (408, 409, 429)) from error
        except openai.APITimeoutError as error:
            raise RequestFailed(f"no whole answer within {self._max_seconds:g} s") from error
        except openai.OpenAIError as error:
            reason = str(error.__cause__ or error) or type(error).__name__
            raise RequestFailed(_quoted(reason)) from error
        try:
            return response.http_response.json()
        except (ValueError, RecursionError) as error:
            raise RequestFailed(f"expected JSON, got {_quoted(response.text)}") from error

    @cached_property
    def _client(self) -> Any:
        try:
            import openai
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "models behind servers need the openai package; run: pip install -r requirements/servers.txt"
            ) from error
        logging.getLogger("openai").setLevel(logging.WARNING)  # it would log whole requests
        return openai.OpenAI(
            base_url=self.address,
            api_key=_key() or "none",  # else it would send the one in OPENAI_API_KEY
            max_retries=RETRIES,
            http_client=openai.DefaultHttpxClient(
                timeout=openai.Timeout(self._max_seconds, connect=min(CONNECT_SECONDS, self._max_seconds)),
                follow_redirects=False,  # the key is for this server
            ),
        )


def _key() -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(
            f"the environment variable {KEY_VARIABLE}: got a key with control characters or letters beyond"
            " ASCII, expected one line of ASCII; set it anew"
        )
    return key


def _quoted(text: str) -> str:
    """One short line of what a server said; it may have said the key."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    line = " ".join((text.replace(key, "***") if key else text).split())
    return line[:_LETTERS_QUOTED] or "nothing"


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
