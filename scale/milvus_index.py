"""Image vectors in a Milvus collection: the same lists and ranks as `FaissIndex`, from a database.

Milvus names candidates by float32 scores, which change in the last bit from machine to machine. They are
scored again exactly from their vectors, and more are fetched while images that were not named could still
belong to the list. So with the kind "flat" lists, scores and ties are those of `FaissIndex`; with "hnsw" an
image may be missing. Ranks read all vectors block by block, whatever the kind: exact, and as dear as the
collection is large (docs/scale.md).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from index.approximate import FLAT_BELOW
from index.faiss_index import FaissIndex, Ranking
from index.folder import FORMAT_VERSION, Manifest
from index.scores import Exclusions, best_rows, excluded_rows, rows_of, score_blocks, unit_rows
from scale.milvus_collection import BYTES_AT_ONCE, LONGEST_ID, MAX_RECORDS, REBUILD, MilvusCollection
from settings import IndexKind

log = logging.getLogger(__name__)

SPARE_CANDIDATES = 16
QUERIES_AT_ONCE = 64


class MilvusIndex:
    """An opened collection; its ids are kept in memory, its vectors are not.

    Another process's changes are not seen: what no longer fits is an error, and opening again helps.

    Attributes:
        dimension: Width of a vector.
        manifest: What the collection says of itself.
    """

    def __init__(self, collection: MilvusCollection, manifest: Manifest, next_row: int) -> None:
        """Takes what `open` and `create` have checked."""
        self.dimension = manifest.dimension
        self.manifest = manifest
        self._collection = collection
        self._next_row = next_row
        self._block = max(1, min(4096, BYTES_AT_ONCE // (4 * manifest.dimension)))
        self._hold((), np.empty(0, dtype=np.int64))

    @classmethod
    def create(
        cls,
        address: str,
        dimension: int,
        *,
        model_name: str,
        model_fingerprint: str,
        dataset: str,
        image_folder: Path,
        kind: IndexKind = "flat",
        replace: bool = False,
    ) -> MilvusIndex:
        """Makes an empty collection.

        Args:
            address: As in the setting INDEX.
            dimension: Width of a vector.
            model_name: Of the model that makes the vectors.
            model_fingerprint: Of the same model.
            dataset: Name of the dataset.
            image_folder: The folder that the ids are relative to.
            kind: "flat" or "hnsw".
            replace: Drop the image index that is there; anything else is left alone.

        Raises:
            ModuleNotFoundError: If pymilvus is not installed.
            ConnectionError: If there is no server, or it refuses.
            ValueError: If the kind is another, or a collection is there that may not be dropped.
        """
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            dataset=dataset,
            image_folder=image_folder.as_posix(),
            model_name=model_name,
            model_fingerprint=model_fingerprint,
            dimension=dimension,
            count=0,
            kind=kind,
            effort=0,
            recall_at_10=1.0,
            sha256={},
        )
        with contextlib.ExitStack() as on_error:
            collection = MilvusCollection(address)
            on_error.callback(collection.close)
            if collection.exists():
                collection.read_manifest()
                if not replace:
                    raise ValueError(f"{address}: the collection is there; {REBUILD}")
                collection.drop()
            collection.create(manifest)
            on_error.pop_all()
        return cls(collection, manifest, 0)

    @classmethod
    def open(
        cls, address: str, expect_fingerprint: str | None = None, expect_dimension: int | None = None
    ) -> MilvusIndex:
        """Opens a collection after checking what it says of itself; reads all its ids.

        Args:
            address: As in the setting INDEX.
            expect_fingerprint: Of the model that will encode the queries.
            expect_dimension: Of the same model.

        Raises:
            ModuleNotFoundError: If pymilvus is not installed.
            FileNotFoundError: If there is no such collection.
            ConnectionError: If there is no server, or it refuses.
            ValueError: If the collection is none of ours, a change of it was interrupted, or another model
                made its vectors.
        """
        with contextlib.ExitStack() as on_error:
            collection = MilvusCollection(address)
            on_error.callback(collection.close)
            if not collection.exists():
                raise FileNotFoundError(
                    f"{address}: no such collection; fill it with: python embed_image_as_faiss.py "
                    "--index ADDRESS"
                )
            manifest, next_row = collection.read_manifest()
            if expect_fingerprint is not None and manifest.model_fingerprint != expect_fingerprint:
                raise ValueError(
                    f"{address}: another model's index: got {manifest.model_fingerprint} "
                    f"({manifest.model_name}), expected {expect_fingerprint}; name another collection, or "
                    f"{REBUILD}"
                )
            if expect_dimension is not None and manifest.dimension != expect_dimension:
                raise ValueError(
                    f"{address}: got dimension {manifest.dimension}, expected {expect_dimension}; {REBUILD}"
                )
            count = collection.load()
            keys, ids = collection.between(0, next_row, "image_id")
            if not count == len(ids) == len(set(ids)) == manifest.count:
                raise ValueError(
                    f"{address}: got {count} vectors and {len(set(ids))} ids in their rows, expected "
                    f"{manifest.count} of each: a change was interrupted; {REBUILD}"
                )
            index = cls(collection, manifest, next_row)
            index._hold(tuple(ids), keys)
            on_error.pop_all()
        return index

    @classmethod
    def exists(cls, address: str) -> bool:
        """Tells whether there is such a collection.

        Raises:
            ModuleNotFoundError: If pymilvus is not installed.
            ConnectionError: If there is no server, or it refuses.
        """
        with contextlib.closing(MilvusCollection(address)) as collection:
            return collection.exists()

    @classmethod
    def filled_from(
        cls, source: FaissIndex, address: str, kind: IndexKind = "auto", rebuild: bool = False
    ) -> MilvusIndex:
        """Makes a collection hold what a saved index holds: appends, deletes, or writes it anew.

        It is written anew when it is not there, or where rows would have to change places, since of equal
        scores the earlier row comes first. A vector that changed under its old id is not noticed: use
        `rebuild`.

        Args:
            source: Saved or opened.
            address: As in the setting INDEX.
            kind: "flat", "hnsw", or "auto" by size; of a collection that is written anew.
            rebuild: Drop what is there.

        Raises:
            ModuleNotFoundError, ConnectionError, ValueError: As `open` and `create`; ValueError also if the
                source was not saved.
        """
        made_by = source.manifest
        if made_by is None:
            raise ValueError(
                f"{address}: got an index in memory, expected a saved one, which names its model"
            )
        if not rebuild and cls.exists(address):
            index = cls.open(address, made_by.model_fingerprint, made_by.dimension)
            wanted = frozenset(source.ids)
            kept = tuple(image_id for image_id in index.ids if image_id in wanted)
            if source.ids[: len(kept)] == kept:
                index.delete([image_id for image_id in index.ids if image_id not in wanted])
                index.add(source.ids[len(kept) :], source.vectors[len(kept) :])
                return index
            log.warning("%s: the images are in another order; writing the collection anew", address)
        if kind == "auto":
            kind = "flat" if len(source) < FLAT_BELOW else "hnsw"
        index = cls.create(
            address,
            source.dimension,
            model_name=made_by.model_name,
            model_fingerprint=made_by.model_fingerprint,
            dataset=made_by.dataset,
            image_folder=Path(made_by.image_folder),
            kind=kind,
            replace=True,
        )
        index.add(source.ids, source.vectors)
        return index

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> tuple[str, ...]:
        """The image ids, by row."""
        return self._ids

    @property
    def kind(self) -> str:
        """How it searches: "flat", exactly, or "hnsw"."""
        return self.manifest.kind

    def close(self) -> None:
        """Lets go of the server, or of Milvus Lite's file, which one process at a time may open."""
        self._collection.close()

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Appends images, block by block.

        A kill leaves whole blocks, to which the rest can be added, or a collection that `open` refuses.

        Args:
            ids: n image ids, none of them in the index yet.
            vectors: (n, dimension) float32, rows of unit length; may be a memory-mapped file.

        Raises:
            ValueError: If ids repeat, are empty or too long, or the vectors do not fit; the blocks before the
                one that does not fit are added.
            ConnectionError: If the server refuses.
        """
        if len(ids) != len(vectors):
            raise ValueError(f"index: got {len(ids)} ids for {len(vectors)} vectors, expected as many")
        new: set[str] = set()
        for image_id in ids:
            if not isinstance(image_id, str) or not 0 < len(image_id.encode()) <= LONGEST_ID:
                raise ValueError(
                    f"index: got image id {image_id!r}, expected a string of 1 to {LONGEST_ID} bytes"
                )
            if image_id in self._rows or image_id in new:
                raise ValueError(f"index: image id {image_id!r} occurs twice; ids must be unique")
            new.add(image_id)
        old = self._next_row
        try:
            for first in range(0, len(ids), self._block):
                some = ids[first : first + self._block]
                rows = unit_rows(vectors[first : first + len(some)], self.dimension, "image vectors")
                self._collection.insert(np.arange(len(some)) + self._next_row, some, rows)
                self._changed(self.manifest.count + len(some), self._next_row + len(some))
        finally:
            added = np.arange(old, self._next_row)
            self._hold(self._ids + tuple(ids[: len(added)]), np.concatenate([self._keys, added]))

    def delete(self, ids: Sequence[str]) -> None:
        """Takes images out; the rows after them move up.

        Raises:
            ValueError: If an id is not in the index; nothing is deleted then.
            ConnectionError: If the server refuses.
        """
        gone = np.unique(rows_of(ids, self._rows))
        if not len(gone):
            return
        self._collection.delete(self._keys[gone])
        left = np.setdiff1d(np.arange(len(self)), gone)
        self._changed(len(left), self._next_row)
        self._hold(tuple(self._ids[row] for row in left), self._keys[left])

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Looks up vectors; they come over the network, 4 bytes a number.

        Args:
            ids: n image ids of the index.

        Returns:
            (n, dimension) float32.

        Raises:
            ValueError: If an id is not in the index, or others changed the collection.
            ConnectionError: If the server refuses.
        """
        asked = rows_of(ids, self._rows)
        vectors = np.empty((len(asked), self.dimension), dtype=np.float32)
        for first in range(0, len(asked), self._block):
            keys = self._keys[asked[first : first + self._block]]
            vector_of = self._collection.read(np.unique(keys))
            for place, key in enumerate(keys.tolist(), start=first):
                if key not in vector_of:
                    raise self._stale()
                vectors[place] = vector_of[key]
        return vectors

    def search(self, vectors: np.ndarray, k: int, exclude: Exclusions | None = None) -> list[Ranking]:
        """Lists the nearest images of each query.

        Excluded images are fetched and dropped: one request then serves many queries, which a filter for each
        would not. Of more candidates than fit one answer all vectors are read, as for ranks.

        Args:
            vectors: (q, dimension) float32, rows of unit length.
            k: How many images to list, at least 1. Fewer come when fewer are left.
            exclude: For each query the images that may not be listed (ids, or an integer array of rows), or
                None.

        Returns:
            q rankings, in the order of `FaissIndex`.

        Raises:
            ValueError: If the vectors do not fit, k is below 1, an exclusion is unknown, or others
                changed the collection.
            ConnectionError: If the server refuses.
        """
        queries = unit_rows(vectors, self.dimension, "query vectors")
        if k < 1:
            raise ValueError(f"search: got k={k}, expected at least 1")
        excluded = excluded_rows(exclude, self._rows, len(queries))
        found: list[Ranking | None] = [None if len(self) else Ranking((), ())] * len(queries)
        most = max((len(rows) for rows in excluded), default=0)
        wanted = min(len(self), k + most + SPARE_CANDIDATES)
        while open_ones := [number for number, one in enumerate(found) if one is None]:
            if wanted > min(MAX_RECORDS, BYTES_AT_ONCE // (4 * self.dimension)):
                listed = self._listed_from_all(queries[open_ones], k, [excluded[one] for one in open_ones])
                for number, ranking in zip(open_ones, listed, strict=True):
                    found[number] = ranking
                break
            at_once = max(1, min(QUERIES_AT_ONCE, BYTES_AT_ONCE // (4 * self.dimension * wanted)))
            for first in range(0, len(open_ones), at_once):
                some = open_ones[first : first + at_once]
                named = self._collection.nearest(queries[some], wanted, self.kind)
                if self.kind == "flat" and any(len(keys) != wanted for keys, _, _ in named):
                    raise self._stale()
                for number, candidates in zip(some, named, strict=True):
                    found[number] = self._listed(queries[number], candidates, k, excluded[number])
            wanted = min(len(self), 4 * wanted)
        return [ranking for ranking in found if ranking is not None]

    def rank_of(
        self, vectors: np.ndarray, target_ids: Sequence[str], exclude: Exclusions | None = None
    ) -> np.ndarray:
        """Counts the place of one image per query in the whole collection, exactly.

        Reads all vectors once, however many queries there are.

        Args:
            vectors: (q, dimension) float32, rows of unit length.
            target_ids: q image ids.
            exclude: As in `search`.

        Returns:
            (q,) int64, from 1, as `FaissIndex` counts.

        Raises:
            ValueError: If the arguments do not fit, a target is unknown or itself excluded, or others changed
                the collection.
            ConnectionError: If the server refuses.
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
        own = self.vectors_of(target_ids)
        goals = exact_pairs(queries, np.arange(len(queries)), own, np.arange(len(queries)))
        ranks = np.ones(len(queries), dtype=np.int64)
        for some, rows, scores in self._all_scores(queries, excluded):
            ranks[some] += count_ahead(scores, rows, goals[some], targets[some])
        return ranks

    def _listed(
        self,
        query: np.ndarray,
        named: tuple[np.ndarray, np.ndarray, np.ndarray],
        k: int,
        left_out: np.ndarray,
    ) -> Ranking | None:
        """Orders one query's candidates exactly; None if others could belong among the k best."""
        keys, approximate, vectors = named
        if not all(key in self._row_of_key for key in keys.tolist()):
            raise self._stale()
        rows = np.array([self._row_of_key[key] for key in keys.tolist()], dtype=np.int64)
        order = np.argsort(rows)  # of equal scores the earlier row comes first
        rows, vectors = rows[order], vectors[order]
        scores = exact_pairs(query[None], np.zeros(len(rows), np.int64), vectors, np.arange(len(rows)))
        scores[np.isin(rows, left_out)] = -np.inf
        best = best_rows(scores, k)
        if len(rows) < len(self):
            if len(best) < k:
                return None
            if self.kind == "flat" and scores[best[-1]] <= approximate[-1] + 2 * score_error(self.dimension):
                return None
        return self._ranking(rows[best], scores[best])

    def _listed_from_all(self, queries: np.ndarray, k: int, excluded: list[np.ndarray]) -> list[Ranking]:
        kept = [(np.empty(0, np.int64), np.empty(0))] * len(queries)
        for some, rows, scores in self._all_scores(queries, excluded):
            for number, more in zip(range(len(queries))[some], scores, strict=True):
                both = np.concatenate([kept[number][0], rows]), np.concatenate([kept[number][1], more])
                best = np.sort(best_rows(both[1], k))  # by row again, for the ties of the next block
                kept[number] = both[0][best], both[1][best]
        ordered = [(rows, scores, best_rows(scores, k)) for rows, scores in kept]
        return [self._ranking(rows[best], scores[best]) for rows, scores, best in ordered]

    def _all_scores(
        self, queries: np.ndarray, excluded: Sequence[np.ndarray]
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Reads all vectors; yields queries, rows and exact scores, minus infinity for what is excluded."""
        for first in range(0, len(self), self._block):
            keys = self._keys[first : first + self._block]
            there, vectors = self._collection.between(int(keys[0]), int(keys[-1]) + 1, "vector")
            if not np.array_equal(there, keys):
                raise self._stale()
            for some, part, scores in score_blocks(queries, np.array(vectors, dtype=np.float32)):
                rows = np.arange(first, first + len(keys))[part]
                for number, left_out in enumerate(excluded[some]):
                    scores[number, np.isin(rows, left_out)] = -np.inf
                yield some, rows, scores

    def _ranking(self, rows: np.ndarray, scores: np.ndarray) -> Ranking:
        return Ranking(tuple(self._ids[row] for row in rows), tuple(scores.tolist()))

    def _changed(self, count: int, next_row: int) -> None:
        """Writes the new count beside the vectors, last."""
        self.manifest, self._next_row = dataclasses.replace(self.manifest, count=count), next_row
        self._collection.write_manifest(self.manifest, next_row)

    def _hold(self, ids: tuple[str, ...], keys: np.ndarray) -> None:
        self._ids, self._keys = ids, keys
        self._rows = {image_id: row for row, image_id in enumerate(ids)}
        self._row_of_key = {key: row for row, key in enumerate(keys.tolist())}

    def _stale(self) -> ValueError:
        return ValueError(
            f"{self._collection.address}: the collection no longer holds the {len(self)} images that it held "
            "when it was opened: another process changed it; start again"
        )


def score_error(dimension: int) -> float:
    """Returns how far a float32 score of two unit rows can be from the exact one."""
    return (dimension + 4) * 2.0**-24 * (1 + 1e-3) ** 2 * 1.01


def exact_pairs(queries: np.ndarray, which: np.ndarray, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Scores pairs of a query and a row exactly, (p,) float64."""
    return np.einsum("pd,pd->p", queries[which].astype(np.float64), vectors[rows].astype(np.float64))


def count_ahead(scores: np.ndarray, rows: np.ndarray, goals: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Counts, for each query, the rows that come before its target, (q,) int64."""
    higher = scores > goals[:, None]
    earlier = (scores == goals[:, None]) & (rows[None, :] < targets[:, None])
    return np.count_nonzero(higher | earlier, axis=1)
