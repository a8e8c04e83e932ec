"""Runs a command of docs/expected_results.yaml again and compares its score with the expected one.

    python -m evaluation.reproduce                  lists the entries
    python -m evaluation.reproduce NAME             runs one and compares
    python -m evaluation.reproduce NAME --compare   compares what an earlier run left

The exit status is 1 when a score lies outside its tolerance.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.tables import as_markdown
from files import read_json
from settings import PROJECT, run_script

log = logging.getLogger(__name__)

EXPECTED_RESULTS = PROJECT / "docs" / "expected_results.yaml"
ORIGINS = ("measured", "published", "open")


@dataclass(frozen=True)
class Expected:
    """One score that can be had again.

    Attributes:
        name: Unique in the file.
        about: What it is, in a sentence.
        command: Beginning with ``python``; run in the project's folder.
        file: A JSON file that the command writes.
        score: Keys, or places in a list, that lead to the score in the file: a number, or one a round.
        expected: The score, a share of one; None as long as nobody has measured it.
        tolerance: How far each number may lie from the expected one.
        origin: "measured" (here), "published" (elsewhere, see ``source``) or "open" (neither).
        source: Where a published score stands.
        hardware: On which a measured score was had.
        date: On which, as YYYY-MM-DD.
    """

    name: str
    about: str
    command: str
    file: str
    score: tuple[str | int, ...]
    expected: tuple[float, ...] | None
    tolerance: float
    origin: str
    source: str | None = None
    hardware: str | None = None
    date: str | None = None

    def __post_init__(self) -> None:
        if self.origin not in ORIGINS:
            raise ValueError(f"{self.name}: origin is {self.origin!r}, expected one of {', '.join(ORIGINS)}")
        if (self.expected is None) != (self.origin == "open"):
            raise ValueError(f"{self.name}: a score is open as long as nothing is expected, and only then")
        if self.origin == "measured" and not (self.hardware and self.date):
            raise ValueError(f"{self.name}: a measured score needs the hardware and the date")
        if self.origin == "published" and not self.source:
            raise ValueError(f"{self.name}: a published score needs its source")
        if not self.command.startswith("python ") or not self.tolerance >= 0:
            raise ValueError(f"{self.name}: expected a command beginning with python, and a tolerance")


def read_expected(path: Path = EXPECTED_RESULTS) -> dict[str, Expected]:
    """Reads the entries by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no list of entries, or one is wrong.
    """
    import yaml

    try:
        listed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    names = {field.name for field in dataclasses.fields(Expected)}
    entries: dict[str, Expected] = {}
    for number, values in enumerate(listed if isinstance(listed, list) else [listed]):
        if not isinstance(values, dict) or not {"name", "score"} <= set(values) <= names:
            raise ValueError(f"{path}, entry {number}: expected the fields {', '.join(sorted(names))}")
        try:
            entry = _entry(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, entry {number}: {error}") from error
        if entry.name in entries:
            raise ValueError(f"{path}, entry {number}: {entry.name!r} is there already")
        entries[entry.name] = entry
    return entries


def score_of(entry: Expected, folder: Path = PROJECT) -> tuple[float, ...]:
    """Looks an entry's score up in the file that its command wrote.

    Raises:
        FileNotFoundError: If the command has not been run.
        ValueError: If the file does not hold the score.
    """
    path = folder / entry.file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run: {entry.command}")
    value: Any = read_json(path)
    for key in entry.score:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{path}: holds no {' / '.join(map(str, entry.score))}: no {key!r}") from error
    return _numbers(value)


def compare(entry: Expected, score: Sequence[float]) -> list[str]:
    """Says which numbers lie outside the tolerance; nothing when all agree, or nothing is expected."""
    if entry.expected is None:
        return []
    if len(score) != len(entry.expected):
        return [f"got {len(score)} numbers, expected {len(entry.expected)}"]
    return [
        f"number {place}: got {got:.4f}, expected {expected:.4f} within {entry.tolerance:g}"
        for place, (got, expected) in enumerate(zip(score, entry.expected, strict=True))
        if not abs(got - expected) <= entry.tolerance + 1e-9
    ]


def reproduce(entry: Expected, runs: bool = True) -> list[str]:
    """Runs an entry's command and compares.

    Args:
        entry: The entry.
        runs: Whether to run it; else what an earlier run left is compared.

    Returns:
        What lies outside the tolerance.

    Raises:
        FileNotFoundError: If its result is missing.
        ValueError: If the command fails, or does not write the score.
    """
    if runs:
        log.info("running: %s", entry.command)
        words = [sys.executable, *shlex.split(entry.command)[1:]]
        status = subprocess.run(words, cwd=PROJECT, check=False).returncode
        if status:
            raise ValueError(f"{entry.name}: the command ended with status {status}; see above")
    score = score_of(entry)
    faults = compare(entry, score)
    expected = entry.expected or ()
    rows = [["", *(str(place) for place in range(len(score)))], ["got", *(f"{got:.4f}" for got in score)]]
    if len(expected) == len(score):
        rows.append([f"expected ({entry.origin})", *(f"{number:.4f}" for number in expected)])
    print(as_markdown(rows))  # noqa: T201  the final table is the command's answer
    if entry.expected is None:
        log.warning("%s: nothing is expected yet; write the score and its origin into the file", entry.name)
    for fault in faults:
        log.error("%s: %s", entry.name, fault)
    return faults


def _entry(values: dict[str, Any]) -> Expected:
    expected = values.get("expected")
    return Expected(
        **values
        | {
            "score": tuple(values["score"]),
            "expected": None if expected is None else _numbers(expected),
            "date": None if values.get("date") is None else str(values["date"]),
        }
    )


def _numbers(value: Any) -> tuple[float, ...]:
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise ValueError(f"got {value!r}, expected a number or a list of numbers")
    return tuple(map(float, numbers))


def main() -> None:
    """Lists the entries, or reproduces one."""
    parser = argparse.ArgumentParser(description="Runs a documented result again and compares the score.")
    parser.add_argument("name", nargs="?", help="an entry; all are listed when not given")
    parser.add_argument("--compare", action="store_true", help="compare what an earlier run left")
    arguments = parser.parse_args()
    entries = read_expected()
    if arguments.name is None:
        rows = [["name", "origin", "about"], *([e.name, e.origin, e.about] for e in entries.values())]
        print(as_markdown(rows, left=3))  # noqa: T201  the list is the command's answer
        return
    if arguments.name not in entries:
        raise ValueError(f"name: got {arguments.name!r}, expected one of {', '.join(entries)}")
    if reproduce(entries[arguments.name], runs=not arguments.compare):
        raise SystemExit(1)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
