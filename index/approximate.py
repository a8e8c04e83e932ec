"""Which kind of index suits how many vectors, and FAISS's approximate ones: HNSW and IVF.

They name candidates, by distance, which orders unit vectors as the cosine does. The candidates are scored
exactly from the stored vectors, so only what was not named can be missing. When an index is built, its recall
at 10 is measured against exact search, and the effort of a search is raised until the recall is high enough.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from index.scores import REBUILD, ROWS_AT_ONCE, best_rows, list_rows, unit_rows
from settings import IndexKind

log = logging.getLogger(__name__)

FLAT_BELOW = 1_000_000  # vectors; below it an exact search costs less than anything around it
HNSW_BELOW = 3_000_000  # building its graph is slow
MEMORY_SHARE = 0.5  # of the machine's, for what an approximate index keeps there
LINKS = 32  # of a vector in HNSW's graph, and twice as many on its lowest level

RECALL_DEPTH = 10
RECALL_WANTED = 0.95
RECALL_AIMED = 0.97  # while effort is raised: other questions may be harder than the sampled ones
SAMPLED_QUERIES = 200
TRAINING_ROWS_PER_LIST = 40
CANDIDATES = 4  # named for each image wanted: codes of a byte a number rank roughly
LARGEST_EFFORT = 4096
FAISS_TYPES = {"hnsw": faiss.IndexHNSWSQ, "ivf": faiss.IndexIVFScalarQuantizer}


def choose_kind(count: int, dimension: int, memory: int | None = None) -> IndexKind:
    """Picks the kind of index for so many vectors: exact while that is fast, then the best that fits.

    `memory` are the bytes of the machine; asked of the system when None.
    """
    if count < FLAT_BELOW:
        return "flat"
    allowed = MEMORY_SHARE * (_memory_bytes() if memory is None else memory)
    graph = count * (dimension + 2 * LINKS * 4 + 16)  # a byte a number, and links
    return "hnsw" if count < HNSW_BELOW and graph <= allowed else "ivf"


@dataclass(frozen=True, eq=False)
class Approximate:
    """An approximate index (FAISS's, in `store`) beside the vectors that it was built from.

    `effort` is how many vectors are kept in view (HNSW) or lists visited (IVF) by a search; more find more.
    `recall` is the share of the truly 10 best that a search lists, measured with `effort`.
    """

    kind: IndexKind
    store: Any
    effort: int
    recall: float

    def list_rows(
        self, queries: np.ndarray, vectors: np.ndarray, k: int, excluded: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """As `index.scores.list_rows`, but a row may be missing.

        Where the candidates do not suffice, because many are excluded, the search is exact.
        """
        wanted = k * CANDIDATES + max((len(rows) for rows in excluded), default=0)
        if 2 * wanted > len(vectors):
            return list_rows(queries, vectors, k, excluded)
        if self.kind == "hnsw":
            options = faiss.SearchParametersHNSW(efSearch=max(self.effort, wanted))  # type: ignore[attr-defined]
        else:
            options = faiss.SearchParametersIVF(nprobe=self.effort)  # type: ignore[call-arg]
        named = self.store.search(queries, wanted, params=options)[1]
        found = []
        for number, left_out in enumerate(excluded):
            rows = np.setdiff1d(named[number], [-1, *left_out])  # sorted; -1 is FAISS's sign for "no more"
            scores = vectors[rows].astype(np.float64) @ queries[number].astype(np.float64)
            best = best_rows(scores, k)
            if len(best) < min(k, len(vectors) - len(left_out)):
                found += list_rows(queries[number : number + 1], vectors, k, [left_out])
            else:
                found.append((rows[best], scores[best]))
        return found

    def write(self, path: Path) -> None:
        """Writes the FAISS index; kind, effort and recall are the manifest's."""
        try:
            faiss.write_index(self.store, str(path))
        except RuntimeError as error:  # a full disk, say, is no OSError there
            raise OSError(" ".join(str(error).split())) from error

    @classmethod
    def read(
        cls, path: Path, vectors: np.ndarray, kind: IndexKind, effort: int, recall: float
    ) -> Approximate:
        """Reads what `write` wrote; ValueError if it is of another kind or size."""
        store, expected = faiss.read_index(str(path)), FAISS_TYPES[kind]
        if (type(store), store.ntotal, store.d) != (expected, *vectors.shape):
            raise ValueError(
                f"{path}: got a {type(store).__name__} of {store.ntotal} vectors, expected a "
                f"{expected.__name__} of {len(vectors)}; {REBUILD}"
            )
        return cls(kind, store, effort, recall)


def build_approximate(vectors: np.ndarray, kind: IndexKind) -> Approximate:
    """Builds "hnsw" or "ivf" over (n, d) float32 unit rows, and raises its effort until it finds enough.

    Recall is measured with sums of two stored vectors, which lie between images as questions do.
    """
    count, dimension = vectors.shape
    lists = max(1, min(int(2 * count**0.5), count // TRAINING_ROWS_PER_LIST))
    # SQ8: one byte a number.
    description = f"HNSW{LINKS}_SQ8" if kind == "hnsw" else f"IVF{lists},SQ8"
    store = faiss.index_factory(dimension, description, faiss.METRIC_L2)
    random = np.random.default_rng(0)  # of training and sampling
    chosen = random.choice(count, min(count, max(TRAINING_ROWS_PER_LIST * lists, 20_000)), replace=False)
    log.info("%s index: training on %d of %d vectors", kind, len(chosen), count)
    store.train(vectors[np.sort(chosen)])
    for first in range(0, count, ROWS_AT_ONCE):
        store.add(np.array(vectors[first : first + ROWS_AT_ONCE]))  # a copy is aligned, as FAISS needs it
    # On the grid, or scores would be rounded: whether a row ties with the tenth best would be chance.
    queries = unit_rows(_between(vectors, random), dimension, "sampled queries")
    truth = list_rows(queries, vectors, RECALL_DEPTH, [np.empty(0, dtype=np.int64)] * len(queries))
    largest = LARGEST_EFFORT if kind == "hnsw" else lists
    built = Approximate(kind, store, min(16, largest), 0.0)
    while (
        recall := measure_recall(built, vectors, queries, truth)
    ) < RECALL_AIMED and built.effort < largest:
        built = dataclasses.replace(built, effort=min(2 * built.effort, largest))
    enough = recall >= RECALL_WANTED
    log.log(
        logging.INFO if enough else logging.WARNING,
        "%s index: recall@%d %.3f against exact search, on %d sampled queries with effort %d%s",
        kind, RECALL_DEPTH, recall, len(queries), built.effort,
        "" if enough else f"; {RECALL_WANTED} cannot be reached: use --index-kind flat",
    )  # fmt: skip
    return dataclasses.replace(built, recall=recall)


def measure_recall(
    approximate: Approximate,
    vectors: np.ndarray,
    queries: np.ndarray,
    truth: Sequence[tuple[np.ndarray, np.ndarray]],
) -> float:
    """Returns the share of the truly best rows that a search lists, on average; equal scores are equal.

    `vectors` and `queries` are float32 unit rows, `truth` is what `index.scores.list_rows` finds.
    """
    nobody = [np.empty(0, dtype=np.int64)] * len(queries)
    found = approximate.list_rows(queries, vectors, RECALL_DEPTH, nobody)
    shares = [
        np.sum(scores >= best[-1]) / len(best) for (_, scores), (_, best) in zip(found, truth, strict=True)
    ]
    return float(np.mean(shares))


def _between(vectors: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Makes unit rows that each lie between two stored ones."""
    pairs = random.integers(len(vectors), size=(2, SAMPLED_QUERIES))
    sums = vectors[pairs[0]].astype(np.float64) + vectors[pairs[1]]
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    usable = lengths[:, 0] > 1e-3  # opposite vectors have nothing between them
    return (sums[usable] / lengths[usable]).astype(np.float32)


def _memory_bytes() -> int:
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 8 << 30  # Windows does not say
