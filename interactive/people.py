"""Who is at the page: one session a browser, a bounded number of them, forgotten when long unused."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from interactive.session import Session
from interactive.study import Task
from interactive.worker import Job

MAX_PEOPLE = 64
IDLE_SECONDS = 2 * 60 * 60.0


@dataclass
class Person:
    """One browser's state.

    Attributes:
        token: Its cookie.
        session: Its rounds.
        name: What the study calls this person; tells nothing about them.
        task: The picture to find, in the study.
        tasks_given: How many pictures this person was given.
        job: What is being done for this person.
        before: The session as it was when the job began.
        polls: How often the browser has asked for progress.
        notice: A sentence to show once, and whether it tells of a failure.
        verdict: Measures of a picture declared found.
        seen: When the person last asked for anything.
    """

    token: str
    session: Session
    name: str = field(default_factory=lambda: secrets.token_hex(3))
    task: Task | None = None
    tasks_given: int = 0
    job: Job | None = None
    before: Session | None = None
    polls: int = 0
    notice: tuple[str, bool] = ("", False)
    verdict: dict | None = None
    seen: float = 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether something is being done for this person."""
        return self.job is not None and not self.job.future.done()

    @property
    def steady(self) -> Session:
        """The session, or what it was before the work that is changing it in another thread."""
        return self.before if self.is_waiting and self.before is not None else self.session


class TooManySessions(Exception):
    """All places are taken by people who are still active."""


class People:
    """All persons by their cookie."""

    def __init__(
        self,
        new_session: Callable[[], Session],
        most: int = MAX_PEOPLE,
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nobody is there yet.

        Args:
            new_session: Makes an empty session.
            most: People remembered at a time.
            idle_seconds: After so long without a request a person is forgotten.
            clock: Seconds that only grow.
        """
        self._new_session = new_session
        self._most = most
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._people: OrderedDict[str, Person] = OrderedDict()  # longest unseen first

    def __len__(self) -> int:
        return len(self._people)

    def find(self, token: str | None) -> Person | None:
        """Returns the person of a cookie, if remembered."""
        self._forget()
        person = self._people.get(token or "")
        if person is not None:
            person.seen = self._clock()
            self._people.move_to_end(person.token)
        return person

    def welcome(self) -> Person:
        """Makes room for a new person.

        Raises:
            TooManySessions: If everybody is in the middle of something.
        """
        self._forget()
        if len(self._people) >= self._most:
            free = next((person for person in self._people.values() if not person.is_waiting), None)
            if free is None:
                raise TooManySessions(f"{self._most} people are searching")
            del self._people[free.token]
        person = Person(secrets.token_urlsafe(24), self._new_session(), seen=self._clock())
        self._people[person.token] = person
        return person

    def _forget(self) -> None:
        oldest = self._clock() - self._idle_seconds
        while self._people:
            person = next(iter(self._people.values()))
            if person.seen >= oldest or person.is_waiting:
                return
            del self._people[person.token]
