"""How long whole commands take: --help, one search, the page until its first search, and `make demo` again.

    OMP_NUM_THREADS=1 python -m benchmarks.start_up

Every command runs once uncounted, so that the demo is drawn, embedded, captioned and compared. Cold means
that the project's and its packages' files were dropped from memory first, as after the machine's start (Linux
only; files that another process holds stay). Warm runs take turns, each in a process of its own.
"""

from __future__ import annotations

import http.client
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
from contextlib import closing, suppress
from typing import Any
from urllib.parse import urlencode

from benchmarks.timing import Watch, drop_files, parser, report
from settings import PROJECT, run_script

COMMANDS = {
    "help": "multi_modal_query_expansion.py --help",
    "search": 'interactive_search.py --dataset demo --text "a dog on a beach"',
    "page": "interactive_search.py --dataset demo",
    "embed-again": "embed_image_as_faiss.py --dataset demo --captions",
    "compare-again": "compare.py --dataset demo --caption-numbers 4 --queries 300 --users independent"
    " --strategies rewrite bayes-captions",
}
GOALS = {"help": 0.2, "search": 1.5, "page": 3.0}  # seconds, warm
PAGE_SECONDS = 60  # after which a page is given up


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


def _run(name: str) -> tuple[float, float]:
    """Runs a command and returns its wall-clock and CPU seconds, user's and system's."""
    if name == "page":
        return _run_page()
    watch, process = Watch(), _start(COMMANDS[name])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(
            f"{name}: got exit status {process.returncode}, expected 0; run {COMMANDS[name]} alone"
        )
    return watch.wall(), used.ru_utime + used.ru_stime


def _run_page() -> tuple[float, float]:
    """Opens the page, and stops it when it has answered a search; its seconds are those until then."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    watch, process = Watch(), _start(f"{COMMANDS['page']} --port {port}")
    while not _searched(port):
        if process.poll() is not None or watch.wall() > PAGE_SECONDS:
            process.kill()
            raise ValueError(f"page: got no pictures in {watch.wall():.0f} s; run {COMMANDS['page']} alone")
        time.sleep(0.02)
    seconds = watch.wall()
    process.send_signal(signal.SIGTERM)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return seconds, used.ru_utime + used.ru_stime


def _start(command: str) -> subprocess.Popen[bytes]:
    silent = subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, *shlex.split(command)], cwd=PROJECT, stdout=silent, stderr=silent
    )


def _searched(port: int) -> bool:
    """Says whether the page answered a search with pictures."""
    with suppress(OSError), closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as page:
        headers = {"Origin": f"http://127.0.0.1:{port}", "Content-Type": "application/x-www-form-urlencoded"}
        page.request("POST", "/search", urlencode({"text": "a dog on a beach"}), headers)
        return b'data-number="' in page.getresponse().read()
    return False


if __name__ == "__main__":
    raise SystemExit(run_script(main))
