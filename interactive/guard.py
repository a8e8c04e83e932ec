"""Who may talk to the page, how much they may send, and the headers of every response.

The page listens on this machine, but a browser here runs other people's pages too. They must not reach it
under a name of their own (DNS rebinding: Host is checked) nor submit forms to it (Origin is checked). Where
others can reach it, whoever opens it must have the token of the printed address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections.abc import Sequence
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN = "token"  # the name of the parameter and of the cookie
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


class Guard:
    """ASGI middleware: refuses what does not come from the page itself, and adds the security headers.

    The Host header may hold `names`, localhost and, unlike with Starlette's TrustedHostMiddleware, any plain
    IP address: no name is looked up for one, so none can be rebound. With a token, whoever comes with it in
    the address gets it as a cookie, and nobody else gets anything.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str], token: str = "") -> None:
        self._app = app
        self._token = token
        self._names = frozenset(("localhost", *(name.lower() for name in names)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await (self._refusal(scope) or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin", "")
        if not self._is_known(host):
            return PlainTextResponse("This page is not known by that name; see --names.", 421)
        if scope["method"] not in ("GET", "HEAD") and origin not in (f"http://{host}", f"https://{host}"):
            return PlainTextResponse("Only the page itself may send this.", 403)
        if not self._token:
            return None
        request = Request(scope)
        if _is_same(request.query_params.get(TOKEN), self._token):
            query = request.url.remove_query_params(TOKEN).query  # it leaves the address bar
            welcome = RedirectResponse(f"/{request.url.path.lstrip('/')}{query and '?'}{query}", 303)
            welcome.set_cookie(TOKEN, self._token, httponly=True, samesite="lax", path="/")
            return welcome
        if _is_same(request.cookies.get(TOKEN), self._token):
            return None
        return PlainTextResponse("Open the address that was printed when this page was started.", 403)

    def _is_known(self, host: str) -> bool:
        try:
            name = "" if "@" in host else urlsplit(f"//{host}").hostname or ""
            return name in self._names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False


def _is_same(given: str | None, token: str) -> bool:
    return secrets.compare_digest((given or "").encode(errors="replace"), token.encode())


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Reads a request's body; HTTPException 413 or 408 when it is too long or too slow."""
    too_long = HTTPException(413, f"That is too large; the limit is {max_bytes / 2**20:.3g} MB.")
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
    """Reads a form's fields; HTTPException 413, 408 or 400 when it cannot."""
    data = await read_body(request, MAX_FORM_BYTES)
    try:
        return dict(parse_qsl(data.decode("utf-8"), keep_blank_values=True, max_num_fields=16))
    except ValueError as error:
        raise HTTPException(400, "That is not a form.") from error
