"""Image vectors in a FAISS file with their ids: search and exact ranks.

An opened folder's vectors stay in the file, mapped into memory. Scores and order are those of `index.scores`,
for lists and for ranks alike, since FAISS's own float32 scores change with the batch size. For millions of
images an approximate index of FAISS names the candidates (`index.approximate`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from index.approximate import Approximate
from index.folder import (
    APPROXIMATE_FILE,
    IDS_FILE,
    MANIFEST_FILE,
    VECTORS_FILE,
    Manifest,
    is_half_swapped,
    open_vectors,
    read_list,
)
from index.scores import (
    REBUILD,
    Exclusions,
    check_ids,
    count_places,
    excluded_rows,
    list_rows,
    rows_of,
    target_rows,
    unit_rows,
)
from settings import IndexKind

SWAP_SECONDS = 1.0  # a swap that takes longer was killed


@dataclass(frozen=True)
class Ranking:
    """Image ids for one query, best first, and their exact cosine similarities; ties go to earlier rows."""

    ids: tuple[str, ...]
    scores: tuple[float, ...]


class ImageIndex(Protocol):
    """What the retriever asks of an index, wherever its vectors are; `FaissIndex` says what each does."""

    dimension: int
    ids: tuple[str, ...]
    row_of: dict[str, int]

    @property
    def manifest(self) -> Manifest | None:
        """Names the model that made the vectors; None while the index lives in memory only."""
        ...

    def __len__(self) -> int: ...

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """As `FaissIndex`."""
        ...

    def search(self, vectors: np.ndarray, k: int, exclude: Exclusions | None = None) -> list[Ranking]:
        """As `FaissIndex`."""
        ...

    def rank_of(
        self, vectors: np.ndarray, target_ids: Sequence[str], exclude: Exclusions | None = None
    ) -> np.ndarray:
        """As `FaissIndex`."""
        ...


class FaissIndex:
    """Unit-length image vectors and the ids of their images.

    Attributes:
        ids: The image ids, by row; `row_of` has the row of each.
        vectors: (n, dimension) float32, read-only, by row; those in a file are not aligned.
        manifest: What the folder says, if the index was opened; None while it lives in memory only.
    """

    def __init__(
        self,
        ids: Sequence[str],
        vectors: np.ndarray,
        manifest: Manifest | None = None,
        approximate: Approximate | None = None,
    ) -> None:
        """Takes what `build` and `open` have checked."""
        self.ids = tuple(ids)
        self.row_of = {image_id: row for row, image_id in enumerate(self.ids)}
        self.vectors = vectors.view()
        self.vectors.flags.writeable = False
        self.dimension = vectors.shape[1]
        self.manifest = manifest
        self._approximate = approximate

    @classmethod
    def build(cls, ids: Sequence[str], vectors: np.ndarray) -> FaissIndex:
        """Makes an index in memory, whose search is exact.

        Args:
            ids: n image ids, each once and not empty, else it is a ValueError.
            vectors: (n, d) float32, rows of unit length; d becomes the dimension.
        """
        if np.ndim(vectors) != 2 or not np.shape(vectors)[1]:
            raise ValueError(f"image vectors: got shape {np.shape(vectors)}, expected (n, d)")
        rows = unit_rows(vectors, np.shape(vectors)[1], "image vectors")
        if len(ids) != len(rows):
            raise ValueError(f"index: got {len(ids)} ids for {len(rows)} vectors, expected as many")
        check_ids(ids)
        return cls(ids, rows)

    @classmethod
    def open(
        cls, folder: Path, expect_fingerprint: str | None = None, expect_dimension: int | None = None
    ) -> FaissIndex:
        """Opens a saved index after checking all of it.

        Args:
            folder: What `index.folder.write_folder` wrote.
            expect_fingerprint: Of the model that will encode the queries.
            expect_dimension: Of the same model.

        While a new index takes the old one's place, which takes milliseconds, it waits.

        Raises FileNotFoundError if a file is missing; ValueError if one is damaged or another model's.
        """
        until = time.monotonic() + SWAP_SECONDS
        while True:
            seen = _stamp(folder)
            try:
                return cls._open(folder, expect_fingerprint, expect_dimension)
            except (ValueError, FileNotFoundError):
                changing = is_half_swapped(folder) or _stamp(folder) != seen
                if not changing or time.monotonic() > until:
                    raise
                time.sleep(0.01)

    @classmethod
    def _open(cls, folder: Path, expect_fingerprint: str | None, expect_dimension: int | None) -> FaissIndex:
        manifest = Manifest.read(folder)
        if expect_fingerprint not in (None, manifest.model_fingerprint):
            raise ValueError(
                f"{folder}: another model's index: got {manifest.model_fingerprint} ({manifest.model_name}), "
                f"expected {expect_fingerprint}; {REBUILD}"
            )
        if expect_dimension not in (None, manifest.dimension):
            raise ValueError(
                f"{folder}: got dimension {manifest.dimension}, expected {expect_dimension}; {REBUILD}"
            )
        manifest.verify_files(folder)
        ids = read_list(folder / IDS_FILE, manifest.count)
        vectors = open_vectors(folder / VECTORS_FILE, manifest.count, manifest.dimension)
        approximate = None
        if manifest.kind != "flat":
            path, kind = folder / APPROXIMATE_FILE, cast(IndexKind, manifest.kind)
            approximate = Approximate.read(path, vectors, kind, manifest.effort, manifest.recall_at_10)
        return cls(ids, vectors, manifest, approximate)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def kind(self) -> IndexKind:
        """How it searches: "flat", exactly, or "hnsw" or "ivf", through an approximate index."""
        return self._approximate.kind if self._approximate else "flat"

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Looks up the vectors of n images, (n, dimension) float32; an unknown id is a ValueError.

        A copy, unless `ids` are the index's own: then its read-only vectors.
        """
        return self.vectors if ids is self.ids else self.vectors[rows_of(ids, self.row_of)]

    def search(self, vectors: np.ndarray, k: int, exclude: Exclusions | None = None) -> list[Ranking]:
        """Lists the nearest images of each query; what does not fit is a ValueError.

        Args:
            vectors: (q, dimension) float32, rows of unit length.
            k: How many images to list, at least 1. Fewer come when fewer are left.
            exclude: For each query the images not to be listed (ids, or an integer array of rows), or None.
        """
        queries = unit_rows(vectors, self.dimension, "query vectors")
        if k < 1:
            raise ValueError(f"search: got k={k}, expected at least 1")
        excluded = excluded_rows(exclude, self.row_of, len(queries))
        find = self._approximate.list_rows if self._approximate else list_rows
        return [
            Ranking(tuple(self.ids[row] for row in rows), tuple(scores.tolist()))
            for rows, scores in find(queries, self.vectors, k, excluded)
        ]

    def rank_of(
        self, vectors: np.ndarray, target_ids: Sequence[str], exclude: Exclusions | None = None
    ) -> np.ndarray:
        """Counts the place of one image per query in the whole collection, without sorting it.

        The rank is 1 + images with a higher score + images with the same score and an earlier row, excluded
        images aside: the place that an exact search would list the image at.

        Args:
            vectors: (q, dimension) float32, rows of unit length.
            target_ids: q image ids; an unknown or excluded one is a ValueError.
            exclude: As in `search`.

        Returns:
            (q,) int64.
        """
        queries = unit_rows(vectors, self.dimension, "query vectors")
        excluded = excluded_rows(exclude, self.row_of, len(queries))
        targets = target_rows(target_ids, self.row_of, excluded)
        return count_places(queries, self.vectors, targets, excluded)


def _stamp(folder: Path) -> tuple[int, int]:
    """Changes when the folder gets a new manifest; zeros without one."""
    try:
        status = (folder / MANIFEST_FILE).stat()
    except OSError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns
