"""Cosine similarities that come out the same to the last bit however they are computed, and their order.

Vectors are rounded to multiples of 2**-26, which float32 holds exactly (a component moves by at most 2**-27,
a score by about 1e-7). A product of two such numbers is a multiple of 2**-52 and all partial sums over unit
vectors stay below 2, so that each fits into the 53 bits of a float64: nothing is ever rounded, and the order
of the additions, the batch size and the library do not matter. Equal vectors have equal scores, and a rank
never contradicts a list.

The order is the same everywhere: the higher score first; of equal scores, the lower row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

GRID = np.float32(2**26)
COARSE = np.float32(2**11)  # steps of a coarse row in 1
COARSE_ONE = float(COARSE**2)  # a cosine of 1, as a product of coarse rows
UNIT_TOLERANCE = 1e-3
ROWS_AT_ONCE = 2048  # 4 MB of 256-d float64: what the product reads stays in the processor's cache
QUERIES_AT_ONCE = 256
FEW_QUERIES = 6  # for more, turning all vectors into float64 once costs less than a scan by FAISS for each
FEW_LISTED = 2048  # candidates that FAISS is asked for, at most
SPARE = 16  # candidates more than asked for, so that rounding seldom matters
REBUILD = "build the index with: python embed_image_as_faiss.py"  # what errors of a damaged index end with

Exclusions = Sequence[Collection[str] | np.ndarray | None]


def unit_rows(vectors: np.ndarray, dimension: int, what: str) -> np.ndarray:
    """Checks rows and rounds them to the grid: (n, dimension) float32, C-contiguous, a copy.

    Args:
        vectors: (n, dimension) finite floats, rows of unit length; anything else is a ValueError.
        dimension: The expected width.
        what: Names the vectors in errors, such as "query vectors".
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


def coarse_rows(rows: np.ndarray) -> np.ndarray:
    """Rounds unit rows, (n, d) float32, to whole multiples of 1 / COARSE; returns the multiples.

    Their products, `COARSE_ONE` times a cosine, are whole numbers below 2**24 and so exact in float32 too, in
    half the time of float64. A cosine moves by about 2e-4: enough for likeness, not for a search.
    """
    multiples = rows * COARSE
    return np.rint(multiples, out=multiples)


def check_ids(ids: Iterable[str]) -> None:
    """Raises ValueError unless all image ids are non-empty strings, each there once."""
    seen: set[str] = set()
    for image_id in ids:
        if not isinstance(image_id, str) or not image_id:
            raise ValueError(f"index: got image id {image_id!r}, expected a non-empty string")
        if image_id in seen:
            raise ValueError(f"index: image id {image_id!r} occurs twice; ids must be unique")
        seen.add(image_id)


