"""Rankings out of scores that are given for every image, under the rules of `index.exact_scores`.

A query is not always one vector: a posterior over the collection, or several rankings fused, scores each
image by itself. The higher score comes first; of equal scores the lower row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from index.exact_scores import best_rows, count_ahead
from index.exclusions import Exclusions, excluded_rows, rows_of
from index.faiss_index import Ranking


def list_best(
    scores: Sequence[np.ndarray], ids: Sequence[str], k: int, exclude: Exclusions | None = None
) -> list[Ranking]:
    """Lists the k best images of each query; fewer when fewer are left.

    Args:
        scores: For each of q queries (n,) finite floats, one an image.
        ids: n image ids, by row.
        k: At least 1.
        exclude: For each query the images that may not be listed, or None.

    Returns:
        q rankings.

    Raises:
        ValueError: If k is below 1, the scores are not one an image, or an exclusion is unknown.
    """
    if k < 1:
        raise ValueError(f"search: got k={k}, expected at least 1")
    excluded = excluded_rows(exclude, _row_of(ids), len(scores))
    rankings = []
    for number, left_out in enumerate(excluded):
        row_scores = _one_an_image(scores[number], len(ids))
        row_scores[left_out] = -np.inf
        best = best_rows(row_scores, k)
        rankings.append(Ranking(tuple(ids[int(row)] for row in best), tuple(row_scores[best].tolist())))
    return rankings


def count_ranks(
    scores: Sequence[np.ndarray],
    ids: Sequence[str],
    target_ids: Sequence[str],
    exclude: Exclusions | None = None,
) -> np.ndarray:
    """Counts the place of one image a query, as `list_best` would list it.

    Args:
        scores: For each of q queries (n,) finite floats, one an image.
        ids: n image ids, by row.
        target_ids: q image ids.
        exclude: For each query the images that may not be listed, or None.

    Returns:
        (q,) int64, from 1.

    Raises:
        ValueError: If the arguments do not fit, or a target is unknown or itself excluded.
    """
    if len(target_ids) != len(scores):
        raise ValueError(f"rank: got {len(target_ids)} targets for {len(scores)} queries, expected as many")
    row_of = _row_of(ids)
    targets = rows_of(target_ids, row_of)
    excluded = excluded_rows(exclude, row_of, len(scores))
    rows, ranks = np.arange(len(ids)), np.empty(len(scores), dtype=np.int64)
    for number, (target, left_out) in enumerate(zip(targets, excluded, strict=True)):
        if target in left_out:
            raise ValueError(
                f"rank: query {number}: target {ids[target]!r} is excluded, so it has no rank; "
                "take it out of the exclusions or leave the query out"
            )
        row_scores = _one_an_image(scores[number], len(ids))
        goal = row_scores[target]
        row_scores[left_out] = -np.inf
        ahead = count_ahead(row_scores[None], rows, np.array([goal]), np.array([target]))
        ranks[number] = 1 + ahead[0]
    return ranks


def _row_of(ids: Sequence[str]) -> dict[str, int]:
    return {image_id: row for row, image_id in enumerate(ids)}


def _one_an_image(scores: np.ndarray, count: int) -> np.ndarray:
    """Returns a float64 copy, one query's at a time, so that a batch is never doubled in memory."""
    if len(scores) != count:
        raise ValueError(f"query: got {len(scores)} scores, expected one for each of {count} images")
    return scores.astype(np.float64)
