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
MAX_EARLIER = 50  # rounds of a visitor's earlier searches that an address leads back to
MAX_WAITING = MAX_VISITORS  # visitors' jobs that wait for a thread: a place for each
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
    """Threads, one as a rule, that begin jobs in the order in which they come.

    Attributes:
        is_closed: Whether it is to end.
    """

    def __init__(self, name: str, threads: int = 1) -> None:
        self.is_closed = False
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, name)
        self._jobs: list[Job] = []  # those that run, then those that wait

    @property
    def has_visitors(self) -> bool:
        """Whether a visitor's job runs or waits."""
        return any(job.is_visitors for job in list(self._jobs))

    def submit(self, work: Work, is_visitors: bool = True) -> Job:
        """Puts work at the end of the queue: a function that tells its stages; what it raises is logged.

        Raises:
            TooBusy: If a visitor's work finds too many jobs waiting already.
            Closed: If the thread is to end.
        """
        if self.is_closed:
            raise Closed
        if is_visitors and len(self._jobs) >= MAX_WAITING + self._threads:
            raise TooBusy
        job = Job(self, is_visitors)
        self._jobs.append(job)
        job.future = self._pool.submit(self._run, job, work)
        return job

    def status(self, job: Job) -> tuple[str, int]:
        """Returns what is being done for a job, and how many visitors' jobs must end before it begins."""
        jobs = list(self._jobs)  # a thread may take one away meanwhile
        before = jobs[: jobs.index(job)] if job in jobs and not job.future.running() else []
        ahead = max(0, sum(each.is_visitors for each in before) - self._threads + 1)
        return (before[0] if before and not ahead else job).stage, ahead

    def close(self) -> None:
        """Ends the threads when the stages that run are done; what waits is dropped.

        Nothing is left running: a thread inside a model's native code aborts the process at its exit.
        """
        self.is_closed = True
        running = [job.future for job in list(self._jobs) if not job.future.cancel()]
        try:
            if wait(running, QUIET_SECONDS).not_done:
                log.info("stopping as soon as the models at work are done; Ctrl-C again stops at once")
            self._pool.shutdown()
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
        while sum(len(each.turns) for each in self.earlier.values()) > MAX_EARLIER:
            del self.earlier[next(iter(self.earlier))]


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

    Who comes without a cookie is a newcomer until they come again with it: however many newcomers there are,
    they make no room among those who did.

    Attributes:
        new_session: Makes an empty session.
    """

    def __init__(self, new_session: Callable[[], Session]) -> None:
        self.new_session = new_session
        self._known: OrderedDict[str, Visitor] = OrderedDict()  # longest unseen first
        self._newcomers: OrderedDict[str, Visitor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known) + len(self._newcomers)

    def find(self, token: str | None) -> Visitor | None:
        """Returns the visitor with this cookie, if remembered."""
        newcomer = self._newcomers.get(token or "")
        if newcomer is not None and _has_room(self._known):
            self._known[newcomer.token] = self._newcomers.pop(newcomer.token)
        visitor = self._known.get(token or "")
        if visitor is not None:
            self._known.move_to_end(visitor.token)
        return visitor or newcomer

    def stranger(self) -> Visitor:
        """Returns somebody who is not remembered before they do something."""
        return Visitor("", State(self.new_session()))

    def welcome(self) -> Visitor:
        """Adds a newcomer; the one unseen for longest makes room if need be.

        Raises:
            TooBusy: If all newcomers are waiting for something.
        """
        if not _has_room(self._newcomers):
            raise TooBusy
        visitor = replace(self.stranger(), token=secrets.token_urlsafe(24))
        self._newcomers[visitor.token] = visitor
        return visitor


def _has_room(visitors: OrderedDict[str, Visitor]) -> bool:
    """Returns whether another fits; who was unseen for longest, and waits for nothing, goes for it."""
    if len(visitors) < MAX_VISITORS:
        return True
    free = next((visitor for visitor in visitors.values() if not visitor.is_waiting), None)
    if free is not None:
        del visitors[free.token]
    return free is not None
