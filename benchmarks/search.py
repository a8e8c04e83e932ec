"""Lists and ranks over many vectors, against FAISS's own flat index and another graph.

    python -m benchmarks.search --sizes 31783 1000000

The vectors are made up: clusters on the unit sphere, each spread in 32 directions; the queries come from the
same clusters; all lies in the folder of TMPDIR. Every engine builds and searches in a process of its own,
with one thread and with two. What it finds is held against float64 products over all vectors. FAISS has no
ranks: its flat index sorts all vectors, for a few queries, as code does that looks a target up in the whole
list. USearch's HNSW graph (requirements/dev.txt) has none; it is built in 10 minutes over a million vectors.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import Watch, anonymous_mb, in_a_process, in_turns, parser, report
from settings import run_script

log = logging.getLogger(__name__)

ENGINES = ("flat", "hnsw", "ivf", "faiss-flat", "usearch")
OWN = ENGINES[:3]  # this project's
LISTED = 10
MADE_UP = "synthetic"
CLUSTER = 500  # vectors in a cluster, on average
DIMENSION = 256
DIRECTIONS = 32
BLOCK = 65_536
SORTED = 4  # queries for which FAISS sorts all vectors
ALONE = 10  # queries asked one at a time
LINKS = 32  # of a vector in USearch's graph, as in `index.approximate`
REPEATS = 3
GRID = 2.0**26  # the index keeps numbers rounded to this grid; so do these vectors
Search = Callable[[np.ndarray], list[list[int]]]
Rank = Callable[[np.ndarray, np.ndarray], list[int]]


def main() -> None:
    """Runs from the command line."""
    read = parser(__doc__)
    read.add_argument("--sizes", type=int, nargs="+", default=[31_783, 1_000_000], help="numbers of vectors")
    read.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES, help="which to measure")
    read.add_argument("--queries", type=int, default=256, help="queries asked together, as in a round")
    read.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to search with"
    )
    arguments = read.parse_args()
    if "usearch" in arguments.engines and importlib.util.find_spec("usearch") is None:
        log.warning("USearch is left out: it is not installed; pip install -r requirements/dev.txt")
        arguments.engines.remove("usearch")
    rows = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(arguments, size, Path(folder))
    report("search", arguments, rows)


def measure(arguments: argparse.Namespace, size: int, folder: Path) -> list[dict[str, Any]]:
    """Builds and searches so many vectors with every engine, in an empty folder; returns their rows."""
    log.info("%d vectors: making them", size)
    in_a_process(1, _make, folder, size, arguments.queries)
    rows = []
    for engine in arguments.engines:
        built = in_a_process(max(arguments.threads), _build, engine, folder)
        for threads in arguments.threads:
            found = in_a_process(threads, _search, engine, folder)
            rows.append({"engine": engine, "vectors": size, "threads": threads} | built | found)
            log.info("%s, %d threads: %.0f queries/CPU s", engine, threads, found["queries/CPU s"])
        shutil.rmtree(folder / engine)
    plain = {row["threads"]: row["queries/CPU s"] for row in rows if row["engine"] == "faiss-flat"}
    for row in rows:
        if row["threads"] in plain:
            row["times faiss-flat"] = row["queries/CPU s"] / plain[row["threads"]]
    return rows


def clustered(count: int, stream: int, clusters: int) -> Iterator[np.ndarray]:
    """Yields blocks of unit rows around the same centers; each stream has rows of its own."""
    common = np.random.default_rng(0)
    centers = common.standard_normal((clusters, DIMENSION), dtype=np.float32)
    directions = common.standard_normal((DIRECTIONS, DIMENSION), dtype=np.float32) / DIRECTIONS**0.5
    random = np.random.default_rng([0, stream])
    for first in range(0, count, BLOCK):
        rows = min(BLOCK, count - first)
        block = random.standard_normal((rows, DIRECTIONS), dtype=np.float32) @ directions
        block += centers[random.integers(clusters, size=rows)]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        yield np.round(block * GRID) / GRID


def _make(folder: Path, count: int, queries: int) -> None:
    """Writes vectors, queries, each query's target row, its 10 best rows and the target's rank."""
    clusters = max(1, count // CLUSTER)
    path = folder / "vectors.npy"
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (count, DIMENSION))
    for number, block in enumerate(clustered(count, 1, clusters)):
        vectors[number * BLOCK : number * BLOCK + len(block)] = block
    vectors.flush()
    asked = np.concatenate(list(clustered(queries, 2, clusters)))
    targets = np.linspace(0, count - 1, queries, dtype=np.int64)
    goals = np.einsum("qd,qd->q", asked.astype(np.float64), vectors[targets].astype(np.float64))[:, None]
    best = np.empty((queries, 0), dtype=np.int64)
    scores = np.empty((queries, 0))
    ranks = np.ones(queries, dtype=np.int64)
    for first in range(0, count, BLOCK):
        block = vectors[first : first + BLOCK].astype(np.float64)
        fresh, rows = asked.astype(np.float64) @ block.T, np.arange(first, first + len(block))
        ranks += ((fresh > goals) | ((fresh == goals) & (rows < targets[:, None]))).sum(axis=1)
        scores = np.hstack([scores, fresh])
        best = np.hstack([best, np.broadcast_to(rows, fresh.shape)])
        order = np.argsort(-scores, axis=1, kind="stable")[:, :LISTED]  # of equal scores the earlier row
        scores, best = np.take_along_axis(scores, order, 1), np.take_along_axis(best, order, 1)
    np.savez(folder / "queries.npz", asked=asked, targets=targets, best=best, ranks=ranks)


def _build(engine: str, folder: Path) -> dict[str, float]:
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    (folder / engine).mkdir()
    watch = Watch()
    if engine in OWN:
        blocks = (vectors[first : first + BLOCK] for first in range(0, len(vectors), BLOCK))
        write_index(folder / engine, len(vectors), blocks, engine)
    elif engine == "usearch":
        graph = _usearch()
        graph.add(np.arange(len(vectors)), np.ascontiguousarray(vectors), threads=_threads())
        graph.save(str(folder / engine / "index"))
    else:
        import faiss

        store = faiss.IndexFlatIP(vectors.shape[1])
        store.add(np.ascontiguousarray(vectors))  # type: ignore[call-arg]  # faiss types its own wrapper wrongly
        faiss.write_index(store, str(folder / engine / "index"))
    seconds = watch.wall()
    disk = sum(path.stat().st_size for path in (folder / engine).iterdir())
    return {"build, s": seconds, "disk, MB": disk / 1e6}


def write_index(folder: Path, count: int, blocks: Iterable[np.ndarray], kind: str) -> None:
    """Writes an index of made-up vectors, of the pictures ``0.jpg``, ``1.jpg`` and so on."""
    from index.folder import write_folder

    write_folder(
        folder,
        [f"{number}.jpg" for number in range(count)],
        blocks,
        dimension=DIMENSION,
        model_name=MADE_UP,
        model_fingerprint=MADE_UP,
        dataset=MADE_UP,
        image_folder=Path("/", MADE_UP),
        kind=kind,  # type: ignore[arg-type]
    )


def _usearch() -> Any:
    from usearch.index import Index

    return Index(
        ndim=DIMENSION, metric="ip", dtype="f32", connectivity=LINKS, expansion_add=128, expansion_search=512
    )


def _threads() -> int:
    return int(os.environ["OMP_NUM_THREADS"])  # `in_a_process` sets it


def _search(engine: str, folder: Path) -> dict[str, Any]:
    told = np.load(folder / "queries.npz")
    asked, targets = told["asked"], told["targets"]
    before = anonymous_mb()
    search, rank = _open(engine, folder)
    search(asked[:2])  # loads what is loaded at first use
    some = slice(SORTED if engine == "faiss-flat" else None)
    ways: dict[str, Callable[[], list[Any]]] = {
        "together": lambda: search(asked),
        "alone": lambda: [search(query[None]) for query in asked[:ALONE]],
    }
    if rank is not None:
        ways["ranks"] = lambda: rank(asked[some], targets[some])
    timed = in_turns(ways, REPEATS)
    found = zip(told["best"].tolist(), timed["together"].result, strict=True)
    row = {
        "queries/s": len(asked) / timed["together"].wall,
        "queries/CPU s": len(asked) / timed["together"].cpu,
        "one query alone, CPU ms": 1000 * timed["alone"].cpu / len(asked[:ALONE]),
        "recall@10": float(np.mean([len({*true} & {*got}) / LISTED for true, got in found])),
        "ranks/CPU s": None,
        "right ranks": None,
        "memory, MB": anonymous_mb() - before,
    }
    if rank is not None:
        ranks = np.asarray(timed["ranks"].result)
        row |= {
            "ranks/CPU s": len(ranks) / timed["ranks"].cpu,
            "right ranks": float(np.mean(ranks == told["ranks"][some])),
        }
    return row


def _open(engine: str, folder: Path) -> tuple[Search, Rank | None]:
    """Opens an engine: a search for the 10 best rows of queries, and one for the rank of a row each."""
    path = str(folder / engine / "index")
    if engine == "usearch":
        graph = _usearch()
        graph.load(path)
        threads = _threads()
        # USearch leaves out an axis when there is one query.
        return (
            lambda queries: graph.search(queries, LISTED, threads=threads).keys.reshape(-1, LISTED).tolist(),
            None,
        )
    if engine == "faiss-flat":
        import faiss

        store = faiss.read_index(path)

        def look_up(queries: np.ndarray, rows: np.ndarray) -> list[int]:
            _, sorted_rows = store.search(queries, store.ntotal)
            return [1 + int(np.argmax(one == row)) for one, row in zip(sorted_rows, rows, strict=True)]

        return lambda queries: store.search(queries, LISTED)[1].tolist(), look_up
    from index.faiss_index import FaissIndex

    index = FaissIndex.open(folder / engine)

    def ask(queries: np.ndarray) -> list[list[int]]:
        return [[int(one[:-4]) for one in ranking.ids] for ranking in index.search(queries, LISTED)]

    return ask, lambda queries, rows: list(index.rank_of(queries, [f"{row}.jpg" for row in rows]))


if __name__ == "__main__":
    raise SystemExit(run_script(main))
