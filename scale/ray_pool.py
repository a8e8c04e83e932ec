"""Setup of work to the workers of a Ray cluster; the part of a worker that dies is done again by another.

Workers are plain actors: each opens its model once, and is handed one part after the other. What comes of a
part travels back to the caller, who alone writes files: a worker that is thought dead and is not can spoil
nothing, and the machines need no common disk for what is made.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from settings import PROJECT

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # at a part: one that kills every worker, by a decoder's crash say, must not go on for ever
MAX_STILLBORN = 3  # workers in a row that die before their model is open
WAIT_SECONDS = 60.0
LOGS = "/tmp/ray/session_latest/logs on that machine"
INSTALL = "pip install -r requirements/ray.txt"

Part = TypeVar("Part")
Result = TypeVar("Result")


@dataclass
class _Task(Generic[Part]):
    """A part and how often it was begun."""

    part: Part
    attempts: int = 0


def map_parts(
    parts: Iterable[Part],
    open_work: Callable[[], Callable[[Part], Result]],
    *,
    address: str | None = None,
    workers: int | None = None,
    threads: int = 1,
) -> Generator[Result, None, None]:
    """Yields what came of each part, as soon as it is there, in any order.

    Args:
        parts: Taken from the iterable only when a worker is free. None: no cluster is asked for.
        open_work: Called once in each worker; opens the model, and returns what is done with a part. An
            exception of either ends everything: it would come again.
        address: Of the cluster, as `ray.init` takes it; when None the one that RAY_ADDRESS names, or that
            runs on this machine, or else one of this machine alone, for as long as this takes.
        workers: How many; when None one a GPU, or without GPUs as many as the cores allow.
        threads: Cores that a worker without a GPU keeps busy.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
        ValueError: If there is no such cluster, a worker cannot open its model or fails at a part, or part
            or model kill one worker after the other.
    """
    upcoming = iter(parts)
    first = next(upcoming, None)
    if first is None:
        return
    ray = _import_ray()
    connected_here = not ray.is_initialized()
    if connected_here:
        _connect(ray, address)
    pool = _Pool(ray, open_work, workers, threads)
    try:
        yield from pool.run(first, upcoming)
    finally:
        pool.close()
        if connected_here:
            ray.shutdown()


class _Pool(Generic[Part, Result]):
    """The workers of one call of `map_parts`."""

    def __init__(
        self, ray: Any, open_work: Callable[[], Callable[[Part], Result]], workers: int | None, threads: int
    ) -> None:
        there = ray.cluster_resources()
        gpus, cores = int(there.get("GPU", 0)), int(there.get("CPU", 1))
        self._ray = ray
        self._open_work = open_work
        self._actor = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, scheduling_strategy="SPREAD")(_Worker)
        self._count = workers or gpus or max(1, cores // threads)
        self._running: dict[Any, tuple[Any, _Task[Part] | None]] = {}  # by what is waited for; None: opening
        self._again: deque[_Task[Part]] = deque()
        self._free: list[Any] = []
        self._results: list[Result] = []
        self._ready = 0
        self._stillborn = 0

    def run(self, first: Part, upcoming: Iterable[Part]) -> Generator[Result, None, None]:
        self._again.append(_Task(first))
        source = map(_Task, upcoming)
        for _ in range(self._count):
            self._start()
        while True:
            self._hand_out(source)
            yield from self._results  # whoever takes them keeps no worker waiting
            self._results.clear()
            if self._free and not self._again and not any(task for _, task in self._running.values()):
                return
            done, _ = self._ray.wait(list(self._running), timeout=WAIT_SECONDS)
            if not done and not self._ready:
                log.info("no worker is running yet: the cluster has no free GPU or core, or opens the model")
            for reference in done:
                self._take(reference)

    def close(self) -> None:
        for worker in [*self._free, *(worker for worker, _ in self._running.values())]:
            self._ray.kill(worker)

    def _start(self) -> None:
        worker = self._actor.remote(self._open_work)
        self._running[worker.open.remote()] = worker, None

    def _hand_out(self, source: Iterator[_Task[Part]]) -> None:
        while self._free:
            task = self._again.popleft() if self._again else next(source, None)
            if task is None:
                return
            task.attempts += 1
            worker = self._free.pop()
            self._running[worker.work.remote(task.part)] = worker, task

    def _take(self, reference: Any) -> None:
        """Takes what came of a part; a worker that has died is replaced, and its part put back."""
        worker, task = self._running.pop(reference)
        try:
            result = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, (ValueError, OSError, ModuleNotFoundError)):
                raise ValueError(f"a worker: {cause}") from error
            raise
        except self._ray.exceptions.RayError as error:
            self._lost(worker, task, error)
            return
        self._free.append(worker)
        if task is None:
            self._ready += 1
            self._stillborn = 0
            log.info("worker %d of %d is ready: %s", self._ready, self._count, result)
        else:
            self._results.append(result)

    def _lost(self, worker: Any, task: _Task[Part] | None, error: Exception) -> None:
        self._ray.kill(worker)
        reason = " ".join(str(error).split())
        if task is None:
            self._stillborn += 1
            if self._stillborn >= MAX_STILLBORN:
                raise ValueError(
                    f"{self._stillborn} workers in a row died before their model was open; the last:"
                    f" {reason}; see {LOGS}"
                ) from error
        else:
            self._ready -= 1
            if task.attempts >= MAX_ATTEMPTS:
                raise ValueError(
                    f"a part of the work has killed {task.attempts} workers; the last: {reason}; see {LOGS}."
                    " What was done is kept: the same command goes on. Where memory ran out, fewer"
                    " workers (--ray-workers) or smaller batches may do"
                ) from error
            self._again.append(task)
        log.warning("a worker died; another takes its place: %s", reason)
        self._start()


class _Worker:
    """What runs in a worker's process."""

    def __init__(self, open_work: Callable[[], Callable[[Any], Any]]) -> None:
        self._open_work = open_work
        self._work: Callable[[Any], Any] | None = None

    def open(self) -> str:
        """Opens the model; says where, for the log."""
        self._work = self._open_work()
        return f"process {os.getpid()} on {os.uname().nodename}"

    def work(self, part: Any) -> Any:
        """Does a part."""
        if self._work is None:
            raise RuntimeError("the worker was handed a part before its model was open")
        return self._work(part)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"engine ray needs Ray; run: {INSTALL}") from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    stopping = signal.getsignal(signal.SIGTERM)
    path = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        ray.init(
            address=address,
            include_dashboard=None if address or "RAY_ADDRESS" in os.environ else False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": {"PYTHONPATH": path}},
        )
    except (ConnectionError, RuntimeError) as error:
        named = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise ValueError(
            f"Ray on {named}: {' '.join(str(error).split())}; start it with: ray start --head, or leave"
            " --ray-address out for a cluster of this machine alone"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stopping)  # Ray puts in its own, which ends without a word
    there = ray.cluster_resources()
    log.info("Ray: %d GPUs, %d cores", there.get("GPU", 0), there.get("CPU", 0))
