"""The page's routes. Slow work goes to two threads: searching in one, captioning and rewriting in the other.

Every action answers with the page's main part as it is then: finished if the work took less than a second,
else saying what is being done and how many are ahead; the browser then waits at ``/progress``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
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
from interactive.actions import Action, Actions, whole
from interactive.errors import UserError
from interactive.guards import read_body, read_form
from interactive.people import People, Person, TooManySessions
from interactive.pictures import LARGE_PIXELS, MAX_UPLOADED_BYTES, SMALL_PIXELS, PictureCache
from interactive.saved import MAX_BYTES, export_rounds, save_session
from interactive.search_context import SearchContext
from interactive.session import Options, Say, Session
from interactive.study import Study
from interactive.view import captions_shown, view
from interactive.worker import Busy, Worker

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
COOKIE = "session"
MAX_WAITING = 16  # jobs in each queue
QUICK_SECONDS = 1.0  # an answer waits so long for the work
POLL_SECONDS = 20.0
TICK_SECONDS = 0.05
DESCRIBED_AT_ONCE = 4


class Page:
    """The page over one collection.

    Attributes:
        context: The shared parts.
        people: Who is there.
        study: Gives pictures to find.
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
            context: The shared parts.
            options: Everybody's at first.
            study: Gives pictures to find.
            describe: Whether shown pictures are captioned when nothing else is to be done.
            names_shown: Whether the pictures' names in the collection may be shown.
        """
        self.context = context
        self.people = People(lambda: Session(context, options))
        self.study = study
        self._options = options
        self._actions = Actions(context, options, study)
        self._describe = describe
        self._names_shown = names_shown
        self._undescribed: deque[str] = deque(maxlen=256)
        self._pictures = PictureCache()
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.searching = Worker("searching", MAX_WAITING)
        self.writing = Worker("writing", MAX_WAITING, idle=self._describe_some)

    def app(self) -> Starlette:
        """Returns the ASGI application, still without its `interactive.guards.Guard`."""
        routes = [
            Route("/", self.whole),
            Route("/view", self.main),
            Route("/progress", self.progress),
            Route("/thumbnail/{number:int}", self.thumbnail),
            Route("/picture/{number:int}", self.picture),
            Route("/session.json", self.save),
            Route("/rounds.jsonl", self.export),
            Route("/measures.json", self.measures),
            Route("/mark", self.mark, methods=["POST"]),
            Route("/by-picture", self.by_picture, methods=["POST"]),
            Route("/open", self.open, methods=["POST"]),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ]
        for worker, actions in (
            (self.searching, self._actions.quick()),
            (self.writing, self._actions.slow()),
        ):
            for path, action in actions.items():
                routes.append(Route(path, self._acting(worker, action), methods=["POST"]))
        return Starlette(
            routes=routes,
            exception_handlers={HTTPException: _refused, Exception: _failed},
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        self.searching.close()
        self.writing.close()

    def warm_up(self) -> None:
        """Searches once, then opens the other models while the person types; logs what cannot be opened."""
        Session(self.context, self._options).search("a picture")

        def open_models(say: Say) -> None:
            try:
                self.context.captions_of(self.context.ids[:1])
                session = Session(self.context, self._options)
                session.search("a picture")
                session.mark(session.now.shown_ids[0], "like")
                session.propose()
            except (ValueError, OSError, ModuleNotFoundError) as error:
                log.warning("the models of strategy %s cannot be used: %s", self._options.strategy, error)

        self.writing.submit(open_models)

    # What a person sees

    async def whole(self, request: Request) -> Response:
        """The page."""
        return HTMLResponse(self._render("page.html.j2", self._person(request)))

    async def main(self, request: Request) -> Response:
        """Its main part alone."""
        return HTMLResponse(self._render("main.html.j2", self._person(request)))

    async def progress(self, request: Request) -> Response:
        """Waits until something differs from what the browser knows, at most `POLL_SECONDS`."""
        person = self.people.find(request.cookies.get(COOKIE))
        known = request.query_params.get("known", "")
        until = time.monotonic() + POLL_SECONDS
        if person is not None:
            person.polls += 1
        turn = person.polls if person else 0
        while True:
            state = self._progress_of(person)
            is_last = person is None or person.polls == turn  # a newer one of the same person ends this one
            if state["state"] != known or not is_last or time.monotonic() > until:
                return JSONResponse(state)
            if await request.is_disconnected():
                return Response(status_code=204)
            await asyncio.sleep(TICK_SECONDS)

    def _progress_of(self, person: Person | None) -> dict[str, Any]:
        if person is None:
            return {"state": "gone", "busy": False, "stage": "", "ahead": 0, "captions": {}}
        job = person.job if person.is_waiting else None
        stage = job.stage if job else ""
        ahead = max(self.searching.ahead(job), self.writing.ahead(job)) if job else 0
        captions = captions_shown(person)
        return {
            "state": f"{job is not None} {stage} {ahead} {len(captions)}",
            "busy": job is not None,
            "stage": stage,
            "ahead": ahead,
            "captions": captions,
        }

    async def thumbnail(self, request: Request) -> Response:
        """A picture of the index, small."""
        return await self._jpeg(request, SMALL_PIXELS)

    async def picture(self, request: Request) -> Response:
        """A picture of the index, large."""
        return await self._jpeg(request, LARGE_PIXELS)

    async def _jpeg(self, request: Request, side: int) -> Response:
        try:
            path = self.context.paths[self.context.id_of(request.path_params["number"])]
            data = await run_in_threadpool(self._pictures.jpeg, path, side)
        except (UserError, KeyError) as error:
            raise HTTPException(404, "There is no such picture.") from error
        except BrokenImage as error:
            log.warning("a picture cannot be shown: %s", error)
            raise HTTPException(404, "This picture cannot be read.") from error
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})

    # What a person takes along

    async def save(self, request: Request) -> Response:
        """The session as a file that can be opened again."""
        return _download(lambda: save_session(self._known(request).steady), "session.json")

    async def export(self, request: Request) -> Response:
        """The rounds up to the one looked at, as an experiment's records; with the target once declared."""
        person = self._known(request)
        return _download(lambda: export_rounds(_records(person)), "rounds.jsonl")

    async def measures(self, request: Request) -> Response:
        """The measures of a session whose target was declared."""
        person = self._known(request)
        if person.verdict is None:
            raise HTTPException(409, "Declare a picture found first.")
        return JSONResponse(person.verdict["measures"], headers=_attachment("measures.json"))

    # What a person does

    async def mark(self, request: Request) -> Response:
        """Likes or dislikes a picture; quick, so it needs no thread."""
        form = await read_form(request)
        person = self._known(request)
        mark = form.get("mark", "")
        try:
            if person.is_waiting:
                raise UserError("wait for the next round")
            if mark not in ("like", "dislike", "none"):
                raise UserError("a mark is like, dislike or none")
            image_id = self.context.id_of(whole(form, "picture"))
            person.session.mark(image_id, mark)  # type: ignore[arg-type]  # checked above
        except UserError as error:
            if not _is_fetch(request):
                person.notice = (_sentence(error), True)
                return RedirectResponse("/", 303)
            raise HTTPException(409, _sentence(error)) from error
        if mark == "like" and self.context.known(image_id) is None:
            self._undescribed.appendleft(image_id)  # before those that are only shown
            self.writing.wake()
        if not _is_fetch(request):
            return RedirectResponse("/", 303)
        record = person.session.now.record
        return JSONResponse({"liked": len(record.liked), "disliked": len(record.disliked)})

    async def by_picture(self, request: Request) -> Response:
        """Searches by an uploaded picture; the body is the file itself."""
        data = await read_body(request, MAX_UPLOADED_BYTES)
        words = unquote(request.headers.get("x-words", ""))
        return await self._act(request, self.writing, self._actions.by_picture(data, words), {})

    async def open(self, request: Request) -> Response:
        """Takes up a saved session; the body is the file itself."""
        data = await read_body(request, MAX_BYTES)
        return await self._act(request, self.searching, self._actions.open(data), {})

    def _acting(self, worker: Worker, action: Action) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return await self._act(request, worker, action, await read_form(request))

        return endpoint

    async def _act(
        self, request: Request, worker: Worker, action: Action, form: Mapping[str, str]
    ) -> Response:
        person = self.people.find(request.cookies.get(COOKIE))
        is_new = person is None
        try:
            person = person or self.people.welcome()
            if person.is_waiting:
                raise HTTPException(409, "Your last request is still being worked on.")
            person.before = person.session.copy()
            person.job = job = worker.submit(lambda say: self._timed(person, action, form, say))
        except (TooManySessions, Busy) as error:
            raise HTTPException(
                429, "Too many people are searching; try again in a moment.", headers={"Retry-After": "5"}
            ) from error
        until = time.monotonic() + QUICK_SECONDS
        while not job.future.done() and time.monotonic() < until:
            await asyncio.sleep(0.005)
        if _is_fetch(request):
            response: Response = HTMLResponse(self._render("main.html.j2", person))
        else:
            response = RedirectResponse("/", 303)
        if is_new:
            response.set_cookie(COOKIE, person.token, httponly=True, samesite="strict", path="/")
        return response

    def _timed(self, person: Person, action: Action, form: Mapping[str, str], say: Say) -> None:
        begun, task = time.monotonic(), person.task
        try:
            action(person, form, say)
        finally:
            if task is not None:
                task.waiting_seconds += time.monotonic() - begun
            self._want_captions(person)

    def _want_captions(self, person: Person) -> None:
        if not self._describe or not person.session.turns:
            return
        shown = person.session.now.shown_ids
        self._undescribed.extend(image_id for image_id in shown if self.context.known(image_id) is None)
        self.writing.wake()

    def _describe_some(self) -> bool:
        """Captions a few pictures that somebody sees; runs in the writing thread when it is idle."""
        some: dict[str, None] = {}
        while self._undescribed and len(some) < DESCRIBED_AT_ONCE:
            image_id = self._undescribed.popleft()
            if self.context.known(image_id) is None:
                some[image_id] = None
        if some:
            self.context.captions_of(list(some))
        return bool(some)

    def _person(self, request: Request) -> Person:
        """Returns who asks; somebody new is not remembered before they do something."""
        person = self.people.find(request.cookies.get(COOKIE))
        return person or Person("", Session(self.context, self._options))

    def _known(self, request: Request) -> Person:
        person = self.people.find(request.cookies.get(COOKIE))
        if person is None:
            raise HTTPException(409, "Your session is over; search again.")
        return person

    def _render(self, template: str, person: Person) -> str:
        _settle(person)
        values = view(person, self.study, self._names_shown, self._describe)
        person.notice = ("", False)
        return self._templates.get_template(template).render(values)


