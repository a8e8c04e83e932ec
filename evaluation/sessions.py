"""The rounds of each query, put in order, checked, and carried forward to the rounds after its stop.

One rule says which record stands for a query in round t, and measures and TREC files both follow it: the
latest record up to t in which there was still something to find. A query that stopped keeps its last record,
so that every round averages over all queries; and once the target (or, without a target, every relevant
image) has been shown and is no longer a candidate, later records have nothing to measure and the earlier one
stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from records import Query, Round


@dataclass(frozen=True)
class Session:
    """Everything that happened to one query.

    Attributes:
        query_id: The query's id.
        target: Id of the wanted image, or None.
        relevant: All relevant images, before anything was shown.
        rounds: Its records, round 0 first, without gaps; empty when the run does not know the query.
    """

    query_id: str
    target: str | None
    relevant: frozenset[str]
    rounds: tuple[Round, ...]

    def state(self, number: int) -> Round | None:
        """Returns the record that stands for this query in round ``number``.

        Returns:
            The latest record up to that round in which the target was a candidate (without a target: in which
            a relevant image had not been shown); None when there is none.
        """
        for record in reversed(self.rounds[: number + 1]):
            if record.target_rank is not None or (self.target is None and record.relevant):
                return record
        return None


def build_sessions(
    rounds: Iterable[Round], round_count: int, queries: Sequence[Query] | None = None
) -> tuple[Session, ...]:
    """Groups the records of a run by query and checks that they are whole.

    Args:
        rounds: The run's records in any order.
        round_count: How many rounds the run was to have; a query has that many records unless it stopped.
        queries: The queries that were asked. Those the run lacks become sessions without rounds. None: only
            the queries that the run holds.

    Returns:
        One session per query, in the order of ``queries``, else in order of first appearance.

    Raises:
        ValueError: If there is no query, a round is given twice, missing, out of range or after a stop, the
            records of a query contradict each other, or the run and ``queries`` do.
    """
    if round_count < 1:
        raise ValueError(f"round_count is {round_count}; expected at least 1")
    by_query: dict[str, list[Round]] = {}
    for record in rounds:
        by_query.setdefault(record.query_id, []).append(record)
    sessions = {query_id: _session(query_id, records, round_count) for query_id, records in by_query.items()}
    if queries is not None:
        sessions = _match(sessions, queries)
    if not sessions:
        raise ValueError("no queries to evaluate: the run and the list of queries are both empty")
    return tuple(sessions.values())


def _session(query_id: str, records: list[Round], round_count: int) -> Session:
    records = sorted(records, key=lambda record: record.number)
    for position, record in enumerate(records):
        where = f"query {query_id!r}, round {record.number}"
        if not 0 <= record.number < round_count:
            raise ValueError(f"{where}: expected rounds 0 to {round_count - 1}; is round_count right?")
        if record.number < position:
            raise ValueError(f"{where}: recorded twice; remove one of the two records")
        if record.number > position:
            raise ValueError(f"{where}: round {position} is missing; resume or repeat the run")
        _check_record(where, record, records[0])
        if record.stop and position + 1 < len(records):
            raise ValueError(
                f"{where}: stopped ({record.stop}), yet round {records[position + 1].number} follows"
            )
    last = records[-1]
    if len(records) < round_count and not last.stop:
        raise ValueError(
            f"query {query_id!r}, round {len(records)}: missing, and the query did not stop in round "
            f"{last.number}; resume the run to complete it"
        )
    first = records[0]
    return Session(query_id, first.target, frozenset(first.relevant), tuple(records))


def _check_record(where: str, record: Round, first: Round) -> None:
    if record.target != first.target:
        raise ValueError(f"{where}: target is {record.target!r}, in round 0 it was {first.target!r}")
    if not 0 <= record.shown <= len(record.image_ids):
        raise ValueError(f"{where}: {record.shown} images shown of {len(record.image_ids)} recorded")
    if len(set(record.image_ids)) < len(record.image_ids):
        image_id = Counter(record.image_ids).most_common(1)[0][0]
        raise ValueError(f"{where}: image {image_id!r} is listed twice")
    new = set(record.relevant) - set(first.relevant)
    if new:
        raise ValueError(f"{where}: {sorted(new)[0]!r} is relevant but was not in round 0")
    rank = record.target_rank
    if record.target is None:
        if rank is not None:
            raise ValueError(f"{where}: target_rank is {rank} but there is no target")
        return
    if first.target_rank is None:
        raise ValueError(f"query {record.query_id!r}, round 0: no target_rank for target {record.target!r}")
    if rank is None:
        return
    if rank < 1:
        raise ValueError(f"{where}: target_rank is {rank}; ranks start at 1")
    if record.target not in record.relevant:
        raise ValueError(f"{where}: the target {record.target!r} is a candidate but not among the relevant")
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
    if len(asked) < len(queries):
        query_id = Counter(query.id for query in queries).most_common(1)[0][0]
        raise ValueError(f"query {query_id!r} is given twice")
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
