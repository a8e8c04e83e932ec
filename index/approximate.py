"""FAISS's approximate indexes for very many vectors: HNSW, IVF, IVF with product quantisation.

They name candidates only, by distance, which orders unit vectors as the cosine does and suits these
structures. The candidates are scored exactly from the stored vectors, so that scores and their order are
those of an exact search, and only what was not named can be missing. How much that is is measured against
exact search, and the effort of a search is raised until recall at 10 is high enough.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np

from index.exact_search import blocks_of, exact_pairs, list_rows, take_rows
from index.kinds import LINKS
from index.manifest import REBUILD, Manifest
from settings import IndexKind

log = logging.getLogger(__name__)

RECALL_DEPTH = 10
RECALL_WANTED = 0.95
RECALL_AIMED = 0.97  # while effort is raised: other questions may be harder than the sampled ones
SAMPLED_QUERIES = 200
TRAINING_ROWS_PER_LIST = 40
CANDIDATES = {"hnsw": 4, "ivf": 4, "ivfpq": 20}  # named for each image wanted: codes rank roughly
LARGEST_EFFORT = 4096
FAISS_TYPES = {
    "hnsw": faiss.IndexHNSWSQ,
    "ivf": faiss.IndexIVFScalarQuantizer,
    "ivfpq": faiss.IndexIVFPQ,
}


@dataclass(frozen=True, eq=False)
class Approximate:
    """An approximate index beside the vectors that it was built from.

    Attributes:
        kind: Which.
        store: FAISS's.
        effort: Vectors kept in view (HNSW) or lists visited (IVF) by a search; more find more.
        recall: Share of the truly 10 best that a search lists, measured with `effort`.
    """

    kind: IndexKind
    store: Any
    effort: int
    recall: float

    def list_rows(
        self, queries: np.ndarray, vectors: np.ndarray, k: int, excluded: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """As `index.exact_search.list_rows`, but a row may be missing.

        Where the candidates do not suffice, because many are excluded, the search is exact.
        """
        most = max((len(rows) for rows in excluded), default=0)
        wanted = min(len(vectors), k * CANDIDATES[self.kind] + most)
        if 2 * wanted > len(vectors):
            return list_rows(queries, vectors, k, excluded)
        rows = np.sort(self._named(queries, wanted), axis=1)  # of equal scores the lower row comes first
        which = np.repeat(np.arange(len(queries)), wanted)
        scores = exact_pairs(queries, which, vectors, rows.ravel().clip(0)).reshape(rows.shape)
        scores[rows < 0] = -np.inf  # FAISS's sign for "no more"
        found = []
        for number, left_out in enumerate(excluded):
            if len(left_out):
                scores[number, np.isin(rows[number], left_out)] = -np.inf
            best = np.argsort(-scores[number], kind="stable")[:k]
            best = best[scores[number, best] > -np.inf]
            if len(best) < min(k, len(vectors) - len(left_out)):
                found += list_rows(queries[number : number + 1], vectors, k, [left_out])
            else:
                found.append((rows[number, best], scores[number, best]))
        return found

    def _named(self, queries: np.ndarray, count: int) -> np.ndarray:
        if self.kind == "hnsw":
            options = faiss.SearchParametersHNSW(efSearch=max(self.effort, count))  # type: ignore[attr-defined]
        else:
            options = faiss.SearchParametersIVF(nprobe=self.effort)  # type: ignore[call-arg]
        return self.store.search(queries, count, params=options)[1]

    def write(self, path: Path) -> None:
        """Writes the FAISS index; kind, effort and recall are the manifest's."""
        try:
            faiss.write_index(self.store, str(path))
        except RuntimeError as error:  # a full disk, say, is no OSError there
            raise OSError(" ".join(str(error).split())) from error

    @classmethod
    def read(cls, path: Path, manifest: Manifest) -> Approximate:
        """Reads what `write` wrote; the manifest says the rest.

        Raises:
            ValueError: If it is of another kind or size.
        """
        kind = cast(IndexKind, manifest.kind)
        expected = FAISS_TYPES[kind]
        store = faiss.read_index(str(path))
        if (type(store), store.ntotal, store.d) != (expected, manifest.count, manifest.dimension):
            raise ValueError(
                f"{path}: got a {type(store).__name__} of {store.ntotal} vectors, expected a "
                f"{expected.__name__} of {manifest.count}; {REBUILD}"
            )
        return cls(kind, store, manifest.effort, manifest.recall_at_10)


