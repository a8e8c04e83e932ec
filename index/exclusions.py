"""Which images each query may not be shown: by id or by row, checked, as rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

Exclusions = Sequence[Collection[str] | np.ndarray | None]


def excluded_rows(exclude: Exclusions | None, row_of: Mapping[str, int], queries: int) -> list[np.ndarray]:
    """Turns exclusions into rows.

    Args:
        exclude: For each query a collection of image ids, or an integer array of rows, or None.
        row_of: The row of each image id of the index.
        queries: How many queries there are.

    Returns:
        For each query its rows, int64, sorted, each once.

    Raises:
        ValueError: If there is not one entry a query, or an id or a row is not in the index.
    """
    if exclude is None:
        return [np.empty(0, dtype=np.int64)] * queries
    if len(exclude) != queries:
        raise ValueError(f"exclude: got {len(exclude)} entries for {queries} queries, expected as many")
    return [np.unique(_rows(entry, row_of)) for entry in exclude]


def _rows(entry: Collection[str] | np.ndarray | None, row_of: Mapping[str, int]) -> np.ndarray:
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


def rows_of(ids: Collection[str], row_of: Mapping[str, int]) -> np.ndarray:
    """Looks up the rows of image ids.

    Returns:
        (n,) int64.

    Raises:
        ValueError: If an id is not in the index.
    """
    try:
        return np.fromiter((row_of[image_id] for image_id in ids), dtype=np.int64, count=len(ids))
    except KeyError as error:
        raise ValueError(
            f"got image id {error.args[0]!r}, expected one of the index's {len(row_of)} images; check that "
            "the index was built from this dataset, or build it again with: python embed_image_as_faiss.py"
        ) from error
