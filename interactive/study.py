"""Sessions with a known target, and the find-this-picture study, measured as experiments are.

A study shows a target and counts rounds and seconds. Its folder holds ``rounds.jsonl`` (records, as of any
run), ``tasks.jsonl`` (one line when a target is shown and one when its search ends) and ``measures.json``,
written again after every search. A search that never ended counts as unfinished; its rounds are not kept.
"""

from __future__ import annotations

import logging
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from evaluation.measures import evaluate
from evaluation.runs import append_rounds, read_rounds
from files import append_lines, read_lines, write_json
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
        id: Query id of the records.
        target: Image id.
        begun: When it was shown, on the study's clock.
        waiting_seconds: How much of the time since was spent searching, captioning and rewriting.
        wrong: How many other pictures the person took for it.
    """

    id: str
    target: str
    begun: float
    waiting_seconds: float = 0.0
    wrong: int = 0


@dataclass
class Study:
    """Hands out tasks and keeps the results.

    Attributes:
        context: The collection and its models.
        open_folder: Makes the folder, or raises ValueError if it holds a study with other settings.
        strategy: The same for the whole study.
        seed: With the same seed, a participant of the same name gets the same pictures.
        clock: Monotonic seconds.
    """

    context: SearchContext
    open_folder: Callable[[], Path]
    strategy: str
    seed: int = 0
    clock: Callable[[], float] = time.monotonic

    @cached_property
    def folder(self) -> Path:
        """Where the results go; made when the first task is handed out."""
        return self.open_folder()

    def begin(self, participant: str, number: int) -> Task:
        """Chooses a participant's picture of this number, from 0, at random; records that it was shown.

        Raises:
            UserError: If the participant has had every picture.
        """
        ids = self.context.ids
        if number >= len(ids):
            raise UserError(f"you have had all {len(ids)} pictures")
        order = list(range(len(ids)))
        random.Random(f"{self.seed} {participant}").shuffle(order)
        task = Task(f"study-{participant}-{number}", ids[order[number]], self.clock())
        self._write({"event": "shown", "query_id": task.id, "target": task.target})
        return task

    def end(self, task: Task, session: Session, found: bool) -> dict[str, Any]:
        """Records a finished search, which may have no round, and measures all of them again.

        Returns the line written to ``tasks.jsonl``.
        """
        seconds = self.clock() - task.begun
        turns = session.turns[: session.position + 1]
        event = "found" if found else "abandoned"
        records = with_target(turns, task.target, self.context.retriever, event, task.id)
        append_rounds(self.folder / "rounds.jsonl", records)
        line = {
            "event": event,
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
        self._measure()
        return line

    def _measure(self) -> None:
        """Writes ``measures.json`` from the two other files."""
        events = [event for _, event in read_lines(self.folder / "tasks.jsonl")]
        ended = [event for event in events if event["event"] != "shown"]
        ended_ids = {event["query_id"] for event in ended}  # a kill may separate rounds from their last line
        records = [each for each in read_rounds(self.folder / "rounds.jsonl") if each.query_id in ended_ids]
        queries = [
            Query(event["query_id"], event["words"], event["target"], frozenset((event["target"],)))
            for event in ended
        ]
        found = [event for event in ended if event["event"] == "found"]
        image_count = len(self.context.ids)
        round_count = max((record.number for record in records), default=0) + 1
        values = evaluate(records, round_count, queries, image_count).to_json() | {
            "images": image_count,
            "searches": len(ended),
            "found": len(found),
            "abandoned": len(ended) - len(found),
            "unfinished": len(events) - 2 * len(ended),  # shown, but neither found nor given up
        }
        for name in ("rounds", "seconds", "waiting_seconds"):
            numbers = [event[name] for event in found]
            values[f"median_{name}_when_found"] = statistics.median(numbers) if numbers else None
        write_json(self.folder / "measures.json", values)
        log.info("study: %d of %d found; %s", len(found), len(ended), self.folder / "measures.json")

    def _write(self, line: dict[str, Any]) -> None:
        append_lines(self.folder / "tasks.jsonl", [line])
