"""The page's routes. Slow work goes to two threads: one searches, the other captions and rewrites.

Every action is answered with the page's main part as it is then: finished if the work took less than a
second, otherwise saying what is being done and how many are ahead; the browser then waits at ``/progress``.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from index.decode import BrokenImage
from interactive.actions import Action, Actions, integer, sentence
from interactive.guard import read_body, read_form
from interactive.pictures import LARGE_PIXELS, MAX_UPLOADED_BYTES, SMALL_PIXELS, jpeg
from interactive.saved import MAX_BYTES, export_rounds, save_session
from interactive.search_context import SearchContext, UserError
from interactive.session import Options, Say, Session
from interactive.study import Study
from interactive.view import captions_shown, view
from interactive.visitors import TooManySessions, Visitor, Visitors, Worker

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
COOKIE = "session"
QUICK_SECONDS = 1.0  # a response waits this long for the work
POLL_SECONDS = 20.0
TICK_SECONDS = 0.05
DESCRIBED_AT_ONCE = 4
FILE_BYTES = {"/by-picture": MAX_UPLOADED_BYTES, "/open": MAX_BYTES}  # paths whose body is a file


class Page:
    """The page over one collection.

    Attributes:
        context: The collection and its models.
        visitors: Who is there.
        study: Hands out pictures to find.
        searching: The thread that searches.
        writing: The thread that captions and rewrites.
    """

    def __init__(
        self,
        context: SearchContext,
        options: Options,
        study: Study,
        *,
        describe: bool = True,
        names_shown: bool = False,
    ) -> None:
        """Starts the threads.

        Args:
            context: The collection and its models.
            options: Everybody's initial options.
            study: Hands out pictures to find.
            describe: Whether all shown pictures are captioned when there is nothing else to do.
            names_shown: Whether the pictures' names in the collection may be shown.
        """
        self.context = context
        self.visitors = Visitors(lambda: Session(context, options))
        self.study = study
        self._actions = Actions(context, options, study)
        self._describe = describe
        self._names_shown = names_shown
        self._undescribed: deque[str] = deque(maxlen=256)
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.searching = Worker("searching")
        self.writing = Worker("writing", idle=self._describe_some)

    def app(self) -> Starlette:
        """Returns the ASGI application, still without its `interactive.guard.Guard`."""
        routes = [
            Route("/", partial(self._html, template="page.html.j2")),
            Route("/view", partial(self._html, template="main.html.j2")),
            Route("/progress", self.progress),
            Route("/thumbnail/{number:int}", partial(self._jpeg, side=SMALL_PIXELS)),
            Route("/picture/{number:int}", partial(self._jpeg, side=LARGE_PIXELS)),
            Route("/session.json", self.save),
            Route("/rounds.jsonl", self.export),
            Route("/measures.json", self.measures),
            Route("/mark", self.mark, methods=["POST"]),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ]
        for worker, actions in ((self.searching, self._actions.quick), (self.writing, self._actions.slow)):
            for path, action in actions.items():
                routes.append(Route(path, self._endpoint(worker, action), methods=["POST"]))
        return Starlette(
            routes=routes,
            exception_handlers={HTTPException: _refused, UserError: _refused, Exception: _failed},
        )

    def close(self) -> None:
        """Ends the threads as soon as what they are doing now allows."""
        self.searching.close()
        self.writing.close()

    def warm_up(self) -> None:
        """Searches once, then opens the other models while the first visitor types; logs what fails."""
        session = self.visitors.new_session()
        session.search("a picture")

        def open_models(say: Say) -> None:
            loading = "Loading the models for the first time"
            say(loading)
            try:
                self.context.captions_of(self.context.ids[:1])
                session.mark(session.current.shown_ids[0], "like")
                say(loading)  # goes no further once the page is closed
                session.propose()
            except (ValueError, OSError, ModuleNotFoundError) as error:
                log.warning("strategy %s: its models cannot be used: %s", session.options.strategy, error)

        self.writing.submit(open_models, is_visitors=False)

    # What a visitor sees

    async def _html(self, request: Request, template: str) -> Response:
        visitor = self.visitors.find(request.cookies.get(COOKIE))
        # Somebody new is not remembered before they do something.
        return HTMLResponse(self._render(template, visitor or Visitor("", self.visitors.new_session())))

    async def progress(self, request: Request) -> Response:
        """Answers as soon as something differs from what the browser knows, after `POLL_SECONDS` at most."""
        visitor = self.visitors.find(request.cookies.get(COOKIE))
        if visitor is None:
            return JSONResponse({"state": "gone", "busy": False, "stage": "", "ahead": 0, "captions": {}})
        known = request.query_params.get("known", "")
        until = time.monotonic() + POLL_SECONDS
        visitor.polls += 1
        poll = visitor.polls
        while True:
            busy, (stage, ahead), captions = visitor.is_waiting, visitor.status, captions_shown(visitor)
            state = f"{busy} {stage} {ahead} {len(captions)}"
            is_latest = visitor.polls == poll  # a newer poll of the same visitor ends this one
            if state != known or not is_latest or time.monotonic() > until:
                return JSONResponse(
                    {"state": state, "busy": busy, "stage": stage, "ahead": ahead, "captions": captions}
                )
            if await request.is_disconnected():
                return Response(status_code=204)
            await asyncio.sleep(TICK_SECONDS)

    async def _jpeg(self, request: Request, side: int) -> Response:
        try:
            path = self.context.paths[self.context.id_of(request.path_params["number"])]
            data = await run_in_threadpool(jpeg, path, side)
        except (UserError, KeyError) as error:
            raise HTTPException(404, "There is no such picture.") from error
        except BrokenImage as error:
            log.warning("a picture cannot be shown: %s", error)
            raise HTTPException(404, "This picture cannot be read.") from error
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})

    # What a visitor can download

    async def save(self, request: Request) -> Response:
        """The session as a file that can be opened again."""
        return _download(save_session(self._known(request).steady_session), "session.json")

    async def export(self, request: Request) -> Response:
        """The rounds up to the one on view, as an experiment's records; with the target once declared."""
        visitor = self._known(request)
        declared = visitor.verdict["records"] if visitor.verdict else []
        return _download(export_rounds(declared or visitor.steady_session.records()), "rounds.jsonl")

    async def measures(self, request: Request) -> Response:
        """The measures of a session whose target was declared."""
        visitor = self._known(request)
        if visitor.verdict is None:
            raise HTTPException(409, "Declare a picture found first.")
        return JSONResponse(visitor.verdict["measures"], headers=_attachment("measures.json"))

    # What a visitor does

    async def mark(self, request: Request) -> Response:
        """Likes or dislikes a picture; quick, so it needs no thread."""
        form = await read_form(request)
        visitor = self._known(request)
        mark = form.get("mark", "")
        try:
            if visitor.is_waiting:
                raise UserError("wait for the next round")
            if mark not in ("like", "dislike", "none"):
                raise UserError(f"mark: got {mark[:20]!r}, expected like, dislike or none")
            image_id = self.context.id_of(integer(form, "picture"))
            visitor.session.mark(image_id, mark)  # type: ignore[arg-type]  # checked above
        except UserError as error:
            if _is_fetch(request):
                raise
            visitor.notice = (sentence(error), True)
        else:
            if mark == "like" and self.context.known_caption(image_id) is None:
                self._undescribed.appendleft(image_id)  # before those that are only shown
                self.writing.wake()
        if not _is_fetch(request):
            return RedirectResponse("/", 303)
        record = visitor.session.current.record
        return JSONResponse({"liked": len(record.liked), "disliked": len(record.disliked)})

    def _endpoint(self, worker: Worker, action: Action) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            if (max_bytes := FILE_BYTES.get(request.url.path)) is None:
                return await self._act(request, worker, action, await read_form(request))
            words = unquote(request.headers.get("x-words", ""))
            form = {"file": await read_body(request, max_bytes), "words": words}
            return await self._act(request, worker, action, form)

        return endpoint

    async def _act(
        self, request: Request, worker: Worker, action: Action, form: Mapping[str, Any]
    ) -> Response:
        token = request.cookies.get(COOKIE)
        try:
            visitor = self.visitors.find(token) or self.visitors.welcome()
            if visitor.is_waiting:
                raise HTTPException(409, "Your last request is still being worked on.")
            visitor.before = visitor.session.copy()
            visitor.job = job = worker.submit(lambda say: self._timed(visitor, action, form, say))
        except (TooManySessions, queue.Full) as error:
            raise HTTPException(
                429, "Too many people are searching; try again in a moment.", headers={"Retry-After": "5"}
            ) from error
        until = time.monotonic() + QUICK_SECONDS
        while not job.future.done() and time.monotonic() < until:
            await asyncio.sleep(0.005)
        response = (
            HTMLResponse(self._render("main.html.j2", visitor))
            if _is_fetch(request)
            else RedirectResponse("/", 303)
        )
        if visitor.token != token:
            response.set_cookie(COOKIE, visitor.token, httponly=True, samesite="strict", path="/")
        return response

    def _timed(self, visitor: Visitor, action: Action, form: Mapping[str, Any], say: Say) -> None:
        begun, task = time.monotonic(), visitor.task
        try:
            action(visitor, form, say)
        finally:
            if task is not None:
                task.waiting_seconds += time.monotonic() - begun
            if self._describe and visitor.session.turns:
                self._undescribed.extend(visitor.session.current.shown_ids)
                self.writing.wake()

    def _describe_some(self) -> bool:
        """Captions a few pictures that somebody sees; runs in the writing thread when it is idle."""
        some: dict[str, None] = {}
        while self._undescribed and len(some) < DESCRIBED_AT_ONCE:
            image_id = self._undescribed.popleft()
            if self.context.known_caption(image_id) is None:
                some[image_id] = None
        if some:
            self.context.captions_of(list(some))
        return bool(some)

    def _known(self, request: Request) -> Visitor:
        visitor = self.visitors.find(request.cookies.get(COOKIE))
        if visitor is None:
            raise HTTPException(409, "Your session has ended; search again.")
        return visitor

    def _render(self, template: str, visitor: Visitor) -> str:
        job = visitor.job
        if job is not None and job.future.done():  # what the work raised becomes a notice, once
            visitor.job = None
            if (error := job.future.exception()) is not None:
                visitor.notice = (
                    sentence(error) if isinstance(error, UserError) else _log_failure(error),
                    True,
                )
        values = view(visitor, self.study, self._names_shown, self._describe)
        html = self._templates.get_template(template).render(values)
        visitor.notice = ("", False)
        return html


def _log_failure(error: BaseException) -> str:
    """Logs an error in full and returns what a visitor may know of it."""
    number = secrets.token_hex(4)
    log.error("error %s", number, exc_info=error)
    return f"Something went wrong. Whoever runs this page finds the details in its log under {number}."


def _download(text: str, name: str) -> Response:
    return Response(text, media_type="application/json", headers=_attachment(name))


def _attachment(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _is_fetch(request: Request) -> bool:
    return "x-fragment" in request.headers


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return PlainTextResponse(error.detail, error.status_code, headers=error.headers)
    return PlainTextResponse(sentence(error), 409)


async def _failed(request: Request, error: Exception) -> Response:
    return PlainTextResponse(_log_failure(error), 500)