def build_approximate(
    vectors: np.ndarray, kind: IndexKind, sampled: np.ndarray | None = None, seed: int = 0
) -> Approximate:
    """Builds an approximate index and raises its effort until it finds enough.

    Args:
        vectors: (n, d) float32 unit rows; read block by block.
        kind: "hnsw", "ivf" or "ivfpq".
        sampled: (q, d) float32 unit rows like those that will be asked; when None, sums of two stored
            vectors, which lie between images as questions do.
        seed: Of training and sampling.

    Returns:
        The index, with the recall that was measured.
    """
    count, dimension = vectors.shape
    lists = max(1, min(int(2 * count**0.5), count // TRAINING_ROWS_PER_LIST))
    store = faiss.index_factory(dimension, _description(kind, dimension, lists), faiss.METRIC_L2)
    random = np.random.default_rng(seed)
    chosen = random.choice(count, min(count, max(TRAINING_ROWS_PER_LIST * lists, 20_000)), replace=False)
    log.info("%s index: training on %d of %d vectors", kind, len(chosen), count)
    store.train(take_rows(vectors, np.sort(chosen)))
    for _, block in blocks_of(vectors):
        store.add(block)
    asked = _between(vectors, random) if sampled is None else sampled
    largest = LARGEST_EFFORT if kind == "hnsw" else lists
    return _tuned(Approximate(kind, store, 1, 0.0), vectors, asked, largest)


def measure_recall(approximate: Approximate, vectors: np.ndarray, queries: np.ndarray) -> float:
    """Returns the share of the truly 10 best rows that a search lists, on average; equal scores are equal."""
    nobody = [np.empty(0, dtype=np.int64)] * len(queries)
    truth = list_rows(queries, vectors, RECALL_DEPTH, nobody)
    return _recall(approximate, vectors, queries, truth)


def _between(vectors: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Makes unit rows that each lie between two stored ones."""
    pairs = random.integers(len(vectors), size=(2, SAMPLED_QUERIES))
    sums = take_rows(vectors, pairs[0]).astype(np.float64) + take_rows(vectors, pairs[1])
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    usable = lengths[:, 0] > 1e-3  # opposite vectors have nothing between them
    return (sums[usable] / lengths[usable]).astype(np.float32)


def _tuned(approximate: Approximate, vectors: np.ndarray, queries: np.ndarray, largest: int) -> Approximate:
    nobody = [np.empty(0, dtype=np.int64)] * len(queries)
    truth = list_rows(queries, vectors, RECALL_DEPTH, nobody)
    effort = min(16, largest)
    while True:
        approximate = Approximate(approximate.kind, approximate.store, effort, 0.0)
        recall = _recall(approximate, vectors, queries, truth)
        approximate = Approximate(approximate.kind, approximate.store, effort, recall)
        if recall >= max(RECALL_AIMED, RECALL_WANTED) or effort >= largest:
            break
        effort = min(2 * effort, largest)
    say = log.info if recall >= RECALL_WANTED else log.warning
    say(
        "%s index: recall@%d %.3f against exact search, on %d sampled queries with effort %d%s",
        approximate.kind, RECALL_DEPTH, recall, len(queries), effort,
        "" if recall >= RECALL_WANTED else f"; {RECALL_WANTED} cannot be reached: use --index-kind flat",
    )  # fmt: skip
    return approximate


def _recall(
    approximate: Approximate,
    vectors: np.ndarray,
    queries: np.ndarray,
    truth: Sequence[tuple[np.ndarray, np.ndarray]],
) -> float:
    nobody = [np.empty(0, dtype=np.int64)] * len(queries)
    found = approximate.list_rows(queries, vectors, RECALL_DEPTH, nobody)
    shares = [
        np.count_nonzero(scores >= best[-1]) / len(best)
        for (_, scores), (_, best) in zip(found, truth, strict=True)
    ]
    return float(np.mean(shares))


def _description(kind: IndexKind, dimension: int, lists: int) -> str:
    """Names the index for FAISS's factory; one byte a number, for IVF-PQ one for about eight."""
    if kind == "hnsw":
        return f"HNSW{LINKS}_SQ8"
    if kind == "ivf":
        return f"IVF{lists},SQ8"
    if kind == "ivfpq":
        parts = next(parts for parts in range(max(1, dimension // 8), 0, -1) if dimension % parts == 0)
        return f"IVF{lists},PQ{parts}np"  # without polysemous training, which is slow and not used
    raise ValueError(f"approximate index: got kind {kind!r}, expected hnsw, ivf or ivfpq")
