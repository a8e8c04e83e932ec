"""Cosine similarities that come out the same to the last bit, however they are computed.

A float32 dot product depends on the order of its additions, and that order changes with the batch size, the
library and the processor. A ranked list and a counted rank would then disagree about near ties. So every
vector is rounded to the grid of multiples of 2**-26, which float32 holds exactly (it moves a component by at
most 2**-27, a score by about 1e-7). A product of two such numbers is a multiple of 2**-52, and all partial
sums over unit vectors stay below 2: each fits into the 53 bits of a float64. In float64 the additions
therefore round nowhere, and any order gives one result: scores of equal vectors are equal.

Order everywhere: the higher score first; of equal scores, the lower row first.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

GRID = np.float32(2**26)
UNIT_TOLERANCE = 1e-3
ROWS_AT_ONCE = 8192
SCORES_AT_ONCE = 8_000_000  # 64 MB of float64


def unit_rows(vectors: np.ndarray, dimension: int, what: str) -> np.ndarray:
    """Checks that rows are finite and of unit length, and rounds them to the grid.

    Args:
        vectors: (n, dimension) floats.
        dimension: The expected width.
        what: Names the vectors in errors, such as "query vectors".

    Returns:
        (n, dimension) float32, C-contiguous, a copy.

    Raises:
        ValueError: If the shape, the type, a value or a row's length is wrong.
    """
    array = np.asarray(vectors)
    if array.ndim != 2 or array.shape[1] != dimension:
        raise ValueError(
            f"{what}: got shape {array.shape}, expected (n, {dimension}); "
            "encode them with the model that the index was built with"
        )
    if array.dtype.kind != "f":
        raise ValueError(f"{what}: got dtype {array.dtype}, expected float32; convert with .astype")
    array = array.astype(np.float32)
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{what}: row {int(np.argmin(finite))} holds NaN or infinity, expected finite numbers; "
            "check the model's weights and its precision"
        )
    off = np.abs(np.linalg.norm(array.astype(np.float64), axis=1) - 1) > UNIT_TOLERANCE
    if off.any():
        row = int(np.argmax(off))
        raise ValueError(
            f"{what}: row {row} has length {np.linalg.norm(array[row]):.4g}, expected 1; "
            "divide each row by its length first"
        )
    return np.ascontiguousarray(np.rint(array * GRID) / GRID)


def score_blocks(queries: np.ndarray, vectors: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Multiplies queries with vectors, block by block, in bounded memory.

    Args:
        queries: (q, d) float32 from `unit_rows`.
        vectors: (n, d) float32 from `unit_rows`.

    Yields:
        The queries' slice, the rows' slice and their scores (queries, rows) float64, exact. All rows of one
        slice of queries come before the next slice of queries.
    """
    queries_at_once = max(1, SCORES_AT_ONCE // ROWS_AT_ONCE)
    for first in range(0, len(queries), queries_at_once):
        part = queries[first : first + queries_at_once].astype(np.float64)
        for row in range(0, len(vectors), ROWS_AT_ONCE):
            block = vectors[row : row + ROWS_AT_ONCE].astype(np.float64)
            yield slice(first, first + len(part)), slice(row, row + len(block)), part @ block.T


def best_rows(scores: np.ndarray, k: int) -> np.ndarray:
    """Finds the k best rows of one query, in order.

    Args:
        scores: (n,) float64; minus infinity marks a row that may not be listed.
        k: At least 1.

    Returns:
        At most k rows, int64: the higher score first, then the lower row.
    """
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        rows = np.flatnonzero((scores >= threshold) & (scores > -np.inf))
    else:
        rows = np.flatnonzero(scores > -np.inf)
    return rows[np.argsort(-scores[rows], kind="stable")][:k]


def count_ahead(scores: np.ndarray, rows: np.ndarray, goals: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Counts, for each query, the rows that come before its target.

    Args:
        scores: (q, r) float64 of some rows.
        rows: (r,) int64, which rows.
        goals: (q,) float64, the targets' scores.
        targets: (q,) int64, the targets' rows.

    Returns:
        (q,) int64.
    """
    higher = scores > goals[:, None]
    earlier = (scores == goals[:, None]) & (rows[None, :] < targets[:, None])
    return np.count_nonzero(higher | earlier, axis=1)
