"""The people at the page, and the two threads that work for them.

A visitor is one browser; at most `MAX_VISITORS` are remembered. A thread does its jobs in the order they
came, from a bounded queue, so that everybody can be told how many are ahead.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from interactive.session import Say, Session
from interactive.study import Task

log = logging.getLogger(__name__)

MAX_VISITORS = 64
MAX_WAITING = 16  # jobs in each queue
QUIET_SECONDS = 2.0  # closing takes longer only with a word

Work = Callable[[Say], None]


class Closed(Exception):
    """The page ends while work is under way."""


class Job:
    """A piece of work in a queue.

    Attributes:
        future: Done when the work is; holds what it raised.
        stage: What is being done now, in a few words; empty while it waits.
        worker: The thread that does it.
        is_visitors: False for preparations that nobody asked for.
    """

    def __init__(self, work: Work, worker: Worker, is_visitors: bool) -> None:
        self.future: Future[None] = Future()
        self.stage = ""
        self.worker = worker
        self.is_visitors = is_visitors
        self._work = work

    def run(self) -> None:
        """Does the work; whatever it raises goes to the future."""
        try:
            self._work(self._say)
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(None)

    def _say(self, stage: str) -> None:
        if self.worker.is_closed:
            raise Closed
        self.stage = stage


class Worker:
    """A thread that runs jobs one after another.

    Attributes:
        is_closed: Whether it is to end.
    """

    def __init__(self, name: str, idle: Callable[[], bool] = lambda: False) -> None:
        """Starts the thread.

        Args:
            name: Of the thread.
            idle: Called when no job waits: does a little work and says whether there is more.
        """
        self._idle = idle
        self._waiting: queue.Queue[Job | None] = queue.Queue(MAX_WAITING)  # None only wakes the thread
        self._running: Job | None = None
        self.is_closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Work, is_visitors: bool = True) -> Job:
        """Puts work at the end of the queue.

        Args:
            work: Called with a function that takes the current stage in words.
            is_visitors: Whether a visitor waits for it.

        Raises:
            queue.Full: If too many jobs wait already.
        """
        job = Job(work, self, is_visitors)
        self._waiting.put_nowait(job)
        return job

    def status(self, job: Job) -> tuple[str, int]:
        """Returns what is being done for a job, and how many visitors' jobs come before it."""
        with self._waiting.mutex:
            jobs = [self._running, *self._waiting.queue]
        before = [each for each in jobs[: jobs.index(job)] if each] if job in jobs else []
        ahead = sum(each.is_visitors for each in before)
        return (before[0] if before and not ahead else job).stage, ahead

    def wake(self) -> None:
        """Tells the thread that there is idle work again."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)

    def close(self) -> None:
        """Ends the thread when the stage that runs is done; what waits is dropped.

        Nothing is left running: a thread inside a model's native code aborts the process at its exit.
        """
        self.is_closed = True
        self.wake()
        self._thread.join(QUIET_SECONDS)
        if self._thread.is_alive():
            log.info("stopping as soon as the models at work are done; Ctrl-C again stops at once")
            try:
                self._thread.join()
            except KeyboardInterrupt:
                os._exit(130)

    def _run(self) -> None:
        while True:
            if self._waiting.empty() and not self.is_closed and self._has_idle_work():
                continue
            job = self._waiting.get()
            if self.is_closed:
                return
            if job is not None:
                self._running = job
                job.run()
                self._running = None

    def _has_idle_work(self) -> bool:
        try:
            return self._idle()
        except Exception:
            log.exception("captioning in the background failed")
            return False


@dataclass
class Visitor:
    """One browser's state.

    Attributes:
        token: Its cookie; empty for somebody who has not done anything yet.
        session: Its rounds.
        name: What the study calls this visitor; reveals nothing about them.
        task: The picture to find, in the study.
        tasks_given: How many pictures this visitor was given.
        job: What is being done for this visitor.
        before: The session as it was when the job began.
        polls: How often the browser has asked for progress.
        notice: A sentence to show once, and whether it reports a failure.
        verdict: The outcome of a picture declared found, or of a study's search.
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
    verdict: dict[str, Any] | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether something is being done for this visitor."""
        return self.job is not None and not self.job.future.done()

    @property
    def status(self) -> tuple[str, int]:
        """What is being done for this visitor, and how many others come first."""
        return self.job.worker.status(self.job) if self.job and self.is_waiting else ("", 0)

    @property
    def steady_session(self) -> Session:
        """The session, or what it was before the job that is changing it in another thread."""
        return self.before if self.is_waiting and self.before is not None else self.session


class TooManySessions(Exception):
    """All places are taken by visitors who are waiting for something."""


class Visitors:
    """All visitors by cookie."""

    def __init__(self, new_session: Callable[[], Session], max_visitors: int = MAX_VISITORS) -> None:
        """Starts empty.

        Args:
            new_session: Makes an empty session.
            max_visitors: How many are remembered at a time.
        """
        self.new_session = new_session
        self._max_visitors = max_visitors
        self._visitors: OrderedDict[str, Visitor] = OrderedDict()  # longest unseen first

    def __len__(self) -> int:
        return len(self._visitors)

    def find(self, token: str | None) -> Visitor | None:
        """Returns the visitor with this cookie, if remembered."""
        visitor = self._visitors.get(token or "")
        if visitor is not None:
            self._visitors.move_to_end(visitor.token)
        return visitor

    def welcome(self) -> Visitor:
        """Adds a visitor; the one unseen for longest makes room if need be.

        Raises:
            TooManySessions: If everybody is waiting for something.
        """
        if len(self._visitors) >= self._max_visitors:
            free = next((visitor for visitor in self._visitors.values() if not visitor.is_waiting), None)
            if free is None:
                raise TooManySessions(f"{self._max_visitors} visitors are waiting")
            del self._visitors[free.token]
        visitor = Visitor(secrets.token_urlsafe(24), self.new_session())
        self._visitors[visitor.token] = visitor
        return visitor
