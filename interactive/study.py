"""Sessions with a known target, and the find-this-picture study, measured as experiments are.

A study shows a target and counts rounds and seconds. Its folder holds ``rounds.jsonl``, as of any run, and
``study.csv``, which `evaluation.study` reads: a search has a line from when its picture is shown.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from evaluation.runs import append_rounds
from evaluation.study import StudySearch, read_study, study_csv
from files import write_bytes
from interactive.session import SearchContext, Session, Turn, UserError
from records import Round
from retriever import Retriever


def with_target(
    turns: Sequence[Turn], target: str, retriever: Retriever, stop: str, query_id: str | None = None
) -> list[Round]:
    """Fills in what a person's records lack: target, relevant pictures, target ranks and the reason to stop.

    A target that was shown and overlooked is no candidate in later rounds: it has no rank there, and the
    measures keep the earlier one.

    Args:
        turns: The session's rounds up to the last one that counts.
        target: Id of the picture that the person had in mind; a ValueError if it is not in the index.
        retriever: The one that searched.
        stop: Why the session ended: "found" or "abandoned".
        query_id: Query id for the records; the session's own when None.
    """
    records, seen = [], frozenset()
    for number, turn in enumerate(turns):
        excluded = frozenset() if turn.options.shows_again else seen
        is_candidate = target not in excluded
        rank = int(retriever.rank([turn.search], [target], [excluded])[0]) if is_candidate else None
        records.append(
            replace(
                turn.record,
                query_id=query_id or turn.record.query_id,
                target=target,
                relevant=(target,) if is_candidate else (),
                target_rank=rank,
                stop=stop if number + 1 == len(turns) else "",
            )
        )
        seen |= frozenset(turn.shown_ids)
    return records


@dataclass
class Task:
    """One picture to find.

    Attributes:
        search: What `Study` writes of it.
        count: How many pictures the participant is to look for.
        begun: When it was shown, on the study's clock.
        waiting_seconds: How much of the time since was spent searching, captioning and rewriting.
        wrong: How many other pictures the person took for it.
    """

    search: StudySearch
    count: int
    begun: float
    waiting_seconds: float = 0.0
    wrong: int = 0


def latin_order(conditions: Sequence[str], row: int) -> list[str]:
    """Returns a row of a Latin square: over n rows each condition stands once in each place.

    For an even n each also follows each other one equally often. Source: Williams, Australian Journal of
    Scientific Research A2 (1949), 149-168.
    """
    count = len(conditions)
    zigzag = ((place + 1) // 2 if place % 2 else -(place // 2) for place in range(count))
    return [conditions[(step + row) % count] for step in zigzag]


@dataclass
class Study:
    """Hands out tasks and keeps the results.

    A participant looks for one picture for practice, then for `pictures` with each strategy. The pictures are
    the same for all, in the same order; the strategies take turns by a Latin square, whose row is the number
    in the participant's id. So each picture meets each strategy.

    Attributes:
        context: The collection and its models.
        open_folder: Makes the folder, or raises ValueError if it holds a study with other settings.
        conditions: The strategies.
        pictures: How many pictures with each.
        consent: What participants agree to before they begin; empty for nothing.
        seed: Chooses the pictures.
        clock: Monotonic seconds.
    """

    context: SearchContext
    open_folder: Callable[[], Path]
    conditions: tuple[str, ...]
    pictures: int = 4
    consent: str = ""
    seed: int = 0
    clock: Callable[[], float] = time.monotonic

    @cached_property
    def folder(self) -> Path:
        """Where the results go; made when the first task is handed out."""
        return self.open_folder()

    def plan(self, participant: str, condition: str = "") -> list[str]:
        """Returns the strategy of each of a participant's pictures, practice first.

        Args:
            participant: An id of letters, digits, dots and dashes that ends in a number.
            condition: The only strategy for this participant; all of the study's when empty.

        Raises:
            UserError: If the id or the condition is of no use.
        """
        number = re.fullmatch(r"[\w.-]{0,40}?(\d{1,9})", participant, re.ASCII)
        if number is None:
            raise UserError(
                f"participant: got {participant[:50]!r}, expected an id that ends in a number, such as P07"
            )
        if condition and condition not in self.conditions:
            raise UserError(
                f"condition: got {condition[:50]!r}, expected one of {', '.join(self.conditions)}"
            )
        order = [condition] if condition else latin_order(self.conditions, int(number[1]))
        return [order[0], *(strategy for strategy in order for _ in range(self.pictures))]

    def begin(self, participant: str, condition: str = "") -> Task:
        """Hands out a participant's next picture, and records that it was shown; arguments as `plan`.

        Raises:
            UserError: If there is none left, or the arguments are of no use.
        """
        plan, ids = self.plan(participant, condition), self.context.ids
        searches = self.searches()
        number, count = sum(each.participant == participant for each in searches), min(len(plan), len(ids))
        pictures = min(1 + self.pictures * len(self.conditions), len(ids))  # the same for all participants
        if number >= count:
            raise UserError(f"participant {participant} has had all {number} pictures; thank you")
        target = random.Random(self.seed).sample(ids, pictures)[number]
        search = StudySearch(participant, plan[number], number, practice=number == 0, target=target)
        self._write([*searches, search])
        return Task(search, count, self.clock())

    def end(self, task: Task, session: Session, found: bool) -> StudySearch:
        """Records a finished search, which may have no round."""
        turns = session.turns[: session.position + 1]
        outcome = "found" if found else "abandoned"
        records = with_target(turns, task.search.target, self.context.retriever, outcome, task.search.id)
        search = replace(
            task.search,
            outcome=outcome,
            words=records[0].text if records else "",
            rounds=len(records),
            seconds=round(self.clock() - task.begun, 2),
            waiting_seconds=round(task.waiting_seconds, 2),
            wrong_pictures=task.wrong,
        )
        append_rounds(self.folder / "rounds.jsonl", records)
        self._write([search if each.id == search.id else each for each in self.searches()])
        return search

    def searches(self) -> list[StudySearch]:
        """Returns all searches so far."""
        path = self.folder / "study.csv"
        return read_study(path) if path.is_file() else []

    def _write(self, searches: Sequence[StudySearch]) -> None:
        write_bytes(self.folder / "study.csv", study_csv(searches).encode())
