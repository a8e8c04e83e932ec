"""One thread for slow work, with a bounded queue in which everybody sees their place."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

log = logging.getLogger(__name__)

Work = Callable[[Callable[[str], None]], Any]


class Busy(Exception):
    """The queue is full; come back later."""


class Job:
    """A piece of work on its way.

    Attributes:
        future: Its result, or what it raised.
        stage: What is being done now, in a few words; empty while it waits.
    """

    def __init__(self, work: Work) -> None:
        self.future: Future[Any] = Future()
        self.stage = ""
        self._work = work

    def run(self) -> None:
        """Does the work; whatever it raises is the future's."""
        try:
            self.future.set_result(self._work(self._say))
        except BaseException as error:  # it belongs to whoever waits for the future
            self.future.set_exception(error)

    def _say(self, stage: str) -> None:
        self.stage = stage


class Worker:
    """Runs jobs one after another, in the order they came."""

    def __init__(self, name: str, max_waiting: int, idle: Callable[[], bool] = lambda: False) -> None:
        """Starts the thread.

        Args:
            name: Of the thread.
            max_waiting: Jobs that may wait; more are refused.
            idle: Called when no job waits: does a little work and says whether there is more.
        """
        self._most_waiting = max_waiting
        self._idle = idle
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> Job:
        """Puts work at the end of the queue.

        Args:
            work: Called with a function that takes the stage in words.

        Raises:
            Busy: If too many wait already.
        """
        job = Job(work)
        with self._changed:
            if len(self._waiting) >= self._most_waiting:
                raise Busy(f"{len(self._waiting)} are waiting already")
            self._waiting.append(job)
            self._changed.notify()
        return job

    def ahead(self, job: Job) -> int:
        """Counts the jobs that come before this one, the running one included; 0 when it is its turn."""
        with self._changed:
            if job not in self._waiting:
                return 0
            return self._waiting.index(job) + (self._running is not None)

    def wake(self) -> None:
        """Says that there is idle work again."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Ends the thread after the job that runs; those that wait are cancelled."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.future.cancel()
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                self._running = self._waiting.popleft() if self._waiting else None
            if self._running is not None:
                self._running.run()
            elif not self._has_idle_work():
                with self._changed:
                    if not self._waiting and not self._closed:
                        self._changed.wait(timeout=1.0)

    def _has_idle_work(self) -> bool:
        try:
            return self._idle()
        except Exception:
            log.exception("idle work failed")
            return False
