"""A session becomes an evaluation once its target is known: its ranks are counted, then measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from evaluation.measures import evaluate
from interactive.session import Turn
from records import Round
from retriever import Retriever


def with_target(
    turns: Sequence[Turn], target: str, retriever: Retriever, stop: str, query_id: str | None = None
) -> list[Round]:
    """Fills in what the records of a person's session lack.

    A target that was shown and overlooked is no candidate of the rounds after it: it has no rank there, and
    the measures keep the earlier one.

    Args:
        turns: The session's rounds up to the last one that counts.
        target: Id of the picture that the person had in mind.
        retriever: Searched them.
        stop: Why the session ended: "found" or "abandoned".
        query_id: Of the records to come; the session's own when None.

    Returns:
        The records with target, relevant pictures, target ranks and the stop.

    Raises:
        ValueError: If the target is not in the index.
    """
    records, seen = [], frozenset()
    for number, turn in enumerate(turns):
        excluded = frozenset() if turn.shows_again else seen
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


def measure(records: Sequence[Round], image_count: int) -> dict[str, Any]:
    """Measures one session as an experiment's run is measured.

    Args:
        records: Of `with_target`.
        image_count: Size of the collection.
    """
    return evaluate(records, len(records), image_count=image_count).to_json() | {"images": image_count}
