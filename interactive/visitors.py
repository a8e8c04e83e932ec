"""The people at the page, and the threads that work for them: each does its jobs in the order they came."""

from __future__ import annotations

import logging
import os
import secrets
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any

from interactive.session import Say, Session
from interactive.study import Task

log = logging.getLogger(__name__)

MAX_VISITORS = 64
MAX_EARLIER = 8  # searches of a visitor that an address leads back to
MAX_WAITING = 16  # visitors' jobs that wait for a thread
QUIET_SECONDS = 2.0  # closing takes longer only with a word

Work = Callable[[Say], None]


class TooBusy(Exception):
    """All places are taken: of visitors, or in a thread's queue."""


class Closed(Exception):
    """The page ends while work is under way."""


@dataclass(eq=False)
class Job:
    """A piece of work in a thread's queue.

    Attributes:
        worker: Whose.
        is_visitors: False for preparations that nobody asked for.
        stage: What is being done now, in a few words; empty while it waits.
        future: Done when the work is.
    """

    worker: Worker
    is_visitors: bool
    stage: str = ""
    future: Future[None] = field(init=False)

    def say(self, stage: str) -> None:
        """Notes what is being done; ends work that is under way when the page closes."""
        if self.worker.is_closed:
            raise Closed
        self.stage = stage


class Worker:
    """A thread that runs jobs one after another.

    Attributes:
        is_closed: Whether it is to end.
    """

    def __init__(self, name: str) -> None:
        self.is_closed = False
        self._thread = ThreadPoolExecutor(1, name)
        self._jobs: list[Job] = []  # the one that runs, then those that wait

    def submit(self, work: Work, is_visitors: bool = True) -> Job:
        """Puts work at the end of the queue: a function that tells its stages; what it raises is logged.

        Raises:
            TooBusy: If a visitor's work finds too many jobs waiting already.
            Closed: If the thread is to end.
        """
        if self.is_closed:
            raise Closed
        if is_visitors and len(self._jobs) > MAX_WAITING:
            raise TooBusy
        job = Job(self, is_visitors)
        self._jobs.append(job)
        job.future = self._thread.submit(self._run, job, work)
        return job

    def status(self, job: Job) -> tuple[str, int]:
        """Returns what is being done for a job, and how many visitors' jobs come before it."""
        jobs = list(self._jobs)  # the thread may take one away meanwhile
        before = jobs[: jobs.index(job)] if job in jobs else []
        ahead = sum(each.is_visitors for each in before)
        return (before[0] if before and not ahead else job).stage, ahead

    def close(self) -> None:
        """Ends the thread when the stage that runs is done; what waits is dropped.

        Nothing is left running: a thread inside a model's native code aborts the process at its exit.
        """
        self.is_closed = True
        running = [job.future for job in list(self._jobs) if not job.future.cancel()]
        try:
            if wait(running, QUIET_SECONDS).not_done:
                log.info("stopping as soon as the models at work are done; Ctrl-C again stops at once")
            self._thread.shutdown()
        except KeyboardInterrupt:
            os._exit(130)

    def _run(self, job: Job, work: Work) -> None:
        try:
            work(job.say)
        except Closed:
            pass
        except Exception:
            log.exception("work in the background failed")
        finally:
            self._jobs.remove(job)


@dataclass
class State:
    """What work for a visitor changes: a copy of it, which counts once the work has succeeded.

    Attributes:
        session: The rounds.
        participant: What the study calls this visitor; the study's address may name them.
        condition: The only strategy that they are to have in the study, or empty.
        task: The picture to find, in the study.
        verdict: The outcome of a picture declared found, or of a study's search.
        earlier: The searches before this one, by their ids, the latest last: what addresses lead back to.
    """

    session: Session
    participant: str = field(default_factory=lambda: f"P{secrets.randbelow(10**6)}")
    condition: str = ""
    task: Task | None = None
    verdict: dict[str, Any] | None = None
    earlier: dict[str, Session] = field(default_factory=dict)

    def copy(self) -> State:
        """Returns an independent copy, but for the task's own counts."""
        return replace(self, session=self.session.copy(), earlier=dict(self.earlier))

    def keep(self, session: Session) -> None:
        """Remembers a search that another one replaces; the oldest ones are forgotten."""
        self.earlier.pop(session.id, None)
        self.earlier[session.id] = session
        for old in list(self.earlier)[:-MAX_EARLIER]:
            del self.earlier[old]


@dataclass
class Visitor:
    """One browser.

    Attributes:
        token: Its cookie; empty for somebody who has not done anything yet.
        state: Replaced as a whole by the thread that works for the visitor.
        job: What is, or was last, done for this visitor.
        notice: A sentence to show once, and whether it reports a failure.
    """

    token: str
    state: State
    job: Job | None = None
    notice: tuple[str, bool] = ("", False)

    @property
    def is_waiting(self) -> bool:
        """Whether something is being done for this visitor."""
        return self.job is not None and not self.job.future.done()

    @property
    def status(self) -> tuple[str, int]:
        """What is being done for this visitor, and how many others come first."""
        return self.job.worker.status(self.job) if self.job and self.is_waiting else ("", 0)


class Visitors:
    """The latest visitors by cookie.

    Attributes:
        new_session: Makes an empty session.
    """

    def __init__(self, new_session: Callable[[], Session]) -> None:
        self.new_session = new_session
        self._visitors: OrderedDict[str, Visitor] = OrderedDict()  # longest unseen first

    def __len__(self) -> int:
        return len(self._visitors)

    def find(self, token: str | None) -> Visitor | None:
        """Returns the visitor with this cookie, if remembered."""
        visitor = self._visitors.get(token or "")
        if visitor is not None:
            self._visitors.move_to_end(visitor.token)
        return visitor

    def stranger(self) -> Visitor:
        """Returns somebody who is not remembered before they do something."""
        return Visitor("", State(self.new_session()))

    def welcome(self) -> Visitor:
        """Adds a visitor; the one unseen for longest makes room if need be.

        Raises:
            TooBusy: If everybody is waiting for something.
        """
        if len(self._visitors) >= MAX_VISITORS:
            free = next((visitor for visitor in self._visitors.values() if not visitor.is_waiting), None)
            if free is None:
                raise TooBusy
            del self._visitors[free.token]
        visitor = replace(self.stranger(), token=secrets.token_urlsafe(24))
        self._visitors[visitor.token] = visitor
        return visitor