def _settle(person: Person) -> None:
    """Turns what came of the work into a notice, once."""
    job = person.job
    if job is None or not job.future.done():
        return
    person.job = None
    error = job.future.exception()
    if isinstance(error, UserError):
        person.notice = (_sentence(error), True)
    elif error is not None:
        person.notice = (_log_failure(error), True)


def _log_failure(error: BaseException) -> str:
    """Logs an error in full and returns what the person may know of it."""
    number = secrets.token_hex(4)
    log.error("error %s", number, exc_info=error)
    return f"Something went wrong here. Whoever runs this page finds more in its log under {number}."


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def _records(person: Person) -> list:
    if person.verdict is not None and person.verdict["records"]:
        return person.verdict["records"]
    session = person.steady
    session.now  # noqa: B018  says that there is nothing to export
    return [turn.record for turn in session.turns[: session.at + 1]]


def _download(make: Callable[[], str], name: str) -> Response:
    try:
        return Response(make(), media_type="application/json", headers=_attachment(name))
    except UserError as error:
        raise HTTPException(409, _sentence(error)) from error


def _attachment(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _is_fetch(request: Request) -> bool:
    return "x-fragment" in request.headers


async def _refused(request: Request, error: Exception) -> Response:
    status, detail, headers = 500, "", None
    if isinstance(error, HTTPException):
        status, detail, headers = error.status_code, error.detail, error.headers
    return PlainTextResponse(detail, status, headers=headers)


async def _failed(request: Request, error: Exception) -> Response:
    return PlainTextResponse(_log_failure(error), 500)
