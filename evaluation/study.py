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
    """One participant's search for one picture; the fields are the columns.

    `number` counts the participant's pictures from 0. `outcome` is "found", "abandoned" (given up) or
    "unfinished" (left without an end, whose rounds are not kept). `seconds` are all since the picture was
    shown, `waiting_seconds` those of them that the computer took.
    """

    participant: str
    condition: str
    number: int
    practice: bool
    target: str
    outcome: str = "unfinished"
    words: str = ""
    rounds: int = 0
    seconds: float = 0.0
    waiting_seconds: float = 0.0
    wrong_pictures: int = 0

    @property
    def id(self) -> str:
        """Query id of its records."""
        return f"study-{self.participant}-{self.number}"


_FIELDS = dataclasses.fields(StudySearch)
_READERS = {"int": int, "float": float, "str": str, "bool": {"True": True, "False": False}.__getitem__}


def study_csv(searches: Sequence[StudySearch]) -> str:
    """Returns searches as the text of a CSV file with a head."""
    text = io.StringIO()
    rows = [dataclasses.astuple(search) for search in searches]
    csv.writer(text, lineterminator="\n").writerows([[field.name for field in _FIELDS], *rows])
    return text.getvalue()


def read_study(path: Path) -> list[StudySearch]:
    """Reads what `study_csv` wrote; a ValueError names the line that does not fit."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    names = [field.name for field in _FIELDS]
    if rows[:1] != [names]:
        raise ValueError(f"{path}: expected the columns {', '.join(names)}; choose a study's study.csv")
    searches = []
    for number, row in enumerate(rows[1:], start=2):
        try:
            values = [_READERS[str(field.type)](value) for field, value in zip(_FIELDS, row, strict=True)]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: got {row}; mend or remove the line") from error
        searches.append(StudySearch(*values))
    return searches


def study_table(searches: Sequence[StudySearch]) -> str:
    """Compares the conditions, as a Markdown table; practice and unfinished searches do not count.

    The last column is the share found minus that of the first condition in the file, paired by participant,
    with a bootstrap interval over participants (`evaluation.comparison.paired_bootstrap`).
    """
    counted = [search for search in searches if not search.practice and search.outcome != "unfinished"]
    lines = [
        "| Condition | participants | searches | found % | median rounds | seconds | found minus first |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    first: dict[str, float] = {}
    for condition in dict.fromkeys(search.condition for search in counted):
        mine = [search for search in counted if search.condition == condition]
        found = [search for search in mine if search.outcome == "found"]
        shares = {
            person: fmean(100 * (search in found) for search in mine if search.participant == person)
            for person in dict.fromkeys(search.participant for search in mine)
        }
        both = [shares[person] - first[person] for person in shares if person in first]
        result = paired_bootstrap(np.array(both)) if both else None
        cells = (
            condition,
            len(shares),
            len(mine),
            f"{100 * len(found) / len(mine):.1f}",
            f"{median(search.rounds for search in found):g}" if found else "-",
            f"{median(search.seconds for search in found):g}" if found else "-",
            f"{result.mean:+.1f} ({result.low:+.1f} to {result.high:+.1f})" if result else "-",
        )
        first = first or shares
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        print(study_table(read_study(Path(*sys.argv[1:2]))))  # noqa: T201  the command's answer
    except (ValueError, OSError) as problem:
        raise SystemExit(f"error: {problem}") from problem
