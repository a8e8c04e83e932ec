import math
import tracemalloc
from dataclasses import replace
from statistics import mean, median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.measures import evaluate
from evaluation.runs import append_rounds, stream_rounds
from evaluation.sessions import build_sessions
from records import Query, Round

COLLECTION = [f"{number}.jpg" for number in range(25)]


def make_round(query_id, number, image_ids, target=None, relevant=(), shown=10, stop="", rank=None):
    if rank is None and target in image_ids:
        rank = image_ids.index(target) + 1
    return Round(
        query_id=query_id,
        number=number,
        text="words",
        target=target,
        relevant=tuple(relevant),
        image_ids=tuple(image_ids),
        scores=tuple(1 - place / 100 for place in range(len(image_ids))),
        shown=min(shown, len(image_ids)),
        target_rank=rank,
        stop=stop,
    )


@st.composite
def runs(draw, collection=tuple(COLLECTION), shown=4, depth=12):
    """Runs under either protocol: some queries stop early, have no target, or are missing from the run."""
    round_count = draw(st.integers(1, 4))
    remove_shown = draw(st.booleans())
    queries, rounds = [], []
    for number in range(draw(st.integers(1, 4))):
        relevant = draw(st.sets(st.sampled_from(collection), max_size=6))
        target = draw(st.sampled_from(sorted(relevant))) if relevant and draw(st.booleans()) else None
        queries.append(Query(f"q{number}", "words", target, frozenset(relevant)))
        if number and draw(st.booleans()) and draw(st.booleans()):
            continue  # not in the run
        seen = set()
        for turn in range(round_count):
            candidates = [image for image in draw(st.permutations(collection)) if image not in seen]
            ranking = candidates[:depth]
            stop = "exhausted" if draw(st.integers(0, 4)) == 0 else ""
            left = sorted(relevant - seen)
            rank = candidates.index(target) + 1 if target in candidates else None
            rounds.append(make_round(f"q{number}", turn, ranking, target, left, shown, stop, rank))
            if remove_shown:
                seen.update(ranking[:shown])
            if stop:
                break
    return draw(st.permutations(rounds)), queries, round_count


def brute_force(rounds, query, number, image_count, k=10):
    """One query in one round, the slow way from the definitions; no key where there is no meaning."""
    mine = sorted(
        (record for record in rounds if record.query_id == query.id), key=lambda record: record.number
    )
    upto = mine[: number + 1]
    values = {}
    if query.target is not None:
        ranks, last = [], None
        for turn in range(number + 1):
            if turn < len(mine) and mine[turn].target_rank is not None:
                last = mine[turn].target_rank
            ranks.append(last)
        present = bool(mine)
        rank = ranks[-1] if present else image_count
        bests = [min(ranks[: turn + 1]) if present else image_count for turn in range(number + 1)]
        for cutoff in (1, 5, k):
            values[f"Recall@{cutoff}"] = float(present and rank <= cutoff)
            values[f"Hits@{cutoff}"] = float(present and bests[-1] <= cutoff)
        values["MRR"] = 1 / rank if present else 0.0
        values["Mean rank"] = rank
        steps = number
        values["BRI"] = math.log(bests[0])
        if steps:  # the formula as the paper prints it
            inner = sum(math.log(best) for best in bests[1:-1])
            values["BRI"] = math.log(bests[0] * bests[-1]) / (2 * steps) + inner / steps
    if query.relevant:
        found, seen = set(), set()
        for record in upto:
            seen |= set(record.image_ids[: record.shown])
        found = seen & query.relevant
        recall = len(found) / len(query.relevant)
        precision = len(found) / len(seen) if seen else 0.0
        values["Session recall"], values["Session precision"] = recall, precision
        values["Session F1"] = 2 * recall * precision / (recall + precision) if found else 0.0

        standing = None
        for record in upto:
            if record.target_rank is not None or (query.target is None and record.relevant):
                standing = record
        top = standing.image_ids[:k] if standing else ()
        wanted = set(standing.relevant) if standing else query.relevant
        gains = [image in wanted for image in top]
        p, r = sum(gains) / k, sum(gains) / len(wanted)
        values[f"P@{k}"], values[f"R@{k}"] = p, r
        values[f"F1@{k}"] = 2 * p * r / (p + r) if sum(gains) else 0.0
        values[f"RR@{k}"] = 1 / (gains.index(True) + 1) if any(gains) else 0.0
        ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(wanted))))
        values[f"nDCG@{k}"] = sum(gain / math.log2(place + 2) for place, gain in enumerate(gains)) / ideal
    return values


@settings(max_examples=80, deadline=None)
@given(runs())
def test_every_measure_equals_brute_force(run):
    rounds, queries, round_count = run
    measures = evaluate(rounds, round_count, queries, image_count=len(COLLECTION))
    assert measures.query_ids == tuple(query.id for query in queries)
    summary = measures.summary()
    expected = [
        {query.id: brute_force(rounds, query, number, len(COLLECTION)) for query in queries}
        for number in range(round_count)
    ]
    names = {name for values in expected[0].values() for name in values}
    assert set(measures.values) == names
    for name in names:
        for number in range(round_count):
            want = [values.get(name, np.nan) for values in expected[number].values()]
            np.testing.assert_allclose(measures.values[name][number], want, rtol=1e-6, err_msg=name)
            known = [value for value in want if not np.isnan(value)]
            assert summary[name][number] == pytest.approx(mean(known), rel=1e-6)
            if name == "Mean rank":
                assert summary["Median rank"][number] == pytest.approx(median(known))


