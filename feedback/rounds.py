"""The one loop: search, show, take feedback, caption, move the query, search again.

All queries of a chunk advance together, so that encoding, captioning and rewriting work in batches; a
person's session is the same loop with one query. The records are the only state, so a stopped run goes on
from its records; and a chunk's records leave memory with it, however many queries there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Protocol as Interface

from tqdm import tqdm

from feedback.history import History, NextQuery, Strategy
from feedback.protocols import Protocol
from feedback.users import User, View
from records import Feedback, Query, Round
from retriever import Retriever, SearchQuery

DEPTH = 50  # ranked images recorded a round, where fewer are shown
# Queries whose records are in memory at a time. It decides the order of the records in a run's file, so that
# changing it makes half-finished runs of more queries unreadable.
CHUNK = 4096


class Captions(Interface):
    """Captions of images by id."""

    def captions_of(self, image_ids: Sequence[str]) -> list[str]:
        """Returns one caption an id, in order."""
        ...


class Meter(Interface):
    """Measures what the stages of the loop cost."""

    def measure(self, stage: str, items: int) -> AbstractContextManager[None]:
        """Charges the time of a block to a stage."""
        ...


class _NoMeter:
    def measure(self, stage: str, items: int) -> AbstractContextManager[None]:
        return nullcontext()


def run_rounds(
    queries: Sequence[Query],
    *,
    retriever: Retriever,
    user: User,
    strategy: Strategy,
    protocol: Protocol,
    captions: Captions | None = None,
    round_count: int,
    keep: Callable[[list[Round]], None],
    played: Iterable[Round] = (),
    batch_size: int = 256,
    costs: Meter | None = None,
) -> None:
    """Runs the feedback loop: rounds 0 to ``round_count`` - 1 of all queries, or what is left of them.

    Chunks of `CHUNK` queries come one after another, and each goes through all its rounds, batch by batch.

    Args:
        queries: With distinct ids; asked without their targets where the protocol says so.
        retriever: Searches.
        user: Gives the feedback.
        strategy: Moves the queries.
        protocol: The rules.
        captions: Captions of picked images; not needed, and not asked, unless the strategy needs them.
        round_count: Rounds, the first search included.
        keep: Called with each batch's new records as soon as they are there; nothing else returns them.
        played: The records of an earlier run of the same queries, in the order in which it kept them; read
            to the end before anything is kept, and what they hold is not played again.
        batch_size: Queries that are encoded, captioned and rewritten together.
        costs: Charged for moving queries ("move"), searching ("search") and simulated judging ("judge").

    Raises:
        ValueError: If a target is not in the index; if the earlier records do not belong to these queries or
            are out of order; if a user points at what was not shown; if the strategy needs captions and there
            are none.
    """
    meter = costs or _NoMeter()
    queries = [protocol.goal_of(query) for query in queries]
    _check_queries(queries, retriever)
    recorded = _Recorded(played, {query.id: query.target for query in queries})
    with tqdm(total=len(queries) * round_count, desc="rounds", unit="search") as bar:
        for chunk in _parts(queries, CHUNK):
            sessions = recorded.sessions_of(chunk)
            for number in range(round_count):
                # Batches are cut from all queries of the round, played or not, so that a resumed run has the
                # batches, and hence the last bits, of one that was not stopped.
                due = [query for query in chunk if _goes_on(sessions[query.id], number)]
                bar.update(len(chunk) - len(due))
                for batch in _parts(due, batch_size):
                    done = {query.id for query in batch if len(sessions[query.id]) > number}
                    bar.update(len(batch))
                    if len(done) == len(batch):
                        continue
                    recorded.check_finished()
                    pasts = [sessions[query.id][:number] for query in batch]
                    with meter.measure("move", len(batch) if number else 0):
                        searches = next_searches(batch, pasts, strategy)
                    with meter.measure("search", len(batch)):
                        fresh = search_round(batch, pasts, searches, number, retriever, protocol)
                    if number + 1 < round_count:
                        with meter.measure("judge", len(batch)):
                            fresh = take_feedback(batch, pasts, fresh, user, strategy, captions, protocol)
                    fresh = [r for r in fresh if r.query_id not in done]  # some are, if a kill tore the batch
                    keep(fresh)
                    for record in fresh:
                        sessions[record.query_id].append(record)
        recorded.check_finished()


class _Recorded:
    """The records of an earlier run, read chunk by chunk as it wrote them."""

    def __init__(self, records: Iterable[Round], targets: dict[str, str | None]) -> None:
        self._records = iter(records)
        self._targets = targets
        self._next: Round | None = next(self._records, None)

    def sessions_of(self, chunk: Sequence[Query]) -> dict[str, list[Round]]:
        """Returns the records of each of these queries, round 0 first."""
        sessions: dict[str, list[Round]] = {query.id: [] for query in chunk}
        while self._next is not None and self._next.query_id in sessions:
            record, past = self._next, sessions[self._next.query_id]
            if record.target != self._targets[record.query_id]:
                raise ValueError(
                    f"the records of query {record.query_id!r} have the target {record.target!r}, expected "
                    f"{self._targets[record.query_id]!r}; choose another run"
                )
            if record.number != len(past):
                raise ValueError(
                    f"the records of query {record.query_id!r} hold round {record.number} where round "
                    f"{len(past)} is expected; begin again, or choose another run"
                )
            past.append(record)
            self._next = next(self._records, None)
        return sessions

    def check_finished(self) -> None:
        """Makes sure that no record is left where none should be: before a new one is kept, and at the end.

        Raises:
            ValueError: If there is one.
        """
        if self._next is None:
            return
        if self._next.query_id in self._targets:
            raise ValueError(
                f"the records of query {self._next.query_id!r} are not where a run writes them; begin again, "
                "or choose another run"
            )
        strangers = {
            record.query_id
            for record in itertools.chain([self._next], self._records)
            if record.query_id not in self._targets
        }
        raise ValueError(
            f"records of {len(strangers)} other queries, first {min(strangers)}; choose another run"
        )


def _check_queries(queries: Sequence[Query], retriever: Retriever) -> None:
    if len({query.id for query in queries}) < len(queries):
        raise ValueError("queries must have distinct ids")
    indexed = set(retriever.index.ids)
    lost = [query.id for query in queries if query.target is not None and query.target not in indexed]
    if lost:
        raise ValueError(f"the targets of {len(lost)} queries are not in the index, first of query {lost[0]}")


def _goes_on(past: Sequence[Round], number: int) -> bool:
    """Says whether a session plays a round, or has played it."""
    return len(past) >= number and (number == 0 or not past[number - 1].stop)


def _parts(queries: Sequence[Query], size: int) -> Iterator[Sequence[Query]]:
    for start in range(0, len(queries), size):
        yield queries[start : start + size]


def next_searches(batch: Sequence[Query], pasts: list[list[Round]], strategy: Strategy) -> list[NextQuery]:
    """Asks the strategy what each session searches next; its first round searches the person's own words.

    Args:
        batch: Queries that are all in the same round.
        pasts: The records of each so far.
        strategy: Moves the queries.
    """
    if not pasts[0]:  # the first round: the person's own words, whatever the strategy
        return [NextQuery(SearchQuery(text=query.text)) for query in batch]
    return strategy.next([History.of(past) for past in pasts])


def search_round(
    batch: Sequence[Query],
    pasts: list[list[Round]],
    searches: list[NextQuery],
    number: int,
    retriever: Retriever,
    protocol: Protocol,
) -> list[Round]:
    """Searches one round of each session and records what is shown; feedback is still missing.

    Args:
        batch: Queries that are all in the same round.
        pasts: The records of each so far.
        searches: What each searches now.
        number: The round's.
        retriever: Searches.
        protocol: The rules.
    """
    seen = [_seen(past) if protocol.removes_shown else frozenset() for past in pasts]
    asked = retriever.prepared([search.search for search in searches])
    rankings = retriever.search(asked, max(protocol.shown, DEPTH), exclude=seen)
    with_target = [row for row, query in enumerate(batch) if query.target is not None]
    targets = [target for row in with_target if (target := batch[row].target) is not None]
    ranks = (
        retriever.rank([asked[row] for row in with_target], targets, [seen[row] for row in with_target])
        if targets
        else []
    )
    rank_of = dict(zip(with_target, map(int, ranks), strict=True))
    records = []
    for row, (query, ranking) in enumerate(zip(batch, rankings, strict=True)):
        record = Round(
            query_id=query.id,
            number=number,
            text=searches[row].search.text or "",
            target=query.target,
            relevant=tuple(sorted(query.relevant - seen[row])),
            image_ids=tuple(ranking.ids),
            scores=tuple(round(float(score), 6) for score in ranking.scores),
            shown=min(protocol.shown, len(ranking.ids)),
            target_rank=rank_of.get(row),
            fallback=searches[row].fallback,
        )
        records.append(replace(record, stop=_why_stop(record, pasts[row], protocol)))
    return records


def _seen(past: Sequence[Round]) -> frozenset[str]:
    return frozenset(image_id for record in past for image_id in record.image_ids[: record.shown])


def _why_stop(record: Round, past: Sequence[Round], protocol: Protocol) -> str:
    shown = frozenset(record.image_ids[: record.shown])
    if record.target_rank is not None:
        if record.target_rank <= protocol.hit_rank and protocol.stops_when_found:
            return "found"
        before = past[-1].target_rank if past else None
        if protocol.stops_when_worse and before is not None and record.target_rank > before:
            return "worse"
    elif (past[0] if past else record).relevant and not frozenset(record.relevant) - shown:
        return "found"
    if len(record.image_ids) <= record.shown and protocol.removes_shown:
        return "exhausted"
    return ""


def take_feedback(
    batch: Sequence[Query],
    pasts: list[list[Round]],
    records: list[Round],
    user: User,
    strategy: Strategy,
    captions: Captions | None,
    protocol: Protocol,
) -> list[Round]:
    """Lets the user judge the sessions that go on, and has the picked images captioned.

    Returns:
        The records with likes, dislikes, captions and what was said filled in.
    """
    going = [row for row, record in enumerate(records) if not record.stop]
    views = [_view(batch[row], pasts[row], records[row], protocol) for row in going]
    feedbacks = dict(zip(going, user.judge(views), strict=True))
    for row, feedback in feedbacks.items():
        _check_shown(records[row], feedback)
    liked = [image_id for feedback in feedbacks.values() for image_id in feedback.liked]
    if not strategy.needs_captions:
        texts = iter([""] * len(liked))
    elif captions is None:
        raise ValueError(f"{type(strategy).__name__} needs captions of the picked images, got no captions")
    else:
        texts = iter(captions.captions_of(liked))
    judged = []
    for row, record in enumerate(records):
        feedback = feedbacks.get(row, Feedback())
        said = tuple(next(texts) for _ in feedback.liked)
        judged.append(
            replace(
                record,
                liked=feedback.liked,
                disliked=feedback.disliked,
                captions=said if strategy.needs_captions else (),
                said=feedback.said,
                stop="abandoned" if feedback.abandons else record.stop,
            )
        )
    return judged


def _check_shown(record: Round, feedback: Feedback) -> None:
    """Refuses feedback on images that were not shown: it would tell the strategy what nobody could see."""
    shown = record.image_ids[: record.shown]
    hidden = [image_id for image_id in (*feedback.liked, *feedback.disliked) if image_id not in shown]
    if hidden:
        raise ValueError(
            f"query {record.query_id!r}, round {record.number}: the user pointed at {hidden[0]!r}, expected "
            f"one of the {record.shown} images shown"
        )


def _view(query: Query, past: Sequence[Round], record: Round, protocol: Protocol) -> View:
    goals = frozenset((query.target,)) if query.target is not None else query.relevant
    liked_before = tuple(earlier.liked for earlier in past)
    taken = {image_id for liked in liked_before for image_id in liked}
    if not protocol.target_may_be_picked:
        taken |= {query.target}
    shown = record.image_ids[: record.shown]
    candidates = tuple(image_id for image_id in shown if image_id not in taken)
    return View(query.id, record.number, goals, candidates, liked_before, shown)
