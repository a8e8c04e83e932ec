"""What a person at the page can do, apart from marking: each is work for one of the page's threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from interactive.errors import UserError
from interactive.people import Person
from interactive.pictures import read_upload
from interactive.saved import open_session
from interactive.search_context import SearchContext
from interactive.session import Options, Say, Session
from interactive.study import Study
from interactive.verdict import measure, with_target

Action = Callable[[Person, Mapping[str, str], Say], None]


class Actions:
    """Changes people's sessions; everything raises `UserError` for what cannot be done."""

    def __init__(self, context: SearchContext, options: Options, study: Study) -> None:
        """Takes what actions need.

        Args:
            context: The shared parts.
            options: Everybody's at first, and in the study.
            study: Gives pictures to find.
        """
        self._desk = context
        self._options = options
        self._study = study

    def quick(self) -> dict[str, Action]:
        """Returns the actions that search at most, by address."""
        return {
            "/search": self._search,
            "/round": self._go_to,
            "/options": self._set_options,
            "/over": self._over,
            "/found": self._found,
            "/study": self._begin_task,
            "/give-up": self._give_up,
        }

    def slow(self) -> dict[str, Action]:
        """Returns the actions that caption and rewrite, by address."""
        return {
            "/more": lambda person, form, say: self._going_on(person).more(say=say),
            "/propose": lambda person, form, say: self._going_on(person).propose(say) and None,
            "/edited": lambda person, form, say: self._going_on(person).more(form.get("text", ""), say),
        }

    def by_picture(self, data: bytes, words: str) -> Action:
        """Returns the search by an uploaded picture.

        Args:
            data: The file.
            words: What the person typed; may be blank.
        """

        def search(person: Person, form: Mapping[str, str], say: Say) -> None:
            self._outside_study(person)
            say("Reading your picture")
            person.session.search_picture(read_upload(data), words, say)

        return search

    def open(self, data: bytes) -> Action:
        """Returns the taking up of a saved session.

        Args:
            data: The file.
        """

        def take_up(person: Person, form: Mapping[str, str], say: Say) -> None:
            self._outside_study(person)
            person.session = open_session(data.decode("utf-8", errors="replace"), self._desk)

        return take_up

    def _search(self, person: Person, form: Mapping[str, str], say: Say) -> None:
        if person.task is not None and person.session.turns:
            raise UserError("this search has begun; edit the query instead")
        person.verdict = None
        person.session.search(form.get("text", ""), say)

    def _go_to(self, person: Person, form: Mapping[str, str], say: Say) -> None:
        self._outside_study(person)
        person.session.go_to(whole(form, "number"))

    def _set_options(self, person: Person, form: Mapping[str, str], say: Say) -> None:
        self._outside_study(person)
        try:
            threshold = float(form["threshold"]) if form.get("threshold") else None
        except ValueError as error:
            raise UserError("the threshold is no number") from error
        options = Options(
            strategy=form.get("strategy", ""),
            shown=whole(form, "shown"),
            threshold=threshold,
            shows_again=form.get("shows_again") == "on",
        )
        person.session.set_options(options, say)

    def _over(self, person: Person, form: Mapping[str, str], say: Say) -> None:
        self._outside_study(person)
        person.session.over()

    def _found(self, person: Person, form: Mapping[str, str], say: Say) -> None:
        image_id = self._desk.id_of(whole(form, "picture"))
        session, task = person.session, person.task
        if image_id not in session.now.shown_ids:
            raise UserError("that picture is not shown in this round")
        if task is not None:
            if image_id != task.target:
                task.wrong += 1
                raise UserError("that is another picture; look again")
            self._end_task(person, found=True)
            return
        records = with_target(session.turns[: session.at + 1], image_id, self._desk.retriever, "found")
        person.verdict = {
            "records": records,
            "ranks": [record.target_rank for record in records],
            "measures": measure(records, len(self._desk.ids)),
            "study": None,
            "picture": self._desk.number_of(image_id),
        }

    def _begin_task(self, person: Person, form: Mapping[str, str], say: Say) -> None:
        self._outside_study(person)
        say("Choosing a picture")
        task = self._study.give(person.name, person.tasks_given)
        person.session = Session(self._desk, self._options)
        person.task = task
        person.tasks_given += 1

    def _give_up(self, person: Person, form: Mapping[str, str], say: Say) -> None:
        if person.task is None:
            raise UserError("there is nothing to give up")
        self._end_task(person, found=False)

    def _end_task(self, person: Person, found: bool) -> None:
        task = person.task
        if task is None:
            raise UserError("there is no picture to find")
        line = self._study.end(task, person.session, found)
        person.verdict = {
            "records": [],
            "ranks": [],
            "measures": line,
            "study": "found" if found else "abandoned",
            "picture": self._desk.number_of(task.target),
        }
        person.task = None
        person.session = Session(self._desk, self._options)

    def _going_on(self, person: Person) -> Session:
        """Forgets the verdict: it is of the rounds before."""
        person.verdict = None
        return person.session

    def _outside_study(self, person: Person) -> None:
        """Forgets the verdict; refuses what would change the counts of a study."""
        if person.task is not None:
            raise UserError("not while you look for a picture; find it, or give up")
        person.verdict = None


def whole(form: Mapping[str, str], field: str) -> int:
    """Reads a whole number out of a form.

    Raises:
        UserError: If the field is missing or holds anything else.
    """
    text = form.get(field, "")
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise UserError(f"{field}: that is no number")
    return int(text)
