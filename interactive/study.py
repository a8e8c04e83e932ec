"""Sessions with a known target, and the find-this-picture study, measured as experiments are.

A study shows a target and counts rounds and seconds. Its folder holds ``rounds.jsonl`` (records, as of any
run), ``tasks.jsonl`` (one line when a target is shown and one when its search ends), and two files written
again after every search: ``study.csv``, which `evaluation.study` reads, and ``measures.json``. A search that
never ended counts as unfinished; its rounds are not kept.
"""

from __future__ import annotations

import logging
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from evaluation.measures import evaluate
from evaluation.runs import append_rounds, read_rounds
from evaluation.study import FIELDS, StudySearch, study_csv
from files import append_lines, read_lines, write_bytes, write_json
from interactive.session import SearchContext, Session, Turn, UserError
from records import Query, Round
from retriever import Retriever

log = logging.getLogger(__name__)


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
        participant: Whose.
        number: How many pictures the participant was shown before.
        count: How many the participant is to look for.
        target: Image id.
        strategy: The condition.
        begun: When it was shown, on the study's clock.
        practice: Whether the search does not count.
        waiting_seconds: How much of the time since was spent searching, captioning and rewriting.
        wrong: How many other pictures the person took for it.
    """

    participant: str
    number: int
    count: int
    target: str
    strategy: str
    begun: float
    practice: bool = False
    waiting_seconds: float = 0.0
    wrong: int = 0

    @property
    def id(self) -> str:
        """Query id of the records."""
        return f"study-{self.participant}-{self.number}"


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
        plan = self.plan(participant, condition)
        number = sum(event["participant"] == participant for event in self._events("shown"))
        ids = self.context.ids
        if number >= min(len(plan), len(ids)):
            raise UserError(f"participant {participant} has had all {number} pictures; thank you")
        target = random.Random(self.seed).sample(ids, min(len(plan), len(ids)))[number]
        task = Task(participant, number, len(plan), target, plan[number], self.clock(), practice=number == 0)
        self._write({"event": "shown", "participant": participant, "query_id": task.id, "target": target})
        return task

    def end(self, task: Task, session: Session, found: bool) -> StudySearch:
        """Records a finished search, which may have no round, and measures all of them again."""
        seconds = self.clock() - task.begun
        turns = session.turns[: session.position + 1]
        event = "found" if found else "abandoned"
        records = with_target(turns, task.target, self.context.retriever, event, task.id)
        append_rounds(self.folder / "rounds.jsonl", records)
        search = StudySearch(
            participant=task.participant,
            condition=task.strategy,
            number=task.number,
            practice=task.practice,
            target=task.target,
            words=records[0].text if records else "",
            found=found,
            rounds=len(records),
            seconds=round(seconds, 2),
            waiting_seconds=round(task.waiting_seconds, 2),
            wrong_pictures=task.wrong,
        )
        self._write({"event": event, "query_id": task.id} | asdict(search))
        self._measure()
        return search

    def _measure(self) -> None:
        """Writes ``study.csv``, and ``measures.json`` without practice, from the two other files."""
        searches = {
            event["query_id"]: StudySearch(**{name: event[name] for name in FIELDS})
            for event in self._events("found", "abandoned")
        }
        write_bytes(self.folder / "study.csv", study_csv(list(searches.values())).encode())
        ended = {query_id: search for query_id, search in searches.items() if not search.practice}
        if not ended:
            return
        # A kill may separate rounds from their last line.
        records = [each for each in read_rounds(self.folder / "rounds.jsonl") if each.query_id in ended]
        queries = [
            Query(query_id, search.words, search.target, frozenset((search.target,)))
            for query_id, search in ended.items()
        ]
        found = [search for search in ended.values() if search.found]
        practised = sum(event["query_id"].endswith("-0") for event in self._events("shown"))
        image_count = len(self.context.ids)
        round_count = max((record.number for record in records), default=0) + 1
        values = evaluate(records, round_count, queries, image_count).to_json() | {
            "images": image_count,
            "searches": len(ended),
            "found": len(found),
            "abandoned": len(ended) - len(found),
            # shown, but neither found nor given up
            "unfinished": len(self._events("shown")) - practised - len(ended),
        }
        for name in ("rounds", "seconds", "waiting_seconds"):
            numbers = [getattr(search, name) for search in found]
            values[f"median_{name}_when_found"] = statistics.median(numbers) if numbers else None
        write_json(self.folder / "measures.json", values)
        log.info("study: %d of %d found; %s", len(found), len(ended), self.folder / "study.csv")

    def _events(self, *kinds: str) -> list[dict[str, Any]]:
        path = self.folder / "tasks.jsonl"
        events = [event for _, event in read_lines(path)] if path.is_file() else []
        return [event for event in events if event["event"] in kinds]

    def _write(self, line: dict[str, Any]) -> None:
        append_lines(self.folder / "tasks.jsonl", [line])
