"""The one loop: search, show, take feedback, caption, move the query, search again.

All queries of a round advance together, so that encoding, captioning and rewriting work in batches; a
person's session is the same loop with one query. What has been played is only in the records, so a stopped
run goes on from its records.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol as Interface

from tqdm import tqdm

from feedback.costs import Costs
from feedback.history import History, NextQuery, Strategy
from feedback.protocols import Protocol
from feedback.users import User, View
from records import Feedback, Query, Round
from retriever import Retriever, SearchQuery

log = logging.getLogger(__name__)

DEPTH = 50  # ranked images recorded a round, where fewer are shown


class Captions(Interface):
    """Captions of images by id."""

    def captions_of(self, image_ids: Sequence[str]) -> list[str]:
        """Returns one caption an id, in order."""
        ...


def run_rounds(
    queries: Sequence[Query],
    *,
    retriever: Retriever,
    user: User,
    strategy: Strategy,
    protocol: Protocol,
    captions: Captions | None = None,
    round_count: int,
    played: Sequence[Round] = (),
    batch_size: int = 256,
    keep: Callable[[list[Round]], None] = lambda rounds: None,
    costs: Costs | None = None,
) -> list[Round]:
    """Plays rounds 0 to ``round_count`` - 1 of all queries.

    Args:
        queries: With distinct ids; asked without their targets where the protocol says so.
        retriever: Searches.
        user: Gives the feedback.
        strategy: Moves the queries.
        protocol: The rules.
        captions: Captions of picked images; not needed, and not asked, unless the strategy needs them.
        round_count: Rounds, the first search included.
        played: Records of an earlier run; what they hold is not played again.
        batch_size: Queries that advance together.
        keep: Called with each batch's records as soon as they are there.
        costs: Charged for moving queries ("move"), searching ("search") and simulated judging ("judge").

    Returns:
        All records, those of the earlier run first.

    Raises:
        ValueError: If a target is not in the index, records do not belong to these queries, or a user points
            at what was not shown; if the strategy needs captions and there are none.
    """
    costs = costs or Costs()
    queries = [protocol.goal_of(query) for query in queries]
    _check(queries, retriever, played)
    sessions: dict[str, list[Round]] = defaultdict(list)
    for record in played:
        sessions[record.query_id].append(record)
    records = list(played)
    for number in range(round_count):
        # Batches are cut from all queries of the round, played or not, so that a resumed run has the batches,
        # and hence the last bits, of one that was not stopped.
        due = [query for query in queries if _goes_on(sessions[query.id], number)]
        done = {query.id for query in due if len(sessions[query.id]) > number}
        bar = tqdm(total=len(due), desc=f"round {number}", unit="query", disable=len(done) == len(due))
        with bar:
            for batch in _batches(due, batch_size):
                if all(query.id in done for query in batch):
                    bar.update(len(batch))
                    continue
                pasts = [sessions[query.id][:number] for query in batch]
                with costs.measure("move", len(batch) if number else 0):
                    searches = next_searches(batch, pasts, strategy)
                with costs.measure("search", len(batch)):
                    fresh = search_round(batch, pasts, searches, number, retriever, protocol)
                if number + 1 < round_count:
                    with costs.measure("judge", len(batch)):
                        fresh = take_feedback(batch, pasts, fresh, user, strategy, captions, protocol)
                fresh = [record for record in fresh if record.query_id not in done]  # a kill tore the batch
                keep(fresh)
                for record in fresh:
                    sessions[record.query_id].append(record)
                records += fresh
                bar.update(len(batch))
    return records


def _check(queries: Sequence[Query], retriever: Retriever, played: Sequence[Round]) -> None:
    if len({query.id for query in queries}) < len(queries):
        raise ValueError("queries must have distinct ids")
    strangers = {record.query_id for record in played} - {query.id for query in queries}
    if strangers:
        raise ValueError(
            f"records of {len(strangers)} other queries, first {min(strangers)}; choose another run"
        )
    targets = {query.id: query.target for query in queries}
    moved = [record.query_id for record in played if record.target != targets[record.query_id]]
    if moved:
        raise ValueError(
            f"records of {len(moved)} queries with other targets, first {moved[0]}; choose another run"
        )
    indexed = set(retriever.index.ids)
    lost = [query.id for query in queries if query.target is not None and query.target not in indexed]
    if lost:
        raise ValueError(f"the targets of {len(lost)} queries are not in the index, first of query {lost[0]}")


def _goes_on(past: Sequence[Round], number: int) -> bool:
    """Says whether a session plays a round, or has played it."""
    return len(past) >= number and (number == 0 or not past[number - 1].stop)


def _batches(queries: Sequence[Query], size: int) -> Iterator[Sequence[Query]]:
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
        The records with likes, dislikes and captions filled in.
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
    candidates = tuple(i for i in record.image_ids[: record.shown] if i not in taken)
    return View(query.id, record.number, goals, candidates, liked_before)
