"""One address of an OpenAI-compatible server: a request to an answer, or to the reason for none.

The protocol is that of vLLM, SGLang, llama.cpp's server, Ollama and ``transformers serve``:
``POST /chat/completions`` and ``GET /models`` below an address such as ``http://127.0.0.1:8000/v1``.
"""

from __future__ import annotations

import email.utils
import json
import os
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

KEY_VARIABLE = "SERVER_API_KEY"  # the only place a key is read from; it is in no file and no message
CONNECT_SECONDS = 10.0
MAX_BYTES = 1 << 22  # of an answer; an honest one has some kilobytes
_LETTERS_QUOTED = 160  # of what a server says when it refuses

_HINTS = {
    401: f"set the environment variable {KEY_VARIABLE}",
    403: f"set the environment variable {KEY_VARIABLE}",
    404: "does the address end in /v1, and does the server have the model?",
    413: "the server takes no request of this size",
}


@dataclass(frozen=True)
class Answer:
    """What a model said, and what it took; 0 tokens where the server does not count."""

    text: str
    tokens_read: int
    tokens_written: int


class RequestFailed(Exception):
    """A request that got no answer.

    Attributes:
        may_pass: Whether the same request may succeed later.
        wait_seconds: How long the server asks to be left alone, if it does.
    """

    def __init__(self, reason: str, *, may_pass: bool, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.may_pass = may_pass
        self.wait_seconds = wait_seconds


def check_address(address: str) -> str:
    """Returns a server's address without a slash at its end.

    Raises:
        ValueError: If it is none, or holds a user or a password: addresses are saved and shown.
    """
    if any(sign in address for sign in "@?#"):
        raise ValueError(
            "server address: got one with '@', '?' or '#', expected neither user nor query; a key goes into"
            f" the environment variable {KEY_VARIABLE}"
        )
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number
        usable = False
    if not usable:
        raise ValueError(f"server address: got {address!r}, expected such as http://127.0.0.1:8000/v1")
    return address.rstrip("/")


class Endpoint:
    """One address, and how it has been doing; threads may share it.

    Attributes:
        address: Such as ``http://127.0.0.1:8000/v1``.
        busy: Requests under way; whoever shares work out keeps it.
        failures: Pauses in a row without an answer between them.
        ready_at: No request should go out before, in seconds of `time.monotonic`.
    """

    def __init__(self, address: str, *, max_seconds: float, connections: int) -> None:
        """Connects to nothing yet.

        Args:
            address: See `check_address`.
            max_seconds: For one answer, from the request to its last byte.
            connections: At a time.

        Raises:
            ValueError: If the address is none.
        """
        self.address = check_address(address)
        self.busy = 0
        self.failures = 0
        self.ready_at = 0.0
        self._paused_at = 0.0
        self._most_seconds = max_seconds
        self._connections = connections

    def models(self) -> list[str]:
        """Returns the ids of the models that the server offers.

        Raises:
            RequestFailed: If it does not say.
        """
        listed = self._send("GET", "/models")
        try:
            return [str(model["id"]) for model in listed["data"]]
        except (KeyError, TypeError) as error:
            raise RequestFailed(
                f"expected a list of models, got {self._quoted(json.dumps(listed))}", may_pass=False
            ) from error

    def complete(self, request: dict[str, Any]) -> Answer:
        """Has a chat completed.

        Args:
            request: The body of ``POST /chat/completions``.

        Raises:
            RequestFailed: If there is no answer.
        """
        completion = self._send("POST", "/chat/completions", request)
        try:
            text = completion["choices"][0]["message"].get("content") or ""
            usage = completion.get("usage") or {}
            read, written = (int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion"))
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RequestFailed(
                f"expected a chat completion, got {self._quoted(json.dumps(completion))}", may_pass=True
            ) from error
        return Answer(str(text), read, written)

    def pause(self, sent_at: float, first_seconds: float, max_seconds: float, asked: float | None) -> None:
        """Notes that a request failed: nothing is sent for a while, longer from pause to pause.

        Args:
            sent_at: When the request went out; requests that fail together make one pause.
            first_seconds: The first pause; each further one is twice as long.
            max_seconds: The longest one, unless the server asks for more.
            asked: What the server asked for.
        """
        now = time.monotonic()
        if sent_at >= self._paused_at:
            self.failures += 1
            self._paused_at = now
        seconds = min(max_seconds, first_seconds * 2 ** (self.failures - 1)) if asked is None else asked
        self.ready_at = max(self.ready_at, now + seconds)

    @cached_property
    def _client(self) -> Any:
        import httpx2

        key = os.environ.get(KEY_VARIABLE)
        return httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(self._most_seconds, connect=min(CONNECT_SECONDS, self._most_seconds)),
            limits=httpx2.Limits(max_connections=self._connections),
        )

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        import httpx2

        deadline = time.monotonic() + self._most_seconds
        late = f"no whole answer within {self._most_seconds:g} s"
        said = bytearray()
        try:
            with self._client.stream(method, self.address + path, json=body) as response:
                for piece in response.iter_bytes():
                    said += piece
                    if time.monotonic() > deadline:  # a server that sends a byte now and then
                        raise RequestFailed(late, may_pass=True)
                    if len(said) > MAX_BYTES:
                        raise RequestFailed(f"an answer of more than {MAX_BYTES:,} bytes", may_pass=False)
        except httpx2.TimeoutException as error:
            raise RequestFailed(late, may_pass=True) from error
        except httpx2.RequestError as error:
            raise RequestFailed(self._quoted(str(error) or type(error).__name__), may_pass=True) from error
        status, text = response.status_code, said.decode("utf-8", "replace")
        if status != 200:
            hint = f" ({_HINTS[status]})" if status in _HINTS else ""
            raise RequestFailed(
                f"status {status}{hint}: {self._quoted(text)}",
                may_pass=status in (408, 409, 429) or status >= 500,
                wait_seconds=_seconds_asked(response.headers.get("retry-after")),
            )
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RequestFailed(f"expected JSON, got {self._quoted(text)}", may_pass=True) from error

    def _quoted(self, text: str) -> str:
        """One short line of what a server said; it may have said the key."""
        key = os.environ.get(KEY_VARIABLE)
        line = " ".join((text.replace(key, "***") if key else text).split())
        return line[:_LETTERS_QUOTED] or "nothing"


def _seconds_asked(value: str | None) -> float | None:
    """Reads a Retry-After, seconds or a date (RFC 9110, section 10.2.3); None where none can be read."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
