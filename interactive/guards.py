"""What stands before the page: who may ask, how often, how much; and what every answer carries.

The page listens on this machine, but a browser on this machine runs other people's pages too. Those must not
reach it under a name of their own (DNS rebinding: the Host header is checked) nor send it forms (the Origin
header is checked).
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_FORM_BYTES = 16 * 2**10
BODY_SECONDS = 60.0
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class RateLimit:
    """A bucket of tokens for each key: so many at once, so many a second."""

    def __init__(
        self,
        burst: float,
        per_second: float,
        max_keys: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst = burst
        self._per_second = per_second
        self._most_keys = max_keys
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, key: str) -> bool:
        """Takes a token, if there is one."""
        now = self._clock()
        tokens, since = self._buckets.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._per_second)
        self._buckets[key] = (max(0.0, tokens - 1) if tokens >= 1 else tokens, now)
        if len(self._buckets) > self._most_keys:
            self._buckets.popitem(last=False)
        return tokens >= 1


class Guard:
    """ASGI middleware: refuses what does not come from the page itself, and what comes too often."""

    def __init__(
        self,
        app: ASGIApp,
        names: Sequence[str],
        actions: RateLimit | None = None,
        reads: RateLimit | None = None,
    ) -> None:
        """Wraps the page.

        Args:
            app: The page.
            names: Names that the Host header may hold, besides localhost and plain addresses.
            actions: Bounds what changes something, by the asker's address.
            reads: Bounds the rest.
        """
        self._app = app
        self._names = frozenset(("localhost", *(name.lower() for name in names)))
        self._actions = actions or RateLimit(burst=40, per_second=10)
        self._reads = reads or RateLimit(burst=400, per_second=100)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            return PlainTextResponse("This page does not go by that name; see --names.", 421)
        is_read = scope["method"] in ("GET", "HEAD")
        limit = self._reads if is_read else self._actions
        if not limit.allows((scope.get("client") or ("",))[0]):
            return PlainTextResponse("Too many requests; wait a moment.", 429, headers={"Retry-After": "2"})
        if not is_read and not _is_same_origin(headers.get("origin", ""), host):
            return PlainTextResponse("Only the page itself may send this.", 403)
        return None

    def _is_ours(self, host: str) -> bool:
        """A plain address cannot be rebound, since no name is looked up; names must be known."""
        try:
            name = "" if "@" in host else urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _is_same_origin(origin: str, host: str) -> bool:
    return origin in (f"http://{host}", f"https://{host}")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Reads a request's body, and stops reading when it is too long or too slow.

    Raises:
        HTTPException: 413 or 408.
    """
    too_long = HTTPException(413, f"That is too large; at most {max_bytes / 2**20:.3g} MB are read.")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > max_bytes:
        raise too_long

    async def read() -> bytes:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > max_bytes:
                raise too_long
        return bytes(data)

    try:
        return await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError as error:
        raise HTTPException(408, "That took too long to arrive.") from error


async def read_form(request: Request) -> dict[str, str]:
    """Reads a form's fields.

    Raises:
        HTTPException: 413, 408 or 400.
    """
    data = await read_body(request, MAX_FORM_BYTES)
    try:
        return dict(parse_qsl(data.decode("utf-8"), keep_blank_values=True, max_num_fields=16))
    except ValueError as error:
        raise HTTPException(400, "That is no form.") from error
