"""Find this picture: a target is shown, rounds and time are counted, the experiments' measures are written.

The folder holds ``rounds.jsonl`` (the records, as of any run), ``tasks.jsonl`` (one line when a target is
shown and one when its search ends) and ``measures.json``, written again after every search. A search that was
left without an end is counted as abandoned; what it searched is not kept.
"""

from __future__ import annotations

import json
import logging
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.measures import evaluate
from evaluation.runs import append_rounds, read_rounds
from files import append_lines, write_json
from interactive.errors import UserError
from interactive.search_context import SearchContext
from interactive.session import Session
from interactive.verdict import with_target
from records import Query

log = logging.getLogger(__name__)


@dataclass
class Task:
    """One picture to find.

    Attributes:
        id: Query id of the records.
        target: Image id.
        begun: When it was shown, on the study's clock.
        waiting_seconds: How much of the time since went into searching, captioning and rewriting.
        wrong: How many other pictures the person took for it.
    """

    id: str
    target: str
    begun: float
    waiting_seconds: float = 0.0
    wrong: int = 0


@dataclass
class Study:
    """Gives tasks and keeps what comes of them.

    Attributes:
        context: The shared parts.
        claim: Makes the folder, or refuses one of a study with other settings.
        strategy: The same for all of a study.
        seed: The same participant number gets the same pictures.
        clock: Seconds that only grow.
    """

    context: SearchContext
    claim: Callable[[], Path]
    strategy: str
    seed: int = 0
    clock: Callable[[], float] = time.monotonic
    _folder: list[Path] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Where the results go; made when the first task is given.

        Raises:
            ValueError: If it holds a study with other settings.
        """
        if not self._folder:
            self._folder.append(self.claim())
        return self._folder[0]

    def give(self, participant: str, number: int) -> Task:
        """Chooses a picture at random and writes down that it was shown.

        Args:
            participant: Who searches.
            number: Of the participant's task, from 0; no picture comes twice.

        Raises:
            UserError: If the participant has been given every picture.
        """
        ids = self.context.ids
        if number >= len(ids):
            raise UserError(f"you have been given all {len(ids)} pictures")
        order = list(range(len(ids)))
        random.Random(f"{self.seed} {participant}").shuffle(order)
        task = Task(f"study-{participant}-{number}", ids[order[number]], self.clock())
        self._write({"event": "shown", "query_id": task.id, "target": task.target})
        return task

    def end(self, task: Task, session: Session, found: bool) -> dict[str, Any]:
        """Writes down a search and measures all of them again.

        Args:
            task: What was to be found.
            session: The rounds; there are none if the person gave up before the first search.
            found: Whether it was found, else given up.

        Returns:
            The line written to ``tasks.jsonl``.
        """
        seconds = self.clock() - task.begun
        turns = session.turns[: session.at + 1] if session.turns else []
        records = with_target(
            turns, task.target, self.context.retriever, "found" if found else "abandoned", task.id
        )
        append_rounds(self.folder / "rounds.jsonl", records)
        line = {
            "event": "found" if found else "abandoned",
            "query_id": task.id,
            "target": task.target,
            "words": records[0].text if records else "",
            "strategy": self.strategy,
            "rounds": len(records),
            "seconds": round(seconds, 2),
            "waiting_seconds": round(task.waiting_seconds, 2),
            "wrong_pictures": task.wrong,
        }
        self._write(line)
        self.measure()
        return line

    def measure(self) -> None:
        """Writes ``measures.json`` from the two other files."""
        events = [json.loads(line) for line in (self.folder / "tasks.jsonl").read_text("utf-8").splitlines()]
        ended = [event for event in events if event["event"] != "shown"]
        known = {event["query_id"] for event in ended}  # of others a kill came before the line of the end
        rounds = [record for record in read_rounds(self.folder / "rounds.jsonl") if record.query_id in known]
        queries = [
            Query(event["query_id"], event["words"], event["target"], frozenset((event["target"],)))
            for event in ended
        ]
        image_count = len(self.context.ids)
        round_count = max((record.number for record in rounds), default=0) + 1
        values = evaluate(rounds, round_count, queries, image_count).to_json()
        found = [event for event in ended if event["event"] == "found"]
        write_json(
            self.folder / "measures.json",
            values
            | {
                "images": image_count,
                "searches": len(ended),
                "abandoned": len(events) - 2 * len(ended),
                "found": len(found),
                "median_rounds_when_found": _median([event["rounds"] for event in found]),
                "median_seconds_when_found": _median([event["seconds"] for event in found]),
                "median_waiting_seconds_when_found": _median([event["waiting_seconds"] for event in found]),
            },
        )
        log.info("study: %d of %d found; %s", len(found), len(ended), self.folder / "measures.json")

    def _write(self, line: dict[str, Any]) -> None:
        append_lines(self.folder / "tasks.jsonl", [line])


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
