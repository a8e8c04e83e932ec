"""The searches of a find-this-picture study, one a line of CSV, and what they say.

python -m evaluation.study runs/study-demo-test-append-bayes/study.csv
"""

from __future__ import annotations

import csv
import dataclasses
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np

from evaluation.comparison import paired_bootstrap


@dataclass(frozen=True)
class StudySearch:
    """One participant's search for one picture, in the order of the columns.

    `number` counts the participant's pictures from 0; a picture that is not `found` was given up. `seconds`
    are all since it was shown, `waiting_seconds` those of them that the computer took.
    """

    participant: str
    condition: str
    number: int
    practice: bool
    target: str
    words: str
    found: bool
    rounds: int
    seconds: float
    waiting_seconds: float
    wrong_pictures: int


FIELDS = tuple(field.name for field in dataclasses.fields(StudySearch))
_TYPES = {"int": int, "float": float, "str": str, "bool": lambda text: {"True": True, "False": False}[text]}


def study_csv(searches: Sequence[StudySearch]) -> str:
    """Returns searches as the text of a CSV file with a head."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([FIELDS, *(dataclasses.astuple(search) for search in searches)])
    return text.getvalue()


def read_study(path: Path) -> list[StudySearch]:
    """Reads what `study_csv` wrote; a ValueError names the line that does not fit."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        if tuple(next(rows, ())) != FIELDS:
            raise ValueError(f"{path}: expected the columns {', '.join(FIELDS)}; choose a study's study.csv")
        searches = []
        for number, row in enumerate(rows, start=2):
            try:
                types = [_TYPES[str(field.type)] for field in dataclasses.fields(StudySearch)]
                values = [read(value) for read, value in zip(types, row, strict=True)]
            except (ValueError, KeyError) as error:
                raise ValueError(f"{path}, line {number}: got {row}; mend or remove the line") from error
            searches.append(StudySearch(*values))
    return searches


def study_table(searches: Sequence[StudySearch]) -> str:
    """Compares the conditions, without practice, as a Markdown table.

    The last column is the share found minus that of the first condition in the file, paired by participant,
    with a bootstrap interval over participants (`evaluation.comparison.paired_bootstrap`).
    """
    counted = [search for search in searches if not search.practice]
    lines = [
        "| Condition | participants | searches | found % | median rounds | seconds | found minus first |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    shares: dict[str, dict[str, float]] = {}
    for condition in dict.fromkeys(search.condition for search in counted):
        mine = [search for search in counted if search.condition == condition]
        people = dict.fromkeys(search.participant for search in mine)
        shares[condition] = {
            person: fmean(search.found for search in mine if search.participant == person)
            for person in people
        }
        found = [search for search in mine if search.found]
        rounds, seconds = (
            f"{median(getattr(search, name) for search in found):g}" if found else "-"
            for name in ("rounds", "seconds")
        )
        first, own = next(iter(shares.values())), shares[condition]
        both = [100 * (own[person] - first[person]) for person in own if person in first]
        difference = "-"
        if own is not first and both:
            result = paired_bootstrap(np.array(both))
            difference = f"{result.mean:+.1f} ({result.low:+.1f} to {result.high:+.1f})"
        share = 100 * fmean(search.found for search in mine)
        cells = (condition, len(people), len(mine), f"{share:.1f}", rounds, seconds, difference)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        print(study_table(read_study(Path(*sys.argv[1:2]))))  # noqa: T201  the command's answer
    except (ValueError, OSError) as problem:
        raise SystemExit(f"error: {problem}") from problem
