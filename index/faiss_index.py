"""Image vectors in a FAISS file with their ids: search and exact ranks.

An opened folder's vectors stay in the file, mapped into memory. Scores and order are those of `index.scores`,
for lists and for ranks alike: FAISS's own float32 scores change in the last bit with the batch size, and a
rank counted with one rounding would contradict a list sorted with another. For millions of images an
approximate index of FAISS names the candidates (`index.approximate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from index.approximate import Approximate
from index.folder import (
    APPROXIMATE_FILE,
    IDS_FILE,
    VECTORS_FILE,
    Manifest,
    open_vectors,
    read_list,
    write_folder,
)
from index.scores import (
    REBUILD,
    Exclusions,
    best_rows,
    check_ids,
    count_places,
    excluded_rows,
    list_rows,
    rows_of,
    target_rows,
    unit_rows,
)
from settings import IndexKind


@dataclass(frozen=True)
class Ranking:
    """Images for one query, best first.

    Attributes:
        ids: Image ids.
        scores: Their cosine similarities, exact; of equal ones the image added earlier comes first.
    """

    ids: tuple[str, ...]
    scores: tuple[float, ...]


class ImageIndex(Protocol):
    """What the retriever asks of an index, wherever its vectors are; `FaissIndex` says the rest."""

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        ...

    @property
    def manifest(self) -> Manifest | None:
        """Names the model that made the vectors; None while the index lives in memory only."""
        ...

    @property
    def ids(self) -> tuple[str, ...]:
        """The image ids, by row."""
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
        dimension: Width of a vector.
        manifest: What the folder says, if the index was saved or opened; None while it lives in memory only.
    """

    def __init__(
        self,
        ids: Sequence[str],
        vectors: np.ndarray,
        manifest: Manifest | None = None,
        approximate: Approximate | None = None,
    ) -> None:
        """Takes what `build` and `open` have checked."""
        self.dimension = vectors.shape[1]
        self.manifest = manifest
        self._vectors = vectors
        self._approximate = approximate
        self._ids = tuple(ids)
        self._rows = {image_id: row for row, image_id in enumerate(self._ids)}

    @classmethod
    def build(cls, ids: Sequence[str], vectors: np.ndarray) -> FaissIndex:
        """Makes an index in memory; its search is exact until it is saved and opened.

        Args:
            ids: n image ids, each once.
            vectors: (n, d) float32, rows of unit length; d becomes the dimension.

        Raises:
            ValueError: If ids repeat or are empty, or the vectors do not fit.
        """
        if np.ndim(vectors) != 2 or not np.shape(vectors)[1]:
            raise ValueError(f"image vectors: got shape {np.shape(vectors)}, expected (n, d)")
        rows = unit_rows(vectors, np.shape(vectors)[1], "image vectors")
        if len(ids) != len(rows):
            raise ValueError(f"index: got {len(ids)} ids for {len(rows)} vectors, expected as many")
        check_ids(ids)
        return cls(ids, rows)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> tuple[str, ...]:
        """The image ids, by row."""
        return self._ids

    @property
    def kind(self) -> IndexKind:
        """How it searches: "flat", exactly, or "hnsw", "ivf" or "ivfpq", through an approximate index."""
        return self._approximate.kind if self._approximate else "flat"

    @property
    def vectors(self) -> np.ndarray:
        """(n, dimension) float32, read-only, by row; those in a file are not aligned."""
        view = self._vectors.view()
        view.flags.writeable = False
        return view

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Looks up the vectors of n images, (n, dimension) float32, a copy.

        Raises:
            ValueError: If an id is not in the index.
        """
        return self._vectors[rows_of(ids, self._rows)]

    def search(self, vectors: np.ndarray, k: int, exclude: Exclusions | None = None) -> list[Ranking]:
        """Lists the nearest images of each query.

        Args:
            vectors: (q, dimension) float32, rows of unit length.
            k: How many images to list, at least 1. Fewer come when fewer are left.
            exclude: For each query the images that may not be listed (ids, or an integer array of rows), or
                None.

        Returns:
            q rankings.

        Raises:
            ValueError: If the vectors do not fit, k is below 1, or an exclusion is unknown.
        """
        queries = unit_rows(vectors, self.dimension, "query vectors")
        _check_k(k)
        excluded = excluded_rows(exclude, self._rows, len(queries))
        find = self._approximate.list_rows if self._approximate else list_rows
        return [
            Ranking(tuple(self._ids[row] for row in rows), tuple(scores.tolist()))
            for rows, scores in find(queries, self._vectors, k, excluded)
        ]

    def rank_of(
        self, vectors: np.ndarray, target_ids: Sequence[str], exclude: Exclusions | None = None
    ) -> np.ndarray:
        """Counts the place of one image per query in the whole collection, without sorting it.

        The rank is 1 + images with a higher score + images with the same score and an earlier row, excluded
        images aside: the place that an exact search would list the image at.

        Args:
            vectors: (q, dimension) float32, rows of unit length.
            target_ids: q image ids.
            exclude: As in `search`.

        Returns:
            (q,) int64, from 1.

        Raises:
            ValueError: If the arguments do not fit, or a target is unknown or itself excluded.
        """
        queries = unit_rows(vectors, self.dimension, "query vectors")
        excluded = excluded_rows(exclude, self._rows, len(queries))
        targets = target_rows(target_ids, self._rows, excluded)
        return count_places(queries, self._vectors, targets, excluded)

    def save(
        self,
        folder: Path,
        *,
        model_name: str,
        model_fingerprint: str,
        dataset: str,
        image_folder: Path,
        kind: IndexKind = "auto",
    ) -> None:
        """Writes the index; a kill leaves the folder's old one whole, or a folder that `open` refuses.

        Args:
            folder: Created if missing; an index in it is replaced.
            model_name: Of the model that made the vectors.
            model_fingerprint: Of the same model.
            dataset: Name of the dataset.
            image_folder: The folder that the ids are relative to.
            kind: How the folder's index searches when it is opened; "auto" picks by size.

        Raises:
            ValueError: If the index is empty.
        """
        self.manifest = write_folder(
            folder,
            self._ids,
            [self._vectors],
            dimension=self.dimension,
            model_name=model_name,
            model_fingerprint=model_fingerprint,
            dataset=dataset,
            image_folder=image_folder,
            kind=kind,
        )

    @classmethod
    def open(
        cls, folder: Path, expect_fingerprint: str | None = None, expect_dimension: int | None = None
    ) -> FaissIndex:
        """Opens a saved index after checking all of it.

        Args:
            folder: What `save` wrote.
            expect_fingerprint: Of the model that will encode the queries.
            expect_dimension: Of the same model.

        Raises:
            FileNotFoundError: If the folder or one of its files is missing.
            ValueError: If a file is damaged, the parts do not fit together, or another model made them.
        """
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
        ids = tuple(read_list(folder / IDS_FILE, manifest.count))
        vectors = open_vectors(folder / VECTORS_FILE, manifest.count, manifest.dimension)
        approximate = None
        if manifest.kind != "flat":
            path, kind = folder / APPROXIMATE_FILE, cast(IndexKind, manifest.kind)
            approximate = Approximate.read(path, vectors, kind, manifest.effort, manifest.recall_at_10)
        return cls(ids, vectors, manifest, approximate)


def list_best(
    scores: Sequence[np.ndarray], ids: Sequence[str], k: int, exclude: Exclusions | None = None
) -> list[Ranking]:
    """Lists the k best images of each query by given scores of all images; fewer when fewer are left.

    A query is not always one vector: a posterior over the collection, or several rankings fused, scores each
    image by itself.

    Args:
        scores: For each of q queries (n,) finite floats, one an image.
        ids: n image ids, by row.
        k: At least 1.
        exclude: For each query the images that may not be listed, or None.

    Raises:
        ValueError: If k is below 1, the scores are not one an image, or an exclusion is unknown.
    """
    _check_k(k)
    rankings = []
    for number, left_out in enumerate(excluded_rows(exclude, _row_of(ids), len(scores))):
        row_scores = _copied(scores[number], ids)
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
    row_of = _row_of(ids)
    excluded = excluded_rows(exclude, row_of, len(scores))
    ranks = np.ones(len(scores), dtype=np.int64)
    for number, target in enumerate(target_rows(target_ids, row_of, excluded)):
        row_scores = _copied(scores[number], ids)
        goal = row_scores[target]
        row_scores[excluded[number]] = -np.inf
        ranks[number] += np.count_nonzero(row_scores > goal) + np.count_nonzero(row_scores[:target] == goal)
    return ranks


def _copied(scores: np.ndarray, ids: Sequence[str]) -> np.ndarray:
    if len(scores) != len(ids):
        raise ValueError(f"query: got {len(scores)} scores, expected one for each of {len(ids)} images")
    return scores.astype(np.float64)


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"search: got k={k}, expected at least 1")


def _row_of(ids: Sequence[str]) -> dict[str, int]:
    return {image_id: row for row, image_id in enumerate(ids)}
