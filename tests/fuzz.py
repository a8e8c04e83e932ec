"""All properties with as many inputs as time allows: ``make fuzz``, or ``python tests/fuzz.py readers``.

A group is played over and over, each time with fresh inputs, until its minutes are used; it may run over by
one property's turn. Every input that was tried is counted, and the counts are printed at the end.

Exit status: 0 when all properties held, 1 when one failed or none was tried.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
GROUPS = {
    "readers": ("test_playground_*.py",),
    "files": ("test_properties_files.py",),
    "texts": ("test_properties_text.py", "test_generation_*.py", "test_query_editing.py"),
    "measures": ("test_evaluation_*.py",),
    "strategies": ("test_feedback_*.py",),
    "indexes": ("test_properties_indexes.py", "test_index_*.py", "test_retriever.py"),
}
COUNTS = re.compile(r"(\d+) passing, (\d+) failing, and (\d+) invalid")


class Fuzzing:
    """Runs the properties among the collected tests again and again, and counts what Hypothesis tried."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.tried: Counter[str] = Counter()
        self.discarded: Counter[str] = Counter()
        self.passes = 0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [
            item for item in items if getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        ]
        self.tried.update({item.nodeid: 0 for item in items})  # what time does not reach stays at 0

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        end = time.monotonic() + self.seconds
        while session.items and not session.testsfailed:
            for number, item in enumerate(session.items):
                following = session.items[(number + 1) % len(session.items)]
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                self.count(item)
                if session.testsfailed or time.monotonic() > end:
                    # The last one lets the shared fixtures go.
                    session._setupstate.teardown_exact(None)
                    return True
            self.passes += 1
        return True

    def count(self, item: pytest.Item) -> None:
        written = getattr(item, "hypothesis_statistics", "")
        counts = [tuple(map(int, found)) for found in COUNTS.findall(written)]
        if not counts:
            raise RuntimeError(f"{item.nodeid}: Hypothesis gave no counts; got {written!r}")
        self.tried[item.nodeid] += sum(passed + failed for passed, failed, _ in counts)
        self.discarded[item.nodeid] += sum(invalid for *_, invalid in counts)


def fuzz(paths: list[str], minutes: float) -> int:
    """Plays the properties in these files; prints what was tried; returns the exit status."""
    from hypothesis import settings

    examples = int(os.environ.setdefault("FUZZ_EXAMPLES", "50"))  # a turn of those that read it
    settings.register_profile("fuzz", max_examples=examples, deadline=None, derandomize=False)
    settings.load_profile("fuzz")
    fuzzing = Fuzzing(60 * minutes)
    quiet = ["-q", "--no-header", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    status = pytest.main([*quiet, *paths], plugins=[fuzzing])
    for name, count in sorted(fuzzing.tried.items()):
        aside = f" ({fuzzing.discarded[name]:,} drawn and not fit)" if fuzzing.discarded[name] else ""
        sys.stdout.write(f"{count:>12,} {name.split('/')[-1]}{aside}\n")
    total, reached = sum(fuzzing.tried.values()), sum(map(bool, fuzzing.tried.values()))
    sys.stdout.write(
        f"{total:>12,} inputs, {reached} of {len(fuzzing.tried)} properties, {fuzzing.passes} whole passes\n"
    )
    return int(bool(status) or not total)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "groups", nargs="*", help=f"{', '.join(GROUPS)}, or files; all groups when none is named"
    )
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("FUZZ_MINUTES", "10")))
    arguments = parser.parse_args()
    names = arguments.groups or list(GROUPS)
    if len(names) == 1:
        (name,) = names
        files = sorted(str(path) for pattern in GROUPS.get(name, ()) for path in TESTS.glob(pattern))
        return fuzz(files or [name], arguments.minutes)
    failed = []
    for name in names:  # a process each: what one group leaves in memory does not slow down the next
        sys.stdout.write(f"{name}, {arguments.minutes:g} minutes:\n")
        sys.stdout.flush()
        command = [sys.executable, __file__, name, "--minutes", str(arguments.minutes)]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    sys.stdout.write(f"failed: {', '.join(failed)}\n" if failed else "every property that was tried held\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
