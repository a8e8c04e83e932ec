"""How long whole commands take that should answer at once: --help, and one warm search of the demo.

    OMP_NUM_THREADS=1 python -m benchmarks.start_up

Every command runs once uncounted, so that files are in memory and the demo is embedded, and then in turns,
each in a process of its own from start to exit, imports included. Result: a table and ``start_up.json``.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.tables import as_markdown
from files import write_json
from settings import PROJECT, run_script

COMMANDS = {
    "help": ("search_images.py", "--help"),
    "first result": ("search_images.py", "--dataset", "demo", "--text", "a dog on a beach"),
}
GOALS = {"help": 1.0, "first result": 3.0}  # seconds


@dataclass(frozen=True)
class StartUpSettings:
    """Times whole processes.

    Attributes:
        runs: Of each command.
        output: Folder of the results.
    """

    runs: int = 10
    output: Path = Path("runs/benchmark-start-up")


def main() -> None:
    """Runs from the command line."""
    import tyro

    settings = tyro.cli(StartUpSettings)
    if settings.runs < 1:
        raise ValueError(f"runs: got {settings.runs}, expected at least 1")
    rows = measure(settings.runs)
    settings.output.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m benchmarks.start_up", *sys.argv[1:]])
    write_json(settings.output / "start_up.json", {"command": command, "rows": rows})
    print(as_markdown([tuple(rows[0]), *(tuple(map(_cell, row.values())) for row in rows)]))


def measure(runs: int) -> list[dict[str, Any]]:
    """Runs each command once, then all in turns.

    Args:
        runs: Counted runs of each.

    Returns:
        A row a command: seconds by the clock and of the processor, and modules imported.

    Raises:
        ValueError: If a command fails.
    """
    modules = {name: _modules(command) for name, command in COMMANDS.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, command in COMMANDS.items():
            times[name].append(_run(command))
    rows = []
    for name, seconds in times.items():
        wall, cpu = zip(*seconds, strict=True)
        rows.append(
            {
                "command": "python " + " ".join(COMMANDS[name]),
                "s, least": min(wall),
                "s, median": statistics.median(wall),
                "s, most": max(wall),
                "CPU s, median": statistics.median(cpu),
                "goal, s": GOALS[name],
                "modules": modules[name],
            }
        )
    return rows


def _run(command: tuple[str, ...]) -> tuple[float, float]:
    """Returns the seconds by the clock, and those of the processor, user's and system's."""
    before = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - before
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(f"{' '.join(command)}: exit status {process.returncode}, expected 0; run it alone")
    return seconds, used.ru_utime + used.ru_stime


def _modules(command: tuple[str, ...]) -> int:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], cwd=PROJECT, capture_output=True, text=True
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:]
        raise ValueError(f"{' '.join(command)}: exit status {done.returncode}, expected 0: {' '.join(said)}")
    return len({line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line})


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
