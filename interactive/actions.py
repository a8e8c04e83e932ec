"""What a visitor can do, apart from marking: each action is work for one of the page's threads.

All raise `UserError` for what cannot be done, such as what would distort the counts of a study's open task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from interactive.pictures import read_upload
from interactive.saved import open_session
from interactive.search_context import SearchContext, UserError
from interactive.session import Options, Say, Session
from interactive.study import Study, measure, with_target
from interactive.visitors import Visitor

Action = Callable[[Visitor, Mapping[str, Any], Say], None]


class Actions:
    """Changes visitors' sessions.

    Attributes:
        quick: Actions that search at most, by URL path.
        slow: Actions that caption and rewrite, by URL path.
    """

    def __init__(self, context: SearchContext, options: Options, study: Study) -> None:
        """Takes what actions need.

        Args:
            context: The collection and its models.
            options: Everybody's initial options, and those of the study.
            study: Hands out pictures to find.
        """
        self._context = context
        self._options = options
        self._study = study
        self.quick: dict[str, Action] = {
            "/search": self._search,
            "/round": self._go_to,
            "/options": self._set_options,
            "/over": self._start_over,
            "/open": self._open,
            "/found": self._found,
            "/study": self._begin_task,
            "/give-up": self._give_up,
        }
        self.slow: dict[str, Action] = {
            "/by-picture": self._search_picture,
            "/more": lambda visitor, form, say: _continued(visitor).next_round(say=say),
            "/propose": lambda visitor, form, say: _continued(visitor).propose(say) and None,
            "/edited": lambda visitor, form, say: _continued(visitor).next_round(form.get("text", ""), say),
        }

    def _search(self, visitor: Visitor, form: Mapping[str, Any], say: Say) -> None:
        if visitor.task is not None and visitor.session.turns:
            raise UserError("this search has begun; edit the query instead")
        _continued(visitor).search(form.get("text", ""), say=say)

    def _search_picture(self, visitor: Visitor, form: Mapping[str, Any], say: Say) -> None:
        session = _outside_study(visitor)
        say("Reading your picture")
        session.search(form["words"], read_upload(form["file"]), say)

    def _open(self, visitor: Visitor, form: Mapping[str, Any], say: Say) -> None:
        _outside_study(visitor)
        visitor.session = open_session(form["file"].decode("utf-8", errors="replace"), self._context)

    def _go_to(self, visitor: Visitor, form: Mapping[str, Any], say: Say) -> None:
        _outside_study(visitor).go_to(integer(form, "number"))

    def _start_over(self, visitor: Visitor, form: Mapping[str, Any], say: Say) -> None:
        _outside_study(visitor).start_over()

    def _set_options(self, visitor: Visitor, form: Mapping[str, Any], say: Say) -> None:
        session = _outside_study(visitor)
        try:
            threshold = float(form["threshold"]) if form.get("threshold") else None
        except ValueError as error:
            raise UserError("the minimum similarity is not a number") from error
        options = Options(
            strategy=form.get("strategy", ""),
            shown=integer(form, "shown"),
            threshold=threshold,
            shows_again=form.get("shows_again") == "on",
        )
        visitor.notice = (sentence(session.set_options(options, say)), False)

    def _found(self, visitor: Visitor, form: Mapping[str, Any], say: Say) -> None:
        image_id = self._context.id_of(integer(form, "picture"))
        session, task = visitor.session, visitor.task
        session.require_shown(image_id)
        if task is not None:
            if image_id != task.target:
                task.wrong += 1
                raise UserError("that is a different picture; keep looking")
            self._end_task(visitor, found=True)
            return
        turns = session.turns[: session.position + 1]
        records = with_target(turns, image_id, self._context.retriever, "found")
        visitor.verdict = {
            "records": records,
            "ranks": [record.target_rank for record in records],
            "measures": measure(records, len(self._context.ids)),
            "study": None,
            "picture": self._context.number_of(image_id),
        }

    def _begin_task(self, visitor: Visitor, form: Mapping[str, Any], say: Say) -> None:
        _outside_study(visitor)
        say("Choosing a picture")
        visitor.task = self._study.begin(visitor.name, visitor.tasks_given)
        visitor.session = Session(self._context, self._options)
        visitor.tasks_given += 1

    def _give_up(self, visitor: Visitor, form: Mapping[str, Any], say: Say) -> None:
        self._end_task(visitor, found=False)

    def _end_task(self, visitor: Visitor, found: bool) -> None:
        task = visitor.task
        if task is None:
            raise UserError("there is no picture to find; begin the study first")
        visitor.verdict = {
            "records": [],
            "ranks": [],
            "measures": self._study.end(task, visitor.session, found),
            "study": "found" if found else "abandoned",
            "picture": self._context.number_of(task.target),
        }
        visitor.task = None
        visitor.session = Session(self._context, self._options)


def _continued(visitor: Visitor) -> Session:
    """Returns the session, and forgets the verdict on its earlier rounds."""
    visitor.verdict = None
    return visitor.session


def _outside_study(visitor: Visitor) -> Session:
    """Returns the session; refuses what would distort the counts of a study."""
    if visitor.task is not None:
        raise UserError("not while you are looking for a picture; find it, or give up")
    return _continued(visitor)


def integer(form: Mapping[str, Any], name: str) -> int:
    """Reads an integer from a form.

    Raises:
        UserError: If the field is missing or holds anything else.
    """
    text = form.get(name, "")
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise UserError(f"{name}: got {text[:20]!r}, expected a number")
    return int(text)


def sentence(clause: object) -> str:
    """Makes a sentence of an error or a clause; an empty one stays empty."""
    text = str(clause)
    return f"{text[:1].upper()}{text[1:]}." if text else ""
