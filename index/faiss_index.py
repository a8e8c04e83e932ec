"""Image vectors in a FAISS file with their ids: search, exact ranks.

A folder holds `vectors.faiss` (an IndexFlatIP), `ids.json` (a list; row i is entry i) and `manifest.json`;
see docs/formats.md. An opened folder's vectors stay in the file, mapped into memory. The scores are those of
`index.exact_scores`, for searching and for ranking alike: FAISS's own float32 scores change in the last bit
with the batch size, and a rank counted with one rounding would contradict a list sorted with another. For
millions of images an approximate index of FAISS names the candidates (`index.approximate`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from index.exact_scores import unit_rows
from index.exact_search import count_places, list_rows, take_rows
from index.exclusions import Exclusions, excluded_rows, rows_of
from index.folder import write_folder
from index.manifest import APPROXIMATE_FILE, IDS_FILE, REBUILD, VECTORS_FILE, Manifest
from index.vector_file import open_vectors
from settings import IndexKind

if TYPE_CHECKING:
    from index.approximate import Approximate


@dataclass(frozen=True)
class Ranking:
    """Images for one query, best first.

    Attributes:
        ids: Image ids.
        scores: Their cosine similarities, exact; of equal ones the image added earlier comes first.
    """

    ids: tuple[str, ...]
    scores: tuple[float, ...]


class FaissIndex:
    """Unit-length image vectors and the ids of their images.

    Attributes:
        dimension: Width of a vector.
        manifest: What the folder says, if the index was saved or opened; None while it lives in memory only.
    """

    def __init__(self, dimension: int) -> None:
        if dimension < 1:
            raise ValueError(f"index dimension: got {dimension}, expected at least 1")
        self.dimension = dimension
        self.manifest: Manifest | None = None
        self._vectors = np.empty((0, dimension), dtype=np.float32)
        self._approximate: Approximate | None = None
        self._ids: tuple[str, ...] = ()
        self._rows: dict[str, int] = {}

    @classmethod
    def build(cls, ids: Sequence[str], vectors: np.ndarray) -> FaissIndex:
        """Makes an index in memory.

        Args:
            ids: n image ids.
            vectors: (n, d) float32, rows of unit length; d becomes the dimension.

        Raises:
            ValueError: As `add`.
        """
        if np.ndim(vectors) != 2:
            raise ValueError(f"image vectors: got shape {np.shape(vectors)}, expected (n, d)")
        index = cls(np.shape(vectors)[1])
        index.add(ids, vectors)
        return index

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Appends images; a saved index changes on disk only with the next `save`.

        The vectors are in memory from then on, and the search is exact until the index is saved and opened.

        Args:
            ids: n image ids, none of them in the index yet.
            vectors: (n, dimension) float32, rows of unit length.

        Raises:
            ValueError: If ids repeat or are empty, or the vectors do not fit; nothing is added then.
        """
        rows = unit_rows(vectors, self.dimension, "image vectors")
        if len(ids) != len(rows):
            raise ValueError(f"index: got {len(ids)} ids for {len(rows)} vectors, expected as many")
        new: dict[str, int] = {}
        for row, image_id in enumerate(ids, start=len(self)):
            if not isinstance(image_id, str) or not image_id:
                raise ValueError(f"index: got image id {image_id!r}, expected a non-empty string")
            if image_id in self._rows or image_id in new:
                raise ValueError(f"index: image id {image_id!r} occurs twice; ids must be unique")
            new[image_id] = row
        self._vectors = np.concatenate([self._vectors, rows])
        self._approximate = None
        self._ids += tuple(ids)
        self._rows.update(new)

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
        """(n, dimension) float32, read-only, by row; a file's are not aligned: see `index.exact_search`."""
        view = self._vectors.view()
        view.flags.writeable = False
        return view

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Looks up vectors.

        Args:
            ids: n image ids of the index.

        Returns:
            (n, dimension) float32, a copy.

        Raises:
            ValueError: If an id is not in the index.
        """
        return take_rows(self._vectors, rows_of(ids, self._rows))

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
        if k < 1:
            raise ValueError(f"search: got k={k}, expected at least 1")
        excluded = excluded_rows(exclude, self._rows, len(queries))
        if not len(self):
            return [Ranking((), ()) for _ in queries]
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
        if len(target_ids) != len(queries):
            raise ValueError(
                f"rank_of: got {len(target_ids)} targets for {len(queries)} queries, expected as many"
            )
        targets = rows_of(target_ids, self._rows)
        excluded = excluded_rows(exclude, self._rows, len(queries))
        for number, (target, left_out) in enumerate(zip(targets, excluded, strict=True)):
            if target in left_out:
                raise ValueError(
                    f"rank_of: query {number}: target {self._ids[target]!r} is excluded, so it has no rank; "
                    "take it out of the exclusions or leave the query out"
                )
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
        """Writes the index, `manifest.json` last.

        A kill leaves the folder's old index whole, or a folder without manifest, which `open` refuses.

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
        if expect_fingerprint is not None and manifest.model_fingerprint != expect_fingerprint:
            raise ValueError(
                f"{folder}: another model's index: got {manifest.model_fingerprint} ({manifest.model_name}), "
                f"expected {expect_fingerprint}; {REBUILD}"
            )
        if expect_dimension is not None and manifest.dimension != expect_dimension:
            raise ValueError(
                f"{folder}: got dimension {manifest.dimension}, expected {expect_dimension}; {REBUILD}"
            )
        manifest.verify_files(folder)
        ids = json.loads((folder / IDS_FILE).read_text(encoding="utf-8"))
        if not isinstance(ids, list) or len(ids) != manifest.count:
            got = len(ids) if isinstance(ids, list) else "no list of"
            raise ValueError(f"{folder / IDS_FILE}: got {got} entries, expected {manifest.count}; {REBUILD}")
        index = cls(manifest.dimension)
        index._vectors = open_vectors(folder / VECTORS_FILE, manifest.count, manifest.dimension, REBUILD)
        index._ids = tuple(ids)
        index._rows = {image_id: row for row, image_id in enumerate(index._ids)}
        if len(index._rows) < len(ids) or not all(isinstance(one, str) and one for one in ids):
            raise ValueError(f"{folder / IDS_FILE}: got empty or repeated ids; {REBUILD}")
        if manifest.kind != "flat":
            from index.approximate import Approximate

            index._approximate = Approximate.read(folder / APPROXIMATE_FILE, manifest)
        index.manifest = manifest
        return index