def score_blocks(queries: np.ndarray, vectors: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Multiplies queries with vectors, block by block, in bounded memory.

    Both are float32 from `unit_rows`, (q, d) and (n, d); the vectors may be a mapped file larger than memory.

    Yields:
        The queries' slice, the rows' slice and their scores (queries, rows) float64, exact. All rows of one
        slice of queries come before the next slice of queries.
    """
    for first in range(0, len(queries), QUERIES_AT_ONCE):
        part = queries[first : first + QUERIES_AT_ONCE].astype(np.float64)
        for row in range(0, len(vectors), ROWS_AT_ONCE):
            block = vectors[row : row + ROWS_AT_ONCE].astype(np.float64)
            yield slice(first, first + len(part)), slice(row, row + len(block)), part @ block.T


def all_scores(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Returns all scores, (q, n) float64; arguments as `score_blocks`."""
    scores = np.empty((len(queries), len(vectors)))
    for some, rows, block in score_blocks(queries, vectors):
        scores[some, rows] = block
    return scores


def list_rows(
    queries: np.ndarray, vectors: np.ndarray, k: int, excluded: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Finds the k best rows of each query, in order: int64 rows, at most k, and their float64 scores.

    Args:
        queries: (q, d) float32 from `unit_rows`.
        vectors: (n, d) float32 from `unit_rows`.
        k: At least 1.
        excluded: For each query the rows that may not be listed, int64, each once.
    """
    k = min(k, len(vectors))
    if len(queries) <= FEW_QUERIES:
        alone = zip(queries, excluded, strict=True)
        return [_list_alone(query[None], vectors, k, left_out) for query, left_out in alone]
    at_once = max(1, min(QUERIES_AT_ONCE, QUERIES_AT_ONCE * ROWS_AT_ONCE // max(1, k)))  # bounds the pairs
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for first in range(0, len(queries), at_once):
        part = slice(first, first + at_once)
        found += _list_part(queries[part], vectors, k, excluded[part])
    return found


def count_places(
    queries: np.ndarray, vectors: np.ndarray, targets: np.ndarray, excluded: Sequence[np.ndarray]
) -> np.ndarray:
    """Counts the place of one row per query among all rows that are not excluded, without sorting.

    `targets` are (q,) int64 rows, not excluded; the others are as for `list_rows`.

    Returns:
        (q,) int64: 1 + rows with a higher score + rows with the same score that come earlier.
    """
    places = np.ones(len(queries), dtype=np.int64)
    for first in range(0, len(queries), QUERIES_AT_ONCE):
        part = slice(first, first + QUERIES_AT_ONCE)
        asked, rows = queries[part], targets[part]
        goals = np.einsum("qd,qd->q", asked.astype(np.float64), vectors[rows].astype(np.float64))[:, None]
        for start, scores in _allowed_blocks(asked, vectors, excluded[part]):
            places[part] += np.count_nonzero(scores > goals, axis=1)
            which, columns = np.nonzero(scores == goals)
            earlier = columns + start < rows[which]
            places[part] += np.bincount(which[earlier], minlength=len(asked))
    return places


def best_rows(scores: np.ndarray, k: int) -> np.ndarray:
    """Finds the k best rows of one query, int64, in order: the higher score first, then the lower row.

    `scores` are (n,) floats; minus infinity marks a row that may not be listed.
    """
    if k < 1:
        raise ValueError(f"search: got k={k}, expected at least 1")
    threshold = np.partition(scores, -k)[-k] if k < len(scores) else -np.inf
    rows = np.flatnonzero((scores >= threshold) & (scores > -np.inf))
    return rows[np.argsort(-scores[rows], kind="stable")][:k]


def rows_of(ids: Collection[str], row_of: Mapping[str, int]) -> np.ndarray:
    """Looks up the rows of image ids, (n,) int64; an unknown one is a ValueError."""
    try:
        return np.fromiter((row_of[image_id] for image_id in ids), dtype=np.int64, count=len(ids))
    except KeyError as error:
        raise ValueError(
            f"got image id {error.args[0]!r}, expected one of the index's {len(row_of)} images; check that "
            f"the index was built from this dataset, or {REBUILD}"
        ) from error


def excluded_rows(exclude: Exclusions | None, row_of: Mapping[str, int], queries: int) -> list[np.ndarray]:
    """Turns the images that each query may not be shown into rows, int64, sorted, each once.

    `exclude` has for each query a collection of image ids, or an integer array of rows, or None; anything
    else, or an id or a row that is not in the index, is a ValueError.
    """
    if exclude is None:
        return [np.empty(0, dtype=np.int64)] * queries
    if len(exclude) != queries:
        raise ValueError(f"exclude: got {len(exclude)} entries for {queries} queries, expected as many")
    return [np.unique(_excluded(entry, row_of)) for entry in exclude]


def target_rows(
    target_ids: Sequence[str], row_of: Mapping[str, int], excluded: Sequence[np.ndarray]
) -> np.ndarray:
    """Looks up the rows to be ranked, (q,) int64; ValueError unless each is known and not excluded."""
    if len(target_ids) != len(excluded):
        raise ValueError(f"rank: got {len(target_ids)} targets for {len(excluded)} queries, expected as many")
    targets = rows_of(target_ids, row_of)
    for number, (target, left_out) in enumerate(zip(targets, excluded, strict=True)):
        if target in left_out:
            raise ValueError(
                f"rank: query {number}: target {target_ids[number]!r} is excluded, so it has no rank; "
                "take it out of the exclusions or leave the query out"
            )
    return targets


def _excluded(entry: Collection[str] | np.ndarray | None, row_of: Mapping[str, int]) -> np.ndarray:
    if entry is None:
        return np.empty(0, dtype=np.int64)
    if isinstance(entry, str):
        raise ValueError(f"exclude: got the string {entry!r}, expected a set of image ids for each query")
    if isinstance(entry, np.ndarray):
        if entry.size and (entry.dtype.kind not in "iu" or entry.min() < 0 or entry.max() >= len(row_of)):
            raise ValueError(
                f"exclude: got an array of {entry.dtype} that is not all rows, "
                f"expected integers from 0 to {len(row_of) - 1}"
            )
        return entry.astype(np.int64)
    return rows_of(entry, row_of)


def _allowed_blocks(
    queries: np.ndarray, vectors: np.ndarray, excluded: Sequence[np.ndarray]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the first row of each block and its scores, minus infinity where a row is excluded."""
    which = np.repeat(np.arange(len(excluded)), [len(rows) for rows in excluded])
    rows = np.concatenate([np.empty(0, dtype=np.int64), *excluded])
    order = np.argsort(rows, kind="stable")
    which, rows = which[order], rows[order]
    for _, block, scores in score_blocks(queries, vectors):
        some = slice(*np.searchsorted(rows, (block.start, block.stop)))
        scores[which[some], rows[some] - block.start] = -np.inf
        yield block.start, scores


def _list_alone(
    query: np.ndarray, vectors: np.ndarray, k: int, excluded: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Has FAISS find candidates in float32, and scores them exactly; in doubt, scores all."""
    import faiss  # not needed by those who only compare vectors

    wanted = k + len(excluded) + SPARE
    if wanted <= min(FEW_LISTED, len(vectors)):
        rough, found = faiss.knn(query, vectors, wanted, metric=faiss.METRIC_INNER_PRODUCT)
        rows = np.setdiff1d(found[0], excluded)
        scores = vectors[rows].astype(np.float64) @ query[0].astype(np.float64)
        order = np.lexsort((rows, -scores))[:k]
        rows, scores = rows[order], scores[order]
        # A float32 sum of d products of unit vectors is off by little more than d / 2**24, in whatever order.
        if scores[-1] > rough[0, -1] + query.shape[1] / 2**23:
            return rows, scores
    return _list_part(query, vectors, k, [excluded])[0]


def _list_part(
    queries: np.ndarray, vectors: np.ndarray, k: int, excluded: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Collects pairs of query and row that may be among the k best, and drops what is not now and then."""
    of_query, rows, kept = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0)
    floor = np.full(len(queries), np.finfo(np.float64).min)  # what a row must reach: above minus infinity
    for start, scores in _allowed_blocks(queries, vectors, excluded):
        if start == 0 and k < scores.shape[1]:
            floor = np.maximum(floor, np.partition(scores, -k, axis=1)[:, -k])
        which, columns = np.nonzero(scores >= floor[:, None])
        of_query = np.concatenate([of_query, which])
        rows = np.concatenate([rows, columns + start])
        kept = np.concatenate([kept, scores[which, columns]])
        if len(rows) > 2 * k * len(queries):
            of_query, rows, kept = _k_best(of_query, rows, kept, k)
            counts = np.bincount(of_query, minlength=len(queries))
            last = (np.cumsum(counts) - 1)[counts == k]
            # A later row of the same score would lose to the k that are there: it must be higher.
            floor[counts == k] = np.nextafter(kept[last], np.inf)
    of_query, rows, kept = _k_best(of_query, rows, kept, k)
    cuts = np.searchsorted(of_query, np.arange(1, len(queries)))
    return list(zip(np.split(rows, cuts), np.split(kept, cuts), strict=True))


def _k_best(
    of_query: np.ndarray, rows: np.ndarray, scores: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keeps the k best pairs of each query, sorted by query and in order."""
    order = np.lexsort((rows, -scores, of_query))
    sorted_queries = of_query[order]
    place = np.arange(len(order)) - np.searchsorted(sorted_queries, sorted_queries)
    order = order[place < k]
    return of_query[order], rows[order], scores[order]
