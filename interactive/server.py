"""Opens a collection and serves its page with uvicorn, or runs the terminal."""

from __future__ import annotations

import ipaddress
import logging
import secrets
import socket
from contextlib import ExitStack
from pathlib import Path

from experiments.run_folder import run_folder
from experiments.setup import Setup
from index.faiss_index import ImageIndex
from interactive.session import Options, SearchContext
from interactive.study import Study
from interactive.together import shared
from settings import InteractiveSettings

log = logging.getLogger(__name__)

INSTALL = "pip install -r requirements/page.txt"


def run_interactive(settings: InteractiveSettings, index: ImageIndex | None = None) -> None:
    """Lets a person search, on a page or in the terminal, until they stop.

    The index is given opened where it is no folder that the settings name.

    Raises:
        FileNotFoundError: If dataset or checkpoint are missing.
        ModuleNotFoundError: If the page's packages are missing.
        OSError: If the address is not available.
        ValueError: If something cannot be used.
    """
    settings = settings.resolved()
    options = Options(settings.strategy, settings.shown)
    if settings.terminal:
        from interactive.terminal import Terminal

        Terminal(open_context(settings, index)[0], options, describe=settings.describe).run()
        return
    try:
        import uvicorn

        from interactive.connections import MAX_CONNECTIONS, Connection
        from interactive.guard import TOKEN, Guard
        from interactive.page import Page
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"the page needs {error.name}; run: {INSTALL}") from error
    # The socket comes first: a taken port is said before models load.
    with _listening_socket(settings.host, settings.port) as listening:
        context, study = open_context(settings, index)
        is_local = is_loopback(settings.host)
        page = Page(shared(context), options, study, describe=settings.describe, names_shown=is_local)
        needs_token = settings.token == "always" or (settings.token == "auto" and not is_local)
        token = secrets.token_urlsafe(24) if needs_token else ""
        if not is_local and not token:
            log.warning(
                "listening on %s: anybody who reaches it can search and see the pictures", settings.host
            )
        host, port = listening.getsockname()[:2]
        config = uvicorn.Config(
            Guard(page.app(), settings.names, token),
            http=Connection,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=2,
        )
        place = f"http://{f'[{host}]' if ':' in host else host}:{port}/"

        class Server(uvicorn.Server):
            """Names its address when it has taken over the signals; stopped before, asyncio complains."""

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                log.info("open %s (stop with Ctrl-C)", f"{place}?{TOKEN}={token}" if token else place)

        try:
            page.warm_up()
            Server(config).run(sockets=[listening])
        finally:
            page.close()


def open_context(
    settings: InteractiveSettings, index: ImageIndex | None = None
) -> tuple[SearchContext, Study]:
    """Opens a collection for searching, and the study over it; the settings are resolved."""
    setup = Setup.open(settings, index=index)
    if setup.compares_captions:
        _ = setup.caption_vectors  # now, not in somebody's second round; names the command that makes them
    context = SearchContext.of(setup)
    folders = ExitStack()  # the study's folder stays locked until the process ends

    def open_folder() -> Path:
        return folders.enter_context(run_folder(settings, setup.identity()))

    conditions = settings.conditions or (settings.strategy,)
    consent = settings.consent.read_text(encoding="utf-8").strip() if settings.consent else ""
    return context, Study(context, open_folder, conditions, settings.study_pictures, consent, settings.seed)


def is_loopback(host: str) -> bool:
    """Says whether an address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listening_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another --port (0: a free one)"
        ) from error
