"""Has a function answer requests in processes with limits of time and memory: decoders may hang or grow.

A process is started when it is first needed and serves one request after another; one that breaks a limit is
killed, and the next request starts another. They are no `multiprocessing` pool's: that would import the main
script again, and cannot kill one of its own.
"""

from __future__ import annotations

import importlib
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from settings import PROJECT

MAX_CPU_SECONDS = 10  # of computing, a request
MAX_SECONDS = 60.0  # by the clock: a pipe or a network drive may stand still
MAX_BYTES = 2**30  # beside what a process takes before its first request

_HEAD = struct.Struct("<cQ")
_REPLY, _LARGE = b"r", b"l"


class LimitBroken(Exception):
    """The process that worked on the request has ended; the message says why, without a subject."""


class LimitedProcesses:
    """Processes that answer with one function; threads may share the object.

    Args:
        function: As ``module:name``. It is called with the request and a function to be called before work
            that takes much memory: one process after the other does such work. It returns the reply.
        cpu_seconds: Of computing that a request may take, on other systems than Windows.
        seconds: By the clock, likewise, on all.
    """

    def __init__(
        self, function: str, cpu_seconds: int = MAX_CPU_SECONDS, seconds: float = MAX_SECONDS
    ) -> None:
        self._function = function
        self._cpu_seconds, self._seconds = cpu_seconds, seconds
        self._idle: list[subprocess.Popen[bytes]] = []
        self._busy: set[subprocess.Popen[bytes]] = set()
        self._changing = threading.Lock()  # held while a process becomes busy, idle or stopped
        self._large = threading.Lock()
        if hasattr(os, "register_at_fork"):  # a fork must not read the answers to its parent
            os.register_at_fork(after_in_child=self._forget)

    def ask(self, request: bytes) -> bytes:
        """Returns the reply to a request; LimitBroken if there is none. As many are served as threads ask."""
        process = self._take()
        try:
            reply = self._reply(process, request)
        except BaseException:
            with self._changing:
                self._busy.discard(process)
            process.kill()
            process.communicate()
            raise
        with self._changing:
            stopped = process not in self._busy
            if not stopped:
                self._busy.remove(process)
                self._idle.append(process)
        if stopped:  # after it had answered; it must not be asked again
            process.communicate()
        return reply

    def stop(self) -> None:
        """Kills the processes at work, whose requests end with LimitBroken."""
        with self._changing:
            for process in self._busy:
                process.kill()
            self._busy.clear()

    def _take(self) -> subprocess.Popen[bytes]:
        with self._changing:
            idle = [process for process in self._idle if process.poll() is None]
            process = idle.pop() if idle else self._start()
            self._idle = idle
            self._busy.add(process)
        return process

    def _start(self) -> subprocess.Popen[bytes]:
        module, name = self._function.split(":")
        program = (
            f"import sys; sys.path.insert(0, {str(PROJECT)!r}); "
            f"from index.limited import serve; serve({module!r}, {name!r}, {self._cpu_seconds})"
        )
        return subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip

    def _reply(self, process: subprocess.Popen[bytes], request: bytes) -> bytes:
        assert process.stdin is not None and process.stdout is not None
        try:
            kind, reply = self._exchange(process, _HEAD.pack(_REPLY, len(request)) + request)
            if kind == _LARGE:
                with self._large:
                    _, reply = self._exchange(process, _LARGE)
        except (OSError, struct.error) as error:  # its end of a pipe is closed
            raise LimitBroken(self._why(process.wait())) from error
        return reply

    def _exchange(self, process: subprocess.Popen[bytes], message: bytes) -> tuple[bytes, bytes]:
        assert process.stdin is not None and process.stdout is not None
        clock = threading.Timer(self._seconds, process.kill)
        clock.daemon = True
        clock.start()
        try:
            process.stdin.write(message)
            process.stdin.flush()
            kind, size = _HEAD.unpack(process.stdout.read(_HEAD.size))
            reply = process.stdout.read(size)
        finally:
            clock.cancel()
        if len(reply) < size:
            raise BrokenPipeError
        return kind, reply

    def _why(self, status: int) -> str:
        if status in (-getattr(signal, "SIGXCPU", 0), -getattr(signal, "SIGKILL", 0)):
            return f"takes more than {self._cpu_seconds} s of computing, or {self._seconds:g} s by the clock"
        return f"ends its process with status {status}"

    def _forget(self) -> None:
        self._idle, self._busy = [], set()
        self._changing, self._large = threading.Lock(), threading.Lock()


def serve(module: str, name: str, cpu_seconds: int) -> None:
    """Answers the requests on standard input until it ends: the main function of a process."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    answer: Callable[[bytes, Callable[[], None]], bytes] = getattr(importlib.import_module(module), name)

    def begin_large() -> None:
        replies.write(_HEAD.pack(_LARGE, 0))
        replies.flush()
        requests.read(1)

    limit_cpu = _limits(cpu_seconds)
    while head := requests.read(_HEAD.size):
        request = requests.read(_HEAD.unpack(head)[1])
        limit_cpu()
        reply = answer(request, begin_large)
        replies.write(_HEAD.pack(_REPLY, len(reply)))
        replies.write(reply)
        replies.flush()


def limit_memory(most: int) -> Callable[[], None]:
    """Lets this process take so many bytes more, on Linux; returns what takes the limit back."""
    if sys.platform != "linux":
        return lambda: None
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + most, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_AS, before)


def _limits(cpu_seconds: int) -> Callable[[], None]:
    """Limits this process's memory; returns what limits the computing from now on. Not known to Windows."""
    try:
        import resource
    except ModuleNotFoundError:
        return lambda: None
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit_memory(MAX_BYTES)

    def limit_cpu() -> None:
        spent = resource.getrusage(resource.RUSAGE_SELF)
        most = int(spent.ru_utime + spent.ru_stime) + 1 + cpu_seconds
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))

    return limit_cpu
