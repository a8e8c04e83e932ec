"""Exact lists and exact ranks at the price of float32: one product a block, float64 only where it decides.

A float32 dot product of unit vectors is off by at most `score_error`, whatever the order of its additions
(Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). So a float32 score settles all but the
few rows that lie that close to the k-th best or to the target; those are scored again exactly, as
`index.exact_scores` says. Nothing is sorted but the answers, and no block of scores outlives its turn: the
vectors may be a memory-mapped file larger than the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from index.exact_scores import UNIT_TOLERANCE

ROWS_AT_ONCE = 4096  # 4 MB of 256-d vectors: what the product reads stays in the processor's cache
QUERIES_AT_ONCE = 256
PAIRS_AT_ONCE = 16_384  # 64 MB as float64, for query and row at 256-d


def score_error(dimension: int) -> float:
    """Returns how far a float32 score of two unit rows can be from the exact one."""
    return (dimension + 4) * 2.0**-24 * (1 + UNIT_TOLERANCE) ** 2 * 1.01


def list_rows(
    queries: np.ndarray, vectors: np.ndarray, k: int, excluded: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Finds the k best rows of each query.

    Args:
        queries: (q, d) float32 from `unit_rows`.
        vectors: (n, d) float32 from `unit_rows`; may be a memory-mapped file.
        k: At least 1.
        excluded: For each query the rows that may not be listed, int64, each once.

    Returns:
        For each query at most k rows, int64, and their exact scores, float64: the higher score first, then
        the lower row.
    """
    found: list[tuple[np.ndarray, np.ndarray]] = []
    k = min(k, len(vectors))
    at_once = max(1, min(QUERIES_AT_ONCE, QUERIES_AT_ONCE * ROWS_AT_ONCE // max(k, 1)))
    for first in range(0, len(queries), at_once):
        part = queries[first : first + at_once]
        found += _list_part(part, vectors, k, excluded[first : first + at_once])
    return found


def count_places(
    queries: np.ndarray, vectors: np.ndarray, targets: np.ndarray, excluded: Sequence[np.ndarray]
) -> np.ndarray:
    """Counts the place of one row per query among all rows that are not excluded, without sorting.

    Args:
        queries: (q, d) float32 from `unit_rows`.
        vectors: (n, d) float32 from `unit_rows`; may be a memory-mapped file.
        targets: (q,) int64, a row each, not excluded.
        excluded: For each query the rows that do not count, int64, each once.

    Returns:
        (q,) int64: 1 + rows with a higher score + rows with the same score that come earlier.
    """
    places = np.ones(len(queries), dtype=np.int64)
    for first in range(0, len(queries), QUERIES_AT_ONCE):
        part = slice(first, first + QUERIES_AT_ONCE)
        places[part] += _count_part(queries[part], vectors, targets[part], excluded[part])
    return places


def exact_pairs(queries: np.ndarray, which: np.ndarray, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Scores pairs of a query and a row exactly.

    Args:
        queries: (q, d) float32.
        which: (p,) int64, the query of each pair.
        vectors: (n, d) float32.
        rows: (p,) int64, the row of each pair.

    Returns:
        (p,) float64.
    """
    scores = np.empty(len(rows), dtype=np.float64)
    for first in range(0, len(rows), PAIRS_AT_ONCE):
        some = slice(first, first + PAIRS_AT_ONCE)
        there = take_rows(vectors, rows[some]).astype(np.float64)
        scores[some] = np.einsum("pd,pd->p", queries[which[some]].astype(np.float64), there)
    return scores


def take_rows(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Copies rows, (p, d) float32; as bytes, since the file's floats need not lie at multiples of four."""
    return vectors.view(np.uint8).take(rows, axis=0).view(np.float32)


def blocks_of(vectors: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the first row of each block, and the block (rows, d) float32, aligned."""
    for first in range(0, len(vectors), ROWS_AT_ONCE):
        block = vectors[first : first + ROWS_AT_ONCE]
        yield first, block if block.flags.aligned else block.view(np.uint8).copy().view(np.float32)


def _list_part(
    queries: np.ndarray, vectors: np.ndarray, k: int, excluded: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    error = score_error(queries.shape[1])
    best = _Best(len(queries), k)
    left_out = _Pairs(excluded)
    waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    floor = np.full(len(queries), -np.inf, dtype=np.float32)
    for first, block in blocks_of(vectors):
        scores = queries @ block.T
        which, rows = left_out.within(first, len(block))
        scores[which, rows - first] = -np.inf
        if first == 0 and len(block) > k:
            kth = np.partition(scores, len(block) - k, axis=1)[:, len(block) - k]
            floor = _below(kth.astype(np.float64) - 2 * error)
        which, rows = np.nonzero((scores >= floor[:, None]) & (scores > -np.inf))
        if not len(which):
            continue
        if len(which) > scores.size // 16:  # of many equal vectors: one product is faster than the pairs
            exact = (queries.astype(np.float64) @ block.astype(np.float64).T)[which, rows]
        else:
            exact = exact_pairs(queries, which, block, rows)
        waiting.append((which, rows + first, exact))
        if sum(len(pairs) for pairs, _, _ in waiting) >= best.scores.size or first == 0:
            best.keep(waiting)
            waiting.clear()
            floor = _below(best.scores[:, -1] - error)
    best.keep(waiting)
    return best.listed()


def _count_part(
    queries: np.ndarray, vectors: np.ndarray, targets: np.ndarray, excluded: Sequence[np.ndarray]
) -> np.ndarray:
    error = score_error(queries.shape[1])
    everyone = np.arange(len(queries))
    goals = exact_pairs(queries, everyone, vectors, targets)
    lower, upper = _below(goals - error)[:, None], -_below(-goals - error)[:, None]
    ahead = np.zeros(len(queries), dtype=np.int64)
    for first, block in blocks_of(vectors):
        scores = queries @ block.T
        above = scores > upper
        ahead += np.count_nonzero(above, axis=1)
        which, rows = np.nonzero((scores >= lower) & ~above)
        if len(which) > scores.size // 16:
            exact = (queries.astype(np.float64) @ block.astype(np.float64).T)[which, rows]
        else:
            exact = exact_pairs(queries, which, block, rows)
        ahead += _count_ahead(which, rows + first, exact, goals, targets)
    which, rows = _Pairs(excluded).all
    return ahead - _count_ahead(which, rows, exact_pairs(queries, which, vectors, rows), goals, targets)


def _count_ahead(
    which: np.ndarray, rows: np.ndarray, scores: np.ndarray, goals: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    earlier = (scores == goals[which]) & (rows < targets[which])
    return np.bincount(which[(scores > goals[which]) | earlier], minlength=len(goals))


def _below(values: np.ndarray) -> np.ndarray:
    """Rounds float64 to float32, downward."""
    return np.nextafter(values.astype(np.float32), np.float32(-np.inf))


class _Pairs:
    """Pairs of a query and a row, sorted by row."""

    def __init__(self, rows_by_query: Sequence[np.ndarray]) -> None:
        which = np.repeat(np.arange(len(rows_by_query)), [len(rows) for rows in rows_by_query])
        rows = np.concatenate([np.empty(0, dtype=np.int64), *rows_by_query])
        order = np.argsort(rows, kind="stable")
        self.all = which[order], rows[order]

    def within(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        which, rows = self.all
        some = slice(*np.searchsorted(rows, (first, first + count)))
        return which[some], rows[some]


class _Best:
    """The k best rows of each query so far, in order; row -1 where there are fewer."""

    def __init__(self, queries: int, k: int) -> None:
        self.scores = np.full((queries, k), -np.inf)
        self.rows = np.full((queries, k), -1, dtype=np.int64)

    def keep(self, pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        queries, k = self.scores.shape
        which = np.concatenate([np.repeat(np.arange(queries), k), *(part[0] for part in pairs)])
        rows = np.concatenate([self.rows.ravel(), *(part[1] for part in pairs)])
        scores = np.concatenate([self.scores.ravel(), *(part[2] for part in pairs)])
        order = np.lexsort((rows, -scores, which))
        starts = np.searchsorted(which[order], np.arange(queries))
        chosen = order[starts[:, None] + np.arange(k)]
        self.rows, self.scores = rows[chosen], scores[chosen]

    def listed(self) -> list[tuple[np.ndarray, np.ndarray]]:
        there = self.scores > -np.inf
        return [(self.rows[query, have], self.scores[query, have]) for query, have in enumerate(there)]
