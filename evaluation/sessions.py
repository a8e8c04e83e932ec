"""The rounds of each query: checked, put in order, and carried forward after the query stopped.

One rule says which record stands for a query in round t, and measures and TREC files both follow it: the
latest record up to t in which there was still something to find. A query that stopped keeps its last record,
so every round averages over all queries. Once the target (or, without a target, every relevant image) has
been shown and is no longer a candidate, later records have nothing to measure and the earlier one stands.

Records are read as a stream. What is kept of one is an `Outcome` of a few hundred bytes: 158,915 queries of
Flickr30k with four rounds each fit into memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from records import Query, Round

DEPTH = 10  # images of a list that are kept where fewer were shown: the largest cutoff of the measures


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the measures need of a record; the fields are those of `records.Round`.

    Of ``image_ids`` only the top: what was shown, and at least `DEPTH`.
    """

    number: int
    target: str | None
    target_rank: int | None
    relevant: tuple[str, ...]
    image_ids: tuple[str, ...]
    shown: int
    stop: str


@dataclass(frozen=True, slots=True)
class Session:
    """Everything that happened to one query."""

    query_id: str
    target: str | None  # id of the wanted image, or None
    relevant: frozenset[str]  # all relevant images, before anything was shown
    rounds: tuple[Outcome, ...]  # round 0 first, without gaps; empty when the run does not hold the query

    def state(self, number: int) -> Outcome | None:
        """Returns the outcome that stands for this query in round ``number``; None when there is none.

        It is the latest one up to that round in which the target was a candidate (without a target: in which
        a relevant image had not been shown).
        """
        for outcome in reversed(self.rounds[: number + 1]):
            if outcome.target_rank is not None or (self.target is None and outcome.relevant):
                return outcome
        return None


def build_sessions(
    rounds: Iterable[Round], round_count: int, queries: Sequence[Query] | None = None
) -> tuple[Session, ...]:
    """Groups the records of a run by query and checks that they are complete.

    Arguments are those of `evaluation.measures.evaluate`.

    Returns:
        One session per query, in the order of ``queries``, else in order of first appearance. A query that
        the run lacks becomes a session without rounds.

    Raises:
        ValueError: If there is no query, a round is given twice, missing, out of range or after a stop, the
            records of a query contradict each other, or the run and ``queries`` do.
    """
    if round_count < 1:
        raise ValueError(f"round_count is {round_count}; expected at least 1")
    shared: dict[Any, Any] = {}  # equal ids and tuples of ids are kept once
    by_query: dict[str, list[Outcome]] = {}
    for record in rounds:
        known = by_query.setdefault(record.query_id, [])
        if known and record.target != known[0].target:
            raise ValueError(
                f"query {record.query_id!r}, round {record.number}: target is {record.target!r}, in round "
                f"{known[0].number} it was {known[0].target!r}"
            )
        _check_record(record, round_count)
        known.append(_outcome(record, shared))
    sessions: dict[str, Session] = {}
    for query_id in list(by_query):
        sessions[query_id] = _session(query_id, by_query.pop(query_id), round_count, shared)
    if queries is not None:
        sessions = _match(sessions, queries)
    if not sessions:
        raise ValueError("no queries to evaluate: the run and the list of queries are both empty")
    return tuple(sessions.values())


def _outcome(record: Round, shared: dict[Any, Any]) -> Outcome:
    def same(ids: Iterable[str]) -> tuple[str, ...]:
        return tuple(shared.setdefault(image_id, image_id) for image_id in ids)

    relevant = same(record.relevant)
    return Outcome(
        number=record.number,
        target=shared.setdefault(record.target, record.target),
        target_rank=record.target_rank,
        relevant=shared.setdefault(relevant, relevant),
        image_ids=same(record.image_ids[: max(DEPTH, record.shown)]),
        shown=record.shown,
        stop=record.stop,
    )


def _session(query_id: str, outcomes: list[Outcome], round_count: int, shared: dict[Any, Any]) -> Session:
    outcomes.sort(key=lambda outcome: outcome.number)
    first = outcomes[0]
    relevant = frozenset(first.relevant)
    for position, outcome in enumerate(outcomes):
        where = f"query {query_id!r}, round {outcome.number}"
        if outcome.number < position:
            raise ValueError(f"{where}: recorded twice; remove one of the two records")
        if outcome.number > position:
            raise ValueError(f"{where}: round {position} is missing; resume or repeat the run")
        if new := set(outcome.relevant) - relevant:
            raise ValueError(f"{where}: {min(new)!r} is relevant but was not in round 0")
        if outcome.stop and position + 1 < len(outcomes):
            raise ValueError(
                f"{where}: stopped ({outcome.stop}), yet round {outcomes[position + 1].number} follows"
            )
    if first.target is not None and first.target_rank is None:
        raise ValueError(f"query {query_id!r}, round 0: no target_rank for target {first.target!r}")
    last = outcomes[-1]
    if len(outcomes) < round_count and not last.stop:
        raise ValueError(
            f"query {query_id!r}, round {len(outcomes)}: missing, and the query did not stop in round "
            f"{last.number}; resume the run to complete it"
        )
    return Session(query_id, first.target, shared.setdefault(relevant, relevant), tuple(outcomes))


def _check_record(record: Round, round_count: int) -> None:
    """Checks what a record says by itself, while its whole list is at hand."""
    where = f"query {record.query_id!r}, round {record.number}"
    if not 0 <= record.number < round_count:
        raise ValueError(f"{where}: expected rounds 0 to {round_count - 1}; is round_count right?")
    if len(set(record.image_ids)) < len(record.image_ids):
        image_id = Counter(record.image_ids).most_common(1)[0][0]
        raise ValueError(f"{where}: image {image_id!r} is listed twice")
    rank = record.target_rank
    if rank is None:
        return
    listed = record.image_ids.index(record.target) + 1 if record.target in record.image_ids else None
    # A disagreement would give outside tools, which read the list, other numbers than ours.
    if listed is not None and listed != rank:
        raise ValueError(f"{where}: target_rank is {rank}, but the list holds the target at {listed}")
    if listed is None and rank <= len(record.image_ids):
        raise ValueError(
            f"{where}: target_rank is {rank}, but the list of {len(record.image_ids)} lacks the target"
        )


def _match(sessions: dict[str, Session], queries: Sequence[Query]) -> dict[str, Session]:
    asked = {query.id: query for query in queries}
    unknown = sessions.keys() - asked.keys()
    if unknown:
        raise ValueError(
            f"the run holds {len(unknown)} queries that were not asked, such as {min(unknown)!r}; "
            f"are run and queries of the same dataset?"
        )
    matched = {}
    for query in queries:
        session = sessions.get(query.id, Session(query.id, query.target, query.relevant, ()))
        if (session.target, session.relevant) != (query.target, query.relevant):
            raise ValueError(
                f"query {query.id!r}: target or relevant images differ between the run and the queries"
            )
        matched[query.id] = session
    return matched