def test_equal_scores_keep_the_order_of_the_list():
    # Tools behind ir-measures would put equal scores in the order of the ids.
    for ranking in (["b", "a"], ["a", "b"]):
        record = replace(make_round("q", 0, ranking, "a", ["a"]), scores=(0.5, 0.5))
        summary = evaluate([record], 1).summary()
        assert summary["RR@10"] == summary["MRR"] == [1.0 if ranking[0] == "a" else 0.5]


def test_query_missing_from_the_run_scores_zero_and_the_worst_rank():
    queries = [Query(name, "words", "0.jpg", frozenset(["0.jpg"])) for name in ("run", "missing")]
    rounds = [make_round("run", 0, COLLECTION, "0.jpg", ["0.jpg"])]
    summary = evaluate(rounds, 1, queries, image_count=25).summary()
    halves = {"Recall@1", "Recall@10", "Hits@10", "MRR", "nDCG@10", "RR@10", "R@10", "Session recall"}
    assert all(summary[name] == [0.5] for name in halves), summary
    assert summary["Mean rank"] == [13]
    # A collection no larger than k must not turn a missing query into a hit.
    assert evaluate(rounds[:0], 1, queries, image_count=5).summary()["Recall@5"] == [0]
    with pytest.raises(ValueError, match="image_count"):
        evaluate(rounds, 1, queries)


def test_query_without_target_or_without_relevant_images_stays_out_of_those_means():
    targetless = make_round("a", 0, COLLECTION, None, ["0.jpg"])
    summary = evaluate([targetless], 1).summary()
    assert "Recall@10" not in summary
    assert "Mean rank" not in summary
    assert summary["P@10"] == [pytest.approx(0.1)]
    measures = evaluate([targetless, make_round("b", 0, COLLECTION, None, [])], 1)
    assert measures.summary() == summary
    written = measures.to_json()
    assert (written["query_count"], written["queries_with_relevant_images"]) == (2, 1)
    assert evaluate([make_round("b", 0, COLLECTION, None, [])], 1).summary() == {}


FIRST = make_round("q", 0, COLLECTION, "24.jpg", ["24.jpg"])


@pytest.mark.parametrize(
    ("rounds", "round_count", "message"),
    [
        ([], 1, "no queries"),
        ([FIRST], 0, "round_count is 0"),
        ([FIRST, FIRST], 2, "query 'q', round 0: recorded twice"),
        ([FIRST, replace(FIRST, number=2)], 3, "query 'q', round 2: round 1 is missing"),
        ([replace(FIRST, number=1)], 2, "round 0 is missing"),
        ([FIRST], 2, "query 'q', round 1: missing, and the query did not stop"),
        ([FIRST, replace(FIRST, number=1)], 1, "query 'q', round 1: expected rounds 0 to 0"),
        ([replace(FIRST, stop="found"), replace(FIRST, number=1)], 2, "query 'q', round 0: stopped"),
        ([FIRST, replace(FIRST, number=1, target="3.jpg", target_rank=4)], 2, "round 1: target is '3.jpg'"),
        ([replace(FIRST, target_rank=None)], 1, "no target_rank"),
        ([replace(FIRST, target_rank=0)], 1, "the list holds the target at 25"),
        ([replace(FIRST, target_rank=2)], 1, "the list holds the target at 25"),
        ([replace(FIRST, target_rank=2, image_ids=("a", "b"), shown=2)], 1, "the list of 2 lacks the target"),
        ([replace(FIRST, target=None)], 1, "target_rank is 25, but the list of 25 lacks the target"),
        ([replace(FIRST, image_ids=("a", "a"), shown=2)], 1, "image 'a' is listed twice"),
    ],
)
def test_broken_runs_are_refused_by_query_and_round(rounds, round_count, message):
    with pytest.raises(ValueError, match=message):
        evaluate(rounds, round_count)


def test_run_and_queries_must_agree():
    query = Query("q", "words", "24.jpg", frozenset(["24.jpg"]))
    evaluate([FIRST], 1, [query])
    with pytest.raises(ValueError, match="not asked, such as 'q'"):
        evaluate([FIRST], 1, [replace(query, id="other")])
    with pytest.raises(ValueError, match="differ between the run and the queries"):
        evaluate([FIRST], 1, [replace(query, relevant=frozenset(["24.jpg", "1.jpg"]))])


def test_records_are_read_as_a_stream_and_little_is_kept_of_each(tmp_path):
    path, queries, round_count = tmp_path / "rounds.jsonl", 400, 4
    for number in range(queries):
        targets, shown = [f"target {number}.jpg"], [f"{place}.jpg" for place in range(50)]
        turns = [make_round(f"q{number}", turn, shown, targets[0], targets, rank=900) for turn in range(4)]
        append_rounds(path, turns)
    evaluate(stream_rounds(path), round_count)  # what stays in caches is not counted
    tracemalloc.start()
    try:
        sessions = build_sessions(stream_rounds(path), round_count)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(sessions) == queries
    assert max(kept, peak) / (queries * round_count) < 600  # bytes; a whole record holds more than 4,000
