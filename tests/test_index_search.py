"""The index against arithmetic in whole numbers: search, ranks, exclusions, ties."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_world import random_rows

from index import scores as exact
from index.faiss_index import FaissIndex, Ranking
from index.scores import unit_rows


def names(count):
    return [f"folder/{number:05}.jpg" for number in range(count)]


def by_fractions(vectors, query, left_out=()):
    """Every row but those left out, in order, with exact scores: no floating point and no numpy."""
    stored = unit_rows(vectors, vectors.shape[1], "rows").tolist()
    asked = [Fraction(value) for value in unit_rows(query[None], len(query), "query")[0].tolist()]
    scores = [sum(Fraction(a) * b for a, b in zip(row, asked, strict=True)) for row in stored]
    order = sorted(
        (row for row in range(len(stored)) if row not in left_out), key=lambda row: (-scores[row], row)
    )
    return order, scores


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 30),
    dimension=st.integers(1, 9),
    distinct=st.none() | st.integers(1, 4),
    queries=st.integers(1, 4),
    k=st.integers(1, 35),
    block=st.integers(1, 31),
    few=st.sampled_from([0, 4]),
    spare=st.integers(0, 3),
    data=st.data(),
)
def test_search_and_rank_match_brute_force(
    seed, count, dimension, distinct, queries, k, block, few, spare, data
):
    vectors = random_rows(seed, count, dimension, distinct)
    asked = random_rows(seed + 1, queries, dimension)
    asked[0] = vectors[0]
    rows_left_out = [data.draw(st.sets(st.integers(0, count - 1), max_size=count)) for _ in range(queries)]
    ids = names(count)
    index = FaissIndex.build(ids, vectors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "ROWS_AT_ONCE", block)
        patch.setattr(exact, "QUERIES_AT_ONCE", 2)
        patch.setattr(exact, "FEW_QUERIES", few)
        patch.setattr(exact, "SPARE", spare)
        found = index.search(asked, k, exclude=[{ids[row] for row in rows} for rows in rows_left_out])
        same = index.search(asked, k, exclude=[np.array(sorted(rows), dtype=int) for rows in rows_left_out])
        assert found == same
        for query in range(queries):
            order, scores = by_fractions(vectors, asked[query], rows_left_out[query])
            assert found[query].ids == tuple(ids[row] for row in order[:k])
            assert [Fraction(score) for score in found[query].scores] == [scores[row] for row in order[:k]]
            exclude = [rows_left_out[query]] * len(order)
            ranks = index.rank_of(
                np.repeat(asked[query : query + 1], len(order), axis=0),
                [ids[row] for row in order],
                exclude=[{ids[row] for row in rows} for rows in exclude],
            )
            assert ranks.tolist() == list(range(1, len(order) + 1))


def test_a_thousand_equal_vectors_come_in_the_order_of_their_rows(monkeypatch):
    monkeypatch.setattr(exact, "ROWS_AT_ONCE", 128)
    vectors, query = random_rows(16, 3000, 64), random_rows(17, 2, 64)
    vectors[500:2500:2] = query[0]  # as near as can be, a thousand times
    index = FaissIndex.build(names(3000), vectors)
    twins = names(3000)[500:2500:2]
    for k in (1, 10, 999, 1001):
        near, far = index.search(query, k)
        assert list(near.ids[:1000]) == twins[:k] and len(near.ids) == len(far.ids) == k
    ranks = index.rank_of(np.repeat(query[:1], 1000, axis=0), twins)
    assert ranks.tolist() == list(range(1, 1001))


def test_a_query_alone_finds_what_differs_by_less_than_float32_tells():
    vectors = np.repeat(unit_rows(np.abs(random_rows(3, 1, 64)), 64, "rows"), 40, axis=0)
    vectors[30:, 7] += 2.0**-26  # one step of the grid, which a sum in float32 cannot hold
    index = FaissIndex.build(names(40), vectors)
    (alone,) = index.search(vectors[:1], 8)
    assert alone.ids == tuple(names(38)[30:])


def test_scores_do_not_depend_on_the_batch():
    index = FaissIndex.build(names(500), random_rows(5, 500, 256))
    queries = random_rows(6, 33, 256)
    together = index.search(queries, 500)
    assert together == [index.search(query[None], 500)[0] for query in queries]


def test_rounding_to_the_grid_moves_nothing_that_matters_and_is_stable():
    vectors = random_rows(9, 50, 256)
    rounded = unit_rows(vectors, 256, "rows")
    assert np.abs(rounded - vectors).max() <= 2.0**-27
    assert (unit_rows(rounded, 256, "rows") == rounded).all()
    assert ((rounded.astype(np.float64) * 2**26) % 1 == 0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 700), st.integers(1, 5))
def test_products_of_coarse_rows_are_exact_in_float32(seed, dimension, count):
    vectors = unit_rows(random_rows(seed, count, dimension), dimension, "rows")
    vectors = np.concatenate([vectors, -vectors, np.eye(1, dimension, dtype=np.float32)])
    rows = exact.coarse_rows(vectors)
    products = rows @ rows.T
    assert rows.dtype == products.dtype == np.float32
    assert np.array_equal(products, rows.astype(np.float64) @ rows.T.astype(np.float64))
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    assert np.abs(products / exact.COARSE_ONE - cosines).max() < dimension**0.5 / exact.COARSE


def test_fewer_come_when_fewer_are_left():
    vectors = random_rows(11, 3, 4)
    index = FaissIndex.build(["a", "b", "c"], vectors)
    assert index.search(vectors[:1], 9, exclude=[["a", "b", "c"]]) == [Ranking((), ())]
    assert index.search(np.empty((0, 4), dtype=np.float32), 5) == []
    assert index.rank_of(np.empty((0, 4), dtype=np.float32), []).shape == (0,)
    empty = FaissIndex.build([], np.empty((0, 4), dtype=np.float32))
    assert empty.search(vectors[:2], 5) == [Ranking((), ()), Ranking((), ())]


def test_vectors_come_back_by_id_as_copies():
    vectors = random_rows(13, 4, 16)
    index = FaissIndex.build(names(4), vectors)
    got = index.vectors_of([names(4)[2], names(4)[0], names(4)[2]])
    assert got.dtype == np.float32
    assert np.allclose(got, vectors[[2, 0, 2]], atol=2.0**-26)
    got[:] = 0
    assert np.allclose(index.vectors_of(names(4)), vectors, atol=2.0**-26)
    assert index.vectors_of([]).shape == (0, 16)


GOOD = random_rows(14, 2, 4)


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (["a"], GOOD[0], r"expected \(n, d\)"),
        (["a"], GOOD, "got 1 ids for 2 vectors"),
        (["a", "a"], GOOD, "'a' occurs twice"),
        (["a", ""], GOOD, "expected a non-empty string"),
        (["a", "b"], GOOD * 2, "row 0 has length 2, expected 1"),
        (["a", "b"], GOOD * [[1], [0]], "row 1 has length 0, expected 1"),
        (["a", "b"], GOOD * [[1], [np.nan]], "row 1 holds NaN"),
        (["a", "b"], (GOOD * 100).astype(int), "got dtype int64, expected float32"),
    ],
)
def test_build_refuses_what_does_not_fit(ids, vectors, message):
    with pytest.raises(ValueError, match=message):
        FaissIndex.build(ids, vectors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((GOOD, 0), "got k=0, expected at least 1"),
        ((GOOD[0], 1), "got shape"),
        ((GOOD * 3, 1), "query vectors: row 0 has length 3"),
        ((GOOD * np.inf, 1), "NaN or infinity"),
        ((GOOD, 1, [None]), "exclude: got 1 entries for 2 queries"),
        ((GOOD, 1, [{"a"}, {"x"}]), "got image id 'x'"),
        ((GOOD, 1, ["a", "b"]), "expected a set of image ids"),
        ((GOOD, 1, [None, np.array([2])]), "expected integers from 0 to 1"),
        ((GOOD, 1, [None, np.array([0.5])]), "array of float64"),
    ],
)
def test_search_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        FaissIndex.build(["a", "b"], GOOD).search(*arguments)


def test_rank_refuses_an_unknown_or_excluded_target():
    index = FaissIndex.build(["a", "b"], GOOD)
    with pytest.raises(ValueError, match="rank: got 1 targets for 2 queries"):
        index.rank_of(GOOD, ["a"])
    with pytest.raises(ValueError, match="got image id 'z'"):
        index.rank_of(GOOD, ["a", "z"])
    with pytest.raises(ValueError, match="query 1: target 'b' is excluded"):
        index.rank_of(GOOD, ["a", "b"], exclude=[None, {"b"}])
