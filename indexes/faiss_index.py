"""Image vectors in a FAISS file with their ids: exact search, exact ranks.

A folder holds `vectors.faiss` (an IndexFlatIP), `ids.json` (a list; row i is entry i) and `manifest.json`.
FAISS keeps and stores the vectors. The scores come from `indexes.exact_scores`, for searching and for ranking
alike: FAISS's own float32 scores change in the last bit with the batch size, and a rank counted with one
rounding would contradict a list sorted with another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from indexes.exact_scores import SCORES_AT_ONCE, best_rows, count_ahead, score_blocks, unit_rows
from indexes.exclusions import Exclusions, excluded_rows, rows_of
from indexes.manifest import (
    FORMAT_VERSION,
    IDS_FILE,
    MANIFEST_FILE,
    REBUILD,
    VECTORS_FILE,
    Manifest,
    file_sha256,
)
from indexes.replace_file import replace_file


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
        self._store = faiss.IndexFlatIP(dimension)
        self._ids: list[str] = []
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
        self._store.add(rows)  # type: ignore[call-arg]
        self._ids.extend(ids)
        self._rows.update(new)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> tuple[str, ...]:
        """The image ids, by row."""
        return tuple(self._ids)

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Looks up vectors.

        Args:
            ids: n image ids of the index.

        Returns:
            (n, dimension) float32, a copy.

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
        if k < 1:
            raise ValueError(f"search: got k={k}, expected at least 1")
        excluded = excluded_rows(exclude, self._rows, len(queries))
        if not len(self):
            return [Ranking((), ()) for _ in queries]
        rankings: list[Ranking] = []
        queries_at_once = max(1, SCORES_AT_ONCE // len(self))
        for first in range(0, len(queries), queries_at_once):
            part = queries[first : first + queries_at_once]
            scores = np.empty((len(part), len(self)), dtype=np.float64)
            for some, rows, block in score_blocks(part, self._vectors):
                scores[some, rows] = block
            for query_scores, left_out in zip(scores, excluded[first:], strict=False):
                query_scores[left_out] = -np.inf
                best = best_rows(query_scores, k)
                rankings.append(
                    Ranking(tuple(self._ids[row] for row in best), tuple(query_scores[best].tolist()))
                )
        return rankings

    def rank_of(
        self, vectors: np.ndarray, target_ids: Sequence[str], exclude: Exclusions | None = None
    ) -> np.ndarray:
        """Counts the place of one image per query in the whole collection, without sorting it.

        The rank is 1 + images with a higher score + images with the same score and an earlier row, excluded
        images aside: the place that `search` would list the image at.

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
        goals = np.einsum("qd,qd->q", queries.astype(np.float64), self._vectors[targets].astype(np.float64))
        ranks = np.ones(len(queries), dtype=np.int64)
        for some, rows, scores in score_blocks(queries, self._vectors):
            ranks[some] += count_ahead(scores, np.arange(rows.start, rows.stop), goals[some], targets[some])
        for number, left_out in enumerate(excluded):
            if len(left_out):
                scores = self._vectors[left_out].astype(np.float64) @ queries[number].astype(np.float64)
                one = slice(number, number + 1)
                ranks[one] -= count_ahead(scores[None], left_out, goals[one], targets[one])
        return ranks

    def save(
        self, folder: Path, *, model_name: str, model_fingerprint: str, dataset: str, image_folder: Path
    ) -> None:
        """Writes the index, `manifest.json` last.

        A kill leaves the folder's old index whole, or a folder without manifest, which `open` refuses.

        Args:
            folder: Created if missing; an index in it is replaced.
            model_name: Of the model that made the vectors.
            model_fingerprint: Of the same model.
            dataset: Name of the dataset.
            image_folder: The folder that the ids are relative to.

        Raises:
            ValueError: If the index is empty.
        """
        if not len(self):
            raise ValueError(f"{folder}: got an empty index to save, expected at least one image")
        folder.mkdir(parents=True, exist_ok=True)
        vectors = folder / (VECTORS_FILE + ".new")
        ids = folder / (IDS_FILE + ".new")
        text = json.dumps(self._ids, ensure_ascii=False, indent=0)
        replace_file(vectors, lambda path: faiss.write_index(self._store, str(path)))
        replace_file(ids, lambda path: path.write_text(text, encoding="utf-8"))
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            dataset=dataset,
            image_folder=image_folder.as_posix(),
            model_name=model_name,
            model_fingerprint=model_fingerprint,
            dimension=self.dimension,
            count=len(self),
            sha256={VECTORS_FILE: file_sha256(vectors), IDS_FILE: file_sha256(ids)},
        )
        (folder / MANIFEST_FILE).unlink(missing_ok=True)
        vectors.replace(folder / VECTORS_FILE)
        ids.replace(folder / IDS_FILE)
        manifest.write(folder)
        self.manifest = manifest

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
        store = faiss.read_index(str(folder / VECTORS_FILE))
        if not isinstance(store, faiss.IndexFlatIP):
            raise ValueError(
                f"{folder / VECTORS_FILE}: got a {type(store).__name__}, expected an IndexFlatIP; {REBUILD}"
            )
        counts = {VECTORS_FILE: store.ntotal, IDS_FILE: len(ids) if isinstance(ids, list) else "no list of"}
        for name, count in counts.items():
            if count != manifest.count:
                raise ValueError(
                    f"{folder / name}: got {count} entries, expected {manifest.count}; {REBUILD}"
                )
        if store.d != manifest.dimension:
            raise ValueError(
                f"{folder / VECTORS_FILE}: got dimension {store.d}, expected {manifest.dimension}; {REBUILD}"
            )
        index = cls(manifest.dimension)
        index.add(ids, _stored(store))
        index.manifest = manifest
        return index

    @property
    def _vectors(self) -> np.ndarray:
        """(n, dimension) float32, without copying; valid until the next `add`."""
        return _stored(self._store)


def _stored(store: faiss.IndexFlatIP) -> np.ndarray:
    if not store.ntotal:
        return np.empty((0, store.d), dtype=np.float32)
    return faiss.rev_swig_ptr(store.get_xb(), store.ntotal * store.d).reshape(store.ntotal, store.d)
