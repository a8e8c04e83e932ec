"""Chat models behind OpenAI-compatible servers, instead of in this process; see docs/servers.md.

The `openai` client sends a request, tries again what may pass, and heeds ``Retry-After``. Here requests are
shared among the servers, a bounded number at a time, and every answer has a deadline. When a request has
failed for good the call stops, and the error holds what was answered until then.
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import io
import json
import logging
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from PIL import Image
from tqdm import tqdm

from index.decode import to_rgb

log = logging.getLogger(__name__)

KEY_VARIABLE = "SERVER_API_KEY"  # the only place a key is read from; it is in no file and no message
RETRIES = 4  # of one request
CONNECT_SECONDS = 10.0
MAX_ANSWER_BYTES = 4 * 2**20
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
    """A request failed for good; `answers` has by position what was answered until then, or None."""

    def __init__(self, message: str, answers: Sequence[str | None] = ()) -> None:
        super().__init__(message)
        self.answers = list(answers)


class RequestFailed(Exception):
    """One server gave no answer to one request; `refused`: another server would refuse it too."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


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
        """
        self.model_id = model_id
        self.tokens_read = 0
        self.tokens_written = 0
        self._prices = prices
        self._requests = requests
        self._max_seconds = max_seconds
        self._addresses = [address.rstrip("/") for address in dict.fromkeys(addresses)]
        self._has_miscounted = False

    @property
    def at_a_time(self) -> int:
        """Requests that are under way together."""
        return self._requests * len(self._addresses)

    @property
    def money(self) -> float:
        """What all tokens so far cost at the given prices."""
        read, written = self._prices
        return (self.tokens_read * read + self.tokens_written * written) / 1e6

    def check(self) -> None:
        """Asks every server whether it has the model; ValueError if one does not answer, or has others."""
        asyncio.run(self._check())

    def describe(self, images: Sequence[Image.Image], prompt: str, *, max_tokens: int) -> list[str]:
        """Describes pictures greedily, in order; ``prompt`` is what to say of each.

        They go out as JPEG, none of their sides longer than `MAX_SIDE`. ServersFailed if a request failed for
        good; it holds the texts that were written.
        """

        def content(image: Image.Image) -> list[dict[str, Any]]:
            picture = {"type": "image_url", "image_url": {"url": data_url(image)}}
            return [picture, {"type": "text", "text": prompt}]

        return asyncio.run(self._ask(images, content, max_tokens, "captioning", {"temperature": 0.0}))

    def chat_prompt(self, message: str) -> str:
        """Returns the message: the server puts it into its model's chat template."""
        return message

    def complete(
        self, prompts: Sequence[str], *, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """Answers messages, in order; tokens of chat templates are taken out of them.

        Above temperature 0 the servers sample, with this seed if they can. ServersFailed if a request failed
        for good; it holds the texts that were written.
        """
        sampling = {"temperature": temperature} | ({"seed": seed} if temperature else {})
        return asyncio.run(self._ask(prompts, without_template_tokens, max_tokens, "writing", sampling))

    def release(self) -> None:
        """Has nothing to let go of: the model is not in this process."""

    async def _check(self) -> None:
        async with self._client() as client:
            for address in self._addresses:
                there = client.with_options(base_url=address, max_retries=0)
                try:
                    listed = await self._said(there.models.with_raw_response.list)
                    offered = [str(model["id"]) for model in listed["data"]]
                except RequestFailed as error:
                    raise ValueError(f"the server {address} cannot be used: {error}") from error
                except (KeyError, TypeError) as error:
                    raise ValueError(
                        f"the server {address} cannot be used: expected a list of models, got"
                        f" {_quoted(str(listed))}"
                    ) from error
                if self.model_id not in offered:
                    named = _quoted(", ".join(offered[:5])) if offered else "none"
                    raise ValueError(
                        f"the server {address} offers the models {named}, expected {self.model_id!r};"
                        " name one of them with --caption-model or --rewrite-model"
                    )

    async def _ask(
        self,
        items: Sequence[Item],
        content_of: Callable[[Item], Any],
        max_tokens: int,
        doing: str,
        sampling: dict[str, Any],
    ) -> list[str]:
        """Sends a request for each item: each server has so many workers, who take the next item.

        A server that fails is left out, and its requests go to the others while there are any.
        """
        answers: list[str | None] = [None] * len(items)
        waiting = deque(range(len(items)))
        working = list(self._addresses)
        failure = ""

        async def work(address: str) -> None:
            nonlocal failure
            while waiting and not failure and address in working:
                row = waiting.popleft()
                try:
                    there = client.with_options(base_url=address)
                    answers[row] = await self._answer(there, content_of(items[row]), max_tokens, sampling)
                    bar.update()
                except RequestFailed as error:
                    waiting.append(row)
                    if address in working and (error.refused or len(working) == 1):
                        failure = failure or f"the server {address} gave no answer: {error}"
                    elif address in working:
                        working.remove(address)
                        log.warning("%s is left out: %s", address, error)

        with tqdm(total=len(items), desc=doing, disable=len(items) <= self.at_a_time, leave=False) as bar:
            async with self._client() as client:
                while waiting and not failure:  # again for what a server that was left out has put back
                    await asyncio.gather(*(work(server) for _ in range(self._requests) for server in working))
        if failure:
            raise ServersFailed(
                f"{failure}; what was done is kept, the same command goes on from here", answers
            )
        return [answer or "" for answer in answers]

    async def _answer(self, client: Any, content: Any, max_tokens: int, sampling: dict[str, Any]) -> str:
        """Has one message answered."""
        said = await self._said(
            client.chat.completions.with_raw_response.create,
            model=self.model_id,
            messages=[{"role": "user", "content": content}],
            max_tokens=max_tokens,
            **sampling,
        )
        try:
            text = said["choices"][0]["message"].get("content") or ""
            usage = said.get("usage") or {}
            read, written = (usage.get(f"{kind}_tokens") or 0 for kind in ("prompt", "completion"))
        except (LookupError, TypeError, AttributeError) as error:
            raise RequestFailed(f"expected a chat completion, got {_quoted(str(said))}") from error
        self.tokens_read += self._checked(read)
        self.tokens_written += self._checked(written)
        return _without_key(str(text))

    def _checked(self, count: Any) -> int:
        """Returns a count of tokens that can be, 0 for one that cannot: sums of money depend on it."""
        if type(count) is int and 0 <= count <= _MAX_COUNTED:
            return count
        if not self._has_miscounted:
            self._has_miscounted = True
            log.warning(
                "got %s tokens for one request, expected 0 to %d: tokens and money will be too low",
                _quoted(str(count)),
                _MAX_COUNTED,
            )
        return 0

    async def _said(self, ask: Callable[..., Awaitable[Any]], **options: Any) -> Any:
        """Returns the JSON that a server answers, within the deadline."""
        import openai

        late = RequestFailed(f"no whole answer within {self._max_seconds:g} s")
        try:
            response = await asyncio.wait_for(ask(**options), self._max_seconds)
        except openai.APIStatusError as error:
            status = error.status_code
            hint = f" ({_HINTS[status]})" if status in _HINTS else ""
            said = f"status {status}{hint}: {_quoted(error.response.text)}"
            raise RequestFailed(said, refused=status < 500 and status not in (408, 409, 429)) from error
        except (asyncio.TimeoutError, openai.APITimeoutError) as error:
            raise late from error
        except openai.OpenAIError as error:
            reason = str(error.__cause__ or error) or type(error).__name__
            raise RequestFailed(_quoted(reason)) from error
        try:
            # Of a number only so many digits: one of thousands must not cost an answer that is paid for.
            return json.loads(response.text, parse_int=lambda digits: int(digits[:20]))
        except (ValueError, RecursionError) as error:
            raise RequestFailed(f"expected JSON, got {_quoted(response.text)}") from error

    def _client(self) -> Any:
        """Opens a client for one call: its connections live as long as the event loop."""
        try:
            import openai
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "models behind servers need the openai package; run: pip install -r requirements/servers.txt"
            ) from error
        logging.getLogger("openai").setLevel(logging.WARNING)  # it would log whole requests
        return openai.AsyncOpenAI(
            base_url=self._addresses[0],
            api_key=_key() or "none",  # else it would send the one in OPENAI_API_KEY
            max_retries=RETRIES,
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=openai.Timeout(self._max_seconds, connect=min(CONNECT_SECONDS, self._max_seconds)),
                follow_redirects=False,  # the key is for this server
                headers={"Accept-Encoding": "identity"},
                event_hooks={"response": [_bound]},
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
    return " ".join(_without_key(text).split())[:_LETTERS_QUOTED] or "nothing"


def _without_key(text: str) -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    return text.replace(key, "***") if key else text


async def _bound(response: Any) -> None:
    """Has httpx stop reading a response after `MAX_ANSWER_BYTES`; compressed, it might unpack to more."""
    httpx = importlib.import_module(type(response).__module__.split(".")[0])  # openai has two to choose from
    stream, packed = response.stream, response.headers.get("Content-Encoding", "identity")

    class Bounded(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            left = MAX_ANSWER_BYTES
            async for part in stream:
                left -= len(part)
                if left < 0 or packed != "identity":
                    what = f"{packed} data" if left >= 0 else f"more than {MAX_ANSWER_BYTES >> 20} MB"
                    raise httpx.RemoteProtocolError(f"got {what}, expected a short answer")
                yield part

        async def aclose(self) -> None:
            await stream.aclose()

    response.stream = Bounded()


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
