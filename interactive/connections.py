"""Connections that ask for nothing are closed, and no other machine may take all of them."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

MAX_CONNECTIONS = 256
MAX_OF_AN_ADDRESS = 128  # but for this machine, where a proxy may stand
HEAD_SECONDS = 10.0  # in which a connection must have asked for something


class Connection(H11Protocol):
    """One connection of a browser."""

    _watch: asyncio.TimerHandle | None = None
    _seen: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes the connection, unless its address has too many."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        clients = [getattr(one, "client", None) for one in self.connections]
        same = sum(client is not None and client[0] == address for client in clients)
        if address and not ip_address(address).is_loopback and same > MAX_OF_AN_ADDRESS:
            transport.close()
        else:
            self._watch = self.loop.call_later(HEAD_SECONDS, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the watch."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        """Closes the connection if no request has begun since the last look, and none is being answered."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.cycle is self._seen:
            self.transport.close()
            return
        self._seen = self.cycle
        self._watch = self.loop.call_later(HEAD_SECONDS, self._close_if_silent)
