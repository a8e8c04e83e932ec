"""How long whole commands take from start to exit: --help, one search of the demo, and the demo's experiment.

    OMP_NUM_THREADS=1 python -m benchmarks.start_up

Every command runs once uncounted, so that the demo is drawn and embedded. Cold means that the project's and
its packages' files were dropped from memory first, as after the machine's start (Linux only; files that
another process holds stay). Warm runs take turns, each in a process of its own.
"""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.timing import Watch, parser, report
from settings import PROJECT, run_script

COMMANDS = {
    "help": "multi_modal_query_expansion.py --help",
    "search": 'interactive_search.py --dataset demo --text "a dog on a beach"',
    "demo": "multi_modal_query_expansion.py --dataset demo --split test --strategy rewrite-anchored"
    " --caption-numbers 4 --queries 200",
}
GOALS = {"help": 1.0, "search": 3.0}  # seconds, warm


def main() -> None:
    """Runs from the command line."""
    read = parser(__doc__)
    read.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=COMMANDS, help="which to time")
    read.add_argument("--runs", type=int, default=5, help="warm runs of each command")
    arguments = read.parse_args()
    report("start_up", arguments, measure(arguments.commands, arguments.runs))


def measure(names: list[str], runs: int) -> list[dict[str, Any]]:
    """Returns a row a command: seconds by the wall clock and of CPU time."""
    cold = {}
    for name in names:
        _run(name)  # uncounted: what is made once is made
        drop_files()
        cold[name] = _run(name)[0]
    warm: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(runs):
        for name in names:
            warm[name].append(_run(name))
    return [
        {
            "command": f"python {COMMANDS[name]}",
            "cold, s": cold[name],
            "warm, s, min": min(wall for wall, _ in taken),
            "median": statistics.median(wall for wall, _ in taken),
            "max": max(wall for wall, _ in taken),
            "CPU s": statistics.median(cpu for _, cpu in taken),
            "goal, s": GOALS.get(name),
        }
        for name, taken in warm.items()
    ]


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


def _run(name: str) -> tuple[float, float]:
    """Runs a command and returns its wall-clock and CPU seconds, user's and system's."""
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch()
        command = [sys.executable, *shlex.split(COMMANDS[name])]
        command += ["--output", f"{folder}/run"] if name == "demo" else []
        silent = subprocess.DEVNULL
        process = subprocess.Popen(command, cwd=PROJECT, stdout=silent, stderr=silent)
        _, status, used = os.wait4(process.pid, 0)
        seconds = watch.wall()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(
            f"{name}: got exit status {process.returncode}, expected 0; run {COMMANDS[name]} alone"
        )
    return seconds, used.ru_utime + used.ru_stime


if __name__ == "__main__":
    raise SystemExit(run_script(main))
