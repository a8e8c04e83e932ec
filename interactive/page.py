"""The page's routes. Slow work goes to threads: one searches, others caption and rewrite, together for all.

Every action is answered with the page's main part as it is then: finished if the work took less than a
second, otherwise saying what is being done and how many are ahead; the browser then asks at ``/progress``.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode

import jinja2
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from feedback.strategies import STRATEGIES
from index import decode
from index.decode import BrokenImage
from interactive import session as sessions
from interactive.guard import read_body, read_form
from interactive.match import WORDS, match_word
from interactive.pictures import MAX_UPLOADED_BYTES, SMALL_PIXELS, jpeg, open_outside, read_upload
from interactive.saved import MAX_BYTES, export_rounds, open_session, save_session
from interactive.session import LARGE_PIXELS, Options, Say, SearchContext, Session, UserError
from interactive.study import Study, with_target
from interactive.visitors import Closed, State, TooBusy, Visitor, Visitors, Worker

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
COOKIE = "session"
QUICK_SECONDS = 1.0  # a response waits this long for the work
DESCRIBED_AT_ONCE = 4
REFINING = 32  # visitors whose queries are moved together (`interactive.together`)
SAMPLES = 12  # pictures of the collection on the empty page
FILE_BYTES = {"/by-picture": MAX_UPLOADED_BYTES, "/open": MAX_BYTES}  # paths whose body is a file
STRATEGY_LABELS = {
    "original": "Your words only",
    "append": "Append captions",
    "append-anchored": "Append, anchored to your words",
    "rewrite": "Rewrite the last query",
    "rewrite-original": "Rewrite your words",
    "rewrite-anchored": "Rewrite, anchored to your words",
    "rewrite-chosen": "Rewrite, best of several",
    "rocchio": "Move towards liked pictures (Rocchio)",
    "fusion": "Words, captions and pictures combined",
    "slerp": "Turn towards the captions (Slerp)",
    "bayes": "Weigh all pictures by your picks (Bayes)",
    "bayes-captions": "Weigh all pictures by your picks and by captions (Bayes)",
}

# Changes a copy of a visitor's state; returns what the visitor should know of the effect, or nothing.
Action = Callable[[State, Mapping[str, Any], Say], str | None]


class Page:
    """The page over one collection.

    Attributes:
        visitors: Who is there.
        preparing: What is being loaded before the first refinement; empty once all is ready.
        searching: The thread that searches.
        writing: The threads that caption and rewrite.
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
        """Makes the threads.

        Args:
            context: The collection and its models.
            options: Everybody's at first, and those of the study.
            study: Hands out pictures to find.
            describe: Whether all shown pictures are captioned when there is nothing else to do.
            names_shown: Whether the pictures' names in the collection may be shown.
        """
        self.context = context
        self.visitors = Visitors(lambda: Session(context, options))
        self.study = study
        self.searching, self.writing = Worker("searching"), Worker("writing", REFINING)
        self._describe = describe
        self._names_shown = names_shown
        self.preparing = ""
        self._undescribed: deque[str] = deque(maxlen=256)
        self._is_describing = False  # whether that waits for its turn
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def app(self) -> Starlette:
        """Returns the ASGI application, still without its `interactive.guard.Guard`."""
        quick: dict[str, Action] = {
            "/search": self._search,
            "/round": lambda state, form, say: _outside_study(state).go_to(_integer(form, "number")),
            "/options": self._set_options,
            "/over": lambda state, form, say: _outside_study(state).start_over(),
            "/by-picture": self._search_picture,
            "/similar": self._search_similar,
            "/at": self._go_to_address,
            "/append": lambda state, form, say: _outside_study(state).show_more(say),
            "/open": self._open,
            "/found": self._found,
            "/study": self._begin_task,
            "/give-up": lambda state, form, say: self._end_task(state, found=False),
        }
        refining: dict[str, Action] = {
            "/more": lambda state, form, say: _continued(state).next_round(say=say),
            "/propose": lambda state, form, say: _continued(state).propose(say) and None,
            "/edited": lambda state, form, say: _continued(state).next_round(form.get("text", ""), say),
        }
        routes = [
            Route("/", partial(self._html, template="page.html.j2")),
            Route("/view", partial(self._html, template="main.html.j2")),
            Route("/study", self.study_start),
            Route("/progress", self.progress),
            Route("/ready", self.ready),
            Route("/upload", self.upload),
            Route("/file", self.file, methods=["POST"]),
            Route("/thumbnail/{number:int}", partial(self._jpeg, side=SMALL_PIXELS)),
            Route("/picture/{number:int}", partial(self._jpeg, side=LARGE_PIXELS)),
            Route("/session.json", self.save),
            Route("/rounds.jsonl", self.export),
            Route("/mark", self.mark, methods=["POST"]),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ]
        for path, action in (quick | refining).items():
            routes.append(Route(path, self._endpoint(action, path in refining), methods=["POST"]))
        return Starlette(
            routes=routes,
            exception_handlers={HTTPException: _refused, UserError: _refused, Exception: _failed},
        )

    def close(self) -> None:
        """Ends the threads as soon as what they are doing now allows."""
        decode.stop()
        self.searching.close()
        self.writing.close()

    def warm_up(self) -> None:
        """Searches once, then loads the other models while the first visitor types; logs what fails."""
        session = self.visitors.new_session()
        session.search("a picture")
        self.context.strategy(session.options.strategy)  # shared with the searching thread: made once, here

        def caption() -> None:
            self.context.captions.describe(Image.new("RGB", (64, 64)))  # no caption that is kept already

        def propose() -> None:
            session.mark(session.current.shown_ids[0], "like")
            session.propose()

        entry = STRATEGIES[session.options.strategy]
        loads = {"the captioner": caption} if self._describe or entry.needs_captioner else {}
        loads["the language model" if entry.needs_rewriter else "the strategy"] = propose
        self.preparing = "Loading the models"

        def open_models(say: Say) -> None:
            try:
                for place, (name, load) in enumerate(loads.items(), start=1):
                    self.preparing = f"Loading {name} ({place} of {len(loads)})"
                    say(self.preparing)  # goes no further once the page is closed
                    load()
                self.preparing = ""
            except (ValueError, OSError, ModuleNotFoundError) as error:
                self.preparing = "The models cannot be loaded; the log says why"
                log.warning("strategy %s: its models cannot be used: %s", session.options.strategy, error)

        self.writing.submit(open_models, is_visitors=False)

    # What a visitor sees

    async def _html(self, request: Request, template: str) -> Response:
        visitor = self.visitors.find(request.cookies.get(COOKIE)) or self.visitors.stranger()
        return HTMLResponse(self._render(template, visitor))

    async def study_start(self, request: Request) -> Response:
        """The first page of a study: what to agree to, and the button that begins."""
        visitor = self.visitors.find(request.cookies.get(COOKIE)) or self.visitors.stranger()
        start = {name: request.query_params.get(name, "") for name in ("participant", "condition")}
        start["participant"] = start["participant"] or visitor.state.participant
        self.study.plan(**start)  # refuses what cannot be used, before anybody agrees to anything
        return HTMLResponse(self._render("page.html.j2", visitor, start=start))

    async def progress(self, request: Request) -> Response:
        """What is being done for a visitor, how many are ahead, and the captions there are by now."""
        visitor = self._known(request)
        stage, ahead = visitor.status
        if visitor.job is not None and visitor.job.worker is self.writing:
            stage = self.preparing or stage  # what all that use the models wait for
        session = visitor.state.session
        shown = [self._picture(image_id) for image_id in (session.current.shown_ids if session.turns else ())]
        captions = {each["number"]: each["caption"] for each in shown if each["caption"]}
        return JSONResponse(
            {"busy": visitor.is_waiting, "stage": stage, "ahead": ahead, "captions": captions}
        )

    async def ready(self, request: Request) -> Response:
        """What is still being loaded; empty once the first refinement need not wait for it."""
        return PlainTextResponse(self.preparing)

    async def upload(self, request: Request) -> Response:
        """The picture that a visitor's search began with."""
        data = self._known(request).state.session.upload
        if data is None:
            raise HTTPException(404, "There is no such picture.")
        return Response(data, media_type="image/jpeg")

    async def file(self, request: Request) -> Response:
        """Answers with a picture's path, and opens it or its folder; on the person's own machine only."""
        form = await read_form(request)
        if not self._names_shown:
            raise HTTPException(404, "Files can only be opened on the machine they are on.")
        path = self.context.paths[self.context.id_of(_integer(form, "picture"))].absolute()
        try:
            if form.get("do") in ("open", "folder"):
                await run_in_threadpool(open_outside, path if form["do"] == "open" else path.parent)
        except BrokenImage as error:
            raise HTTPException(404, "This picture cannot be read.") from error
        return PlainTextResponse(str(path))

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
        return _download(save_session(self._known(request).state.session), "session.json")

    async def export(self, request: Request) -> Response:
        """The rounds up to the one on view, as an experiment's records; with the target once declared."""
        state = self._known(request).state
        declared = state.verdict["records"] if state.verdict else []
        return _download(export_rounds(declared or state.session.records()), "rounds.jsonl")

    # What a visitor does

    async def mark(self, request: Request) -> Response:
        """Likes or dislikes a picture; quick, so it needs no thread."""
        form = await read_form(request)
        visitor = self._known(request)
        mark = form.get("mark", "")
        if visitor.is_waiting:
            raise UserError("wait for the next round")
        if mark not in ("like", "dislike", "none"):
            raise UserError(f"mark: got {mark[:20]!r}, expected like, dislike or none")
        image_id = self.context.id_of(_integer(form, "picture"))
        visitor.state.session.mark(image_id, mark)  # type: ignore[arg-type]  # checked above
        if mark == "like":
            self._undescribed.appendleft(image_id)  # before those that are only shown
            self._describe_soon()
        record = visitor.state.session.current.record
        return JSONResponse({"liked": len(record.liked), "disliked": len(record.disliked)})

    def _endpoint(self, action: Action, refines: bool) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            form: Mapping[str, Any]
            if (max_bytes := FILE_BYTES.get(request.url.path)) is None:
                form = await read_form(request)
            else:
                words = unquote(request.headers.get("x-words", ""))
                form = {"file": await read_body(request, max_bytes), "words": words}
            token = request.cookies.get(COOKIE)
            try:
                visitor = self.visitors.find(token) or self.visitors.welcome()
                if visitor.is_waiting:
                    raise HTTPException(409, "Your last request is still being worked on.")
                needs_models = refines and visitor.state.session.needs_models
                worker = self.writing if needs_models else self.searching
                visitor.job = worker.submit(partial(self._work, visitor, action, form))
            except TooBusy as error:
                headers = {"Retry-After": "5"}
                raise HTTPException(
                    429, "Too many people are searching; try again in a moment.", headers
                ) from error
            await asyncio.wait([asyncio.wrap_future(visitor.job.future)], timeout=QUICK_SECONDS)
            response = HTMLResponse(self._render("main.html.j2", visitor))
            if visitor.token != token:
                response.set_cookie(COOKIE, visitor.token, httponly=True, samesite="strict", path="/")
            return response

        return endpoint

    def _work(self, visitor: Visitor, action: Action, form: Mapping[str, Any], say: Say) -> None:
        """Does an action in a thread; the state is as before if it fails, and a notice says why."""
        state, begun = visitor.state.copy(), time.monotonic()
        task = state.task
        try:
            visitor.notice = (_sentence(action(state, form, say) or ""), False)
            before = visitor.state.session
            if before.turns and before.id != state.session.id and task is None:
                state.keep(before)
            visitor.state = state
        except Closed:
            raise
        except UserError as error:
            visitor.notice = (_sentence(error), True)
        except Exception as error:
            visitor.notice = (_log_failure(error), True)
        if task is not None:
            task.waiting_seconds += time.monotonic() - begun
        if self._describe and visitor.state.session.turns:
            self._undescribed.extend(visitor.state.session.current.shown_ids)
            self._describe_soon()

    def _search(self, state: State, form: Mapping[str, Any], say: Say) -> str:
        if state.task is not None and state.session.turns:
            raise UserError("this search has begun; edit the query instead")
        return _continued(state).search(form.get("text", ""), say=say)

    def _search_picture(self, state: State, form: Mapping[str, Any], say: Say) -> str:
        session = _outside_study(state)
        say("Reading your picture")
        return session.search(form["words"], read_upload(form["file"]), say=say)

    def _search_similar(self, state: State, form: Mapping[str, Any], say: Say) -> str:
        similar = self.context.id_of(_integer(form, "picture"))
        return _outside_study(state).search("", similar=similar, say=say)

    def _go_to_address(self, state: State, form: Mapping[str, Any], say: Say) -> str | None:
        """Shows what `_address` gave for a round, while it is remembered; otherwise searches as it began."""
        session, wanted = _outside_study(state), form.get("search", "")
        if wanted in state.earlier:
            state.session = state.earlier[wanted].copy()
        if wanted and wanted == state.session.id:
            return state.session.go_to(_integer(form, "round") - 1)
        state.session = self.visitors.new_session()
        state.session.options = session.options
        if "similar" in form:
            return self._search_similar(state, {"picture": form["similar"]}, say)
        return self._search(state, {"text": form["q"]}, say) if "q" in form else None

    def _open(self, state: State, form: Mapping[str, Any], say: Say) -> None:
        _outside_study(state)
        state.session = open_session(form["file"].decode("utf-8", errors="replace"), self.context)

    def _set_options(self, state: State, form: Mapping[str, Any], say: Say) -> str:
        session = _outside_study(state)
        try:
            threshold = float(form["threshold"]) if form.get("threshold") else None
        except ValueError as error:
            raise UserError("the minimum match is not a number") from error
        shown, shows_again = _integer(form, "shown"), form.get("shows_again") == "on"
        if shown > sessions.MAX_SHOWN:
            raise UserError(f"pictures per round: got {shown}, expected at most {sessions.MAX_SHOWN}")
        return session.set_options(Options(form.get("strategy", ""), shown, threshold, shows_again), say)

    def _found(self, state: State, form: Mapping[str, Any], say: Say) -> None:
        image_id = self.context.id_of(_integer(form, "picture"))
        session, task = state.session, state.task
        session.require_shown(image_id)
        if task is not None:
            if image_id != task.search.target:
                task.wrong += 1
                raise UserError("that is a different picture; keep looking")
            self._end_task(state, found=True)
            return
        turns = session.turns[: session.position + 1]
        state.verdict = {
            "records": with_target(turns, image_id, self.context.retriever, "found"),
            "result": None,
            "picture": self.context.number_of(image_id),
        }

    def _begin_task(self, state: State, form: Mapping[str, Any], say: Say) -> None:
        _outside_study(state)
        say("Choosing a picture")
        if form.get("participant"):
            state.participant, state.condition = form["participant"], form.get("condition", "")
        state.task = self.study.begin(state.participant, state.condition)
        state.session = self.visitors.new_session()
        state.session.options = replace(state.session.options, strategy=state.task.search.condition)

    def _end_task(self, state: State, found: bool) -> None:
        if state.task is None:
            raise UserError("there is no picture to find; begin the study first")
        state.verdict = {
            "records": [],
            "result": self.study.end(state.task, state.session, found),
            "picture": self.context.number_of(state.task.search.target),
            "left": state.task.count - state.task.search.number - 1,
        }
        state.task, state.session = None, self.visitors.new_session()

    # Behind it

    def _describe_soon(self) -> None:
        if self._undescribed and not self._is_describing:
            self._is_describing = True
            self.writing.submit(self._describe_some, is_visitors=False)

    def _describe_some(self, say: Say) -> None:
        """Captions a few pictures that somebody sees, and goes on after the visitors who wait."""
        self._is_describing = False  # first: what is added from here on asks for another turn
        if self.writing.has_visitors:
            time.sleep(0.1)
            return self._describe_soon()
        some: dict[str, None] = {}
        while self._undescribed and len(some) < DESCRIBED_AT_ONCE:
            image_id = self._undescribed.popleft()
            if self.context.known_caption(image_id) is None:
                some[image_id] = None
        if some:
            self.context.captions_of(list(some))
        return self._describe_soon()

    def _known(self, request: Request) -> Visitor:
        visitor = self.visitors.find(request.cookies.get(COOKIE))
        if visitor is None:
            raise HTTPException(409, "Your session has ended; search again.")
        return visitor

    def _address(self, state: State) -> str:
        """Returns the address of what a visitor sees; `_go_to_address` leads back to it."""
        session = state.session
        if state.task is not None or not session.turns:
            return "/"
        fields: dict[str, str | int] = {"search": session.id, "round": session.position + 1}
        if session.similar is not None:
            fields["similar"] = self.context.number_of(session.similar)
        elif session.upload is None:
            fields["q"] = session.typed
        return f"/?{urlencode(fields)}"

    def _picture(self, image_id: str) -> dict[str, Any]:
        """Returns what may be said of a picture: its number, and its caption if it has been made."""
        return {
            "number": self.context.number_of(image_id),
            "caption": self.context.known_caption(image_id) or "",
        }

    def _render(self, template: str, visitor: Visitor, start: Mapping[str, str] | None = None) -> str:
        is_busy = visitor.is_waiting  # asked first: a state that comes meanwhile is fetched again
        state, notice = visitor.state, ("", False)
        if not is_busy:
            notice, visitor.notice = visitor.notice, notice
        session, task, ids = state.session, state.task, self.context.ids
        return self._templates.get_template(template).render(
            state=state,
            session=session,
            turn=session.current if session.turns else None,
            busy=is_busy,
            address=self._address(state),
            preparing=self.preparing,
            stage=visitor.status[0] or "Working",
            notice=notice,
            task=task,
            start=start,
            consent=self.study.consent,
            task_seconds=int(self.study.clock() - task.begun) if task else 0,
            context=self.context,
            picture=self._picture,
            samples=ids[:: max(1, len(ids) // SAMPLES)][:SAMPLES],
            strategies=[(name, STRATEGY_LABELS.get(name, name)) for name in self.context.strategies],
            names_shown=self._names_shown,
            describes=self._describe,
            changes_between=sessions.changes_between,
            match_word=match_word,
            MATCH_WORDS=WORDS[:-1],
            EDITED=sessions.EDITED,
            MAX_LETTERS=sessions.MAX_LETTERS,
            MAX_SHOWN=sessions.MAX_SHOWN,
        )


def _continued(state: State) -> Session:
    """Returns the session, and forgets the verdict on its earlier rounds."""
    state.verdict = None
    return state.session


def _outside_study(state: State) -> Session:
    """Returns the session; refuses what would distort the counts of a study."""
    if state.task is not None:
        raise UserError("not while you are looking for a picture; find it, or give up")
    return _continued(state)


def _integer(form: Mapping[str, Any], name: str) -> int:
    text = form.get(name, "")
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise UserError(f"{name}: got {text[:20]!r}, expected a number")
    return int(text)


def _sentence(clause: object) -> str:
    text = str(clause)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _log_failure(error: BaseException) -> str:
    """Logs an error in full and returns what a visitor may know of it."""
    number = secrets.token_hex(4)
    log.error("error %s", number, exc_info=error)
    return f"Something went wrong. Whoever runs this page finds the details in its log under {number}."


def _download(text: str, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(text, media_type="application/json", headers=headers)


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return PlainTextResponse(error.detail, error.status_code, headers=error.headers)
    return PlainTextResponse(_sentence(error), 409)


async def _failed(request: Request, error: Exception) -> Response:
    return PlainTextResponse(_log_failure(error), 500)
