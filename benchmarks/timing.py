"""What the benchmarks share: clocks, fresh processes, and how results are written down."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Generic, TypeVar

from evaluation.tables import as_markdown
from files import write_json
from settings import PROJECT

RESULTS = Path("runs/benchmarks")
Result = TypeVar("Result")
Name = TypeVar("Name")


class Watch:
    """Wall-clock and CPU seconds of this process since the watch was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def wall(self) -> float:
        """Returns the wall-clock seconds."""
        return time.perf_counter() - self._wall

    def cpu(self) -> float:
        """Returns the CPU seconds, those of all threads."""
        return time.process_time() - self._cpu


@dataclass(frozen=True)
class Timed(Generic[Result]):
    """Medians over several runs of one way, and what its last run returned."""

    wall: float
    cpu: float
    result: Result


def in_turns(ways: Mapping[Name, Callable[[], Result]], repeats: int) -> dict[Name, Timed[Result]]:
    """Times several ways of doing the same, taking turns so that other work slows all of them alike."""
    runs: dict[Name, list[Timed[Result]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            watch = Watch()
            result = work()
            runs[name].append(Timed(watch.wall(), watch.cpu(), result))
    median = statistics.median
    return {
        name: Timed(median(run.wall for run in each), median(run.cpu for run in each), each[-1].result)
        for name, each in runs.items()
    }


def in_a_process(threads: int, work: Callable[..., Result], *arguments: Any) -> Result:
    """Runs a module's function in a fresh process: libraries read their number of threads when loaded."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = dict(os.environ)
    os.environ |= dict.fromkeys(names, str(threads))
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(work, *arguments).result()
    finally:
        os.environ.clear()
        os.environ |= before


@contextlib.contextmanager
def busy_core(wanted: bool) -> Iterator[None]:
    """Keeps one core busy meanwhile, if wanted, with a process of the same priority that only counts."""
    if not wanted:
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=_count, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _count() -> None:
    for _ in itertools.count():
        pass


def drop_files() -> None:
    """Drops the project's, Python's and its packages' files from memory, where the system can."""
    if not hasattr(os, "posix_fadvise"):
        return
    for folder in {PROJECT, Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))}:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


def anonymous_mb() -> float:
    """Returns this process's memory without mapped files; where the system cannot tell, its peak so far."""
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def hardware() -> str:
    """Names the processor, or the GPU where torch is loaded and sees one, and the Python."""
    name = platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    parts = [f"{name}, {os.cpu_count()} cores"]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        parts.insert(0, torch.cuda.get_device_name())
    return ", ".join([*parts, f"Python {platform.python_version()}"])


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with what all benchmarks take, described by the module's docstring."""

    class Format(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
        pass

    made = argparse.ArgumentParser(description=description, formatter_class=Format)
    made.add_argument("--output", type=Path, default=RESULTS, help="folder of the results' JSON file")
    return made


def report(name: str, arguments: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the rows to NAME.json in the output folder, and prints them as a Markdown table.

    There is one row at least; all have the same keys, those of words first.
    """
    conditions = {
        "command": " ".join([f"python -m benchmarks.{name}", *sys.argv[1:]]),
        "hardware": hardware(),
        "date": date.today().isoformat(),
        "load": round(os.getloadavg()[0], 1),
    }
    settings = {
        key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output / f"{name}.json", {**conditions, "settings": settings, "rows": list(rows)})
    head = list(rows[0])
    print("{command}\n{hardware}; {date}; load {load}\n".format(**conditions))
    words = sum(isinstance(value, str) for value in rows[0].values())
    print(as_markdown([head, *([_cell(row.get(key)) for key in head] for row in rows)], left=words))


def _cell(value: Any) -> str:
    """Three significant digits for what was measured; a dash for what was not."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
