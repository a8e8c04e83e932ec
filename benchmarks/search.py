"""Exact and approximate search over many vectors, against FAISS's own flat index and usearch.

    python -m benchmarks.search --sizes 31783 1000000

Vectors are synthetic: clusters on the unit sphere, each spread in 32 directions; the queries come from the
same clusters. Every engine builds and searches in a process of its own, with one thread and with two. On a
busy machine read the CPU seconds rather than the clock's. Results: a table, ``search.json``, ``search.md``
and ``search.png`` in the output folder. usearch comes with requirements/dev.txt; without it its row is left
out, and the log says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import multiprocessing
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.tables import as_markdown
from files import write_json
from settings import run_script

log = logging.getLogger(__name__)

DEPTH = 10
CLUSTER = 500  # vectors, on average
SPREAD = 1.0  # length of what is added to a centre, over that of the centre
DIRECTIONS = 32
BLOCK = 65_536
OURS = ("flat", "hnsw", "ivf", "ivfpq")
COLUMNS = {
    "vectors": "vectors",
    "engine": "engine",
    "build_seconds": "build, s",
    "build_cpu_seconds": "build, CPU s",
    "memory_mb": "memory, MB",
    "disk_mb": "disk, MB",
    "recall_at_10": "recall@10",
    "queries_per_cpu_second": "queries/CPU s",
    "one_query_ms": "one query, CPU ms",
    "ranks_per_cpu_second": "exact ranks/CPU s",
}  # CPU seconds are those of the first number of threads; queries/s follow for each


@dataclass(frozen=True)
class SearchSettings:
    """Times building and searching.

    Attributes:
        sizes: Numbers of vectors; 10000000 takes hours and 25 GB of disk.
        engines: Ours by kind ("flat", "hnsw", "ivf", "ivfpq"), "faiss-flat" and "usearch".
        dimension: Width of a vector.
        queries: Asked together, as in a round.
        threads: Numbers of threads to search with.
        seed: Of the vectors.
        output: Folder of the results.
        scratch: Folder for the indexes while they are measured; the system's temporary one when not given.
    """

    sizes: tuple[int, ...] = (31_783, 1_000_000)
    engines: tuple[str, ...] = (*OURS, "faiss-flat", "usearch")
    dimension: int = 256
    queries: int = 256
    threads: tuple[int, ...] = (1, 2)
    seed: int = 0
    output: Path = Path("runs/benchmark-search")
    scratch: Path | None = None


def main() -> None:
    """Runs from the command line."""
    import tyro

    settings = tyro.cli(SearchSettings)
    rows = []
    for size in settings.sizes:
        if settings.scratch is not None:
            settings.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=settings.scratch) as folder:
            rows += measure(settings, size, Path(folder))
        _report(settings, rows)  # what is measured stays, also when a larger size is stopped
    print(_table(settings, rows))
    log.info("written: %s", settings.output / "search.json")


def measure(settings: SearchSettings, size: int, folder: Path) -> list[dict[str, Any]]:
    """Builds and searches one collection with every engine.

    Returns:
        A row an engine, by the names in `COLUMNS`.
    """
    log.info("%d vectors: making them", size)
    in_a_process(1, _make, folder, size, settings.dimension, settings.queries, settings.seed)
    rows = []
    for engine in settings.engines:
        if engine == "usearch" and importlib.util.find_spec("usearch") is None:
            log.warning("usearch is left out: it is not installed; pip install -r requirements/dev.txt")
            continue
        log.info("%d vectors: %s", size, engine)
        row = {"vectors": size, "engine": engine}
        row |= in_a_process(max(settings.threads), _build, engine, folder)
        for threads in settings.threads:
            found = in_a_process(threads, _search, engine, folder)
            row[f"queries_per_second_{threads}"] = found.pop("queries_per_second")
            row = found | row
        if engine in OURS:
            shutil.rmtree(folder / engine)
        rows.append(row)
        log.info("%s", row)
    return rows


def clustered(count: int, dimension: int, seed: int, stream: int, clusters: int) -> Iterator[np.ndarray]:
    """Yields blocks of unit rows around the same centres; each stream has rows of its own."""
    common = np.random.default_rng(seed)
    centres = common.standard_normal((clusters, dimension), dtype=np.float32)
    directions = common.standard_normal((DIRECTIONS, dimension), dtype=np.float32) / DIRECTIONS**0.5
    random = np.random.default_rng([seed, stream])
    for first in range(0, count, BLOCK):
        rows = min(BLOCK, count - first)
        noise = SPREAD * random.standard_normal((rows, DIRECTIONS), dtype=np.float32) @ directions
        block = centres[random.integers(clusters, size=rows)] + noise
        yield block / np.linalg.norm(block, axis=1, keepdims=True)


def in_a_process(threads: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function in a fresh process, since numbers of threads are set when a library is loaded.

    Args:
        threads: Of FAISS, NumPy and torch.
        work: Found by name in its module.
        arguments: Handed over by pickling, as is the result.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ |= dict.fromkeys(names, str(threads))
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(work, *arguments).result()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _make(folder: Path, count: int, dimension: int, queries: int, seed: int) -> None:
    from index.folder import write_vectors
    from index.scores import unit_rows

    clusters = max(1, count // CLUSTER)
    blocks = (
        unit_rows(block, dimension, "vectors") for block in clustered(count, dimension, seed, 1, clusters)
    )
    write_vectors(folder / "vectors.faiss", blocks, count, dimension)
    asked = np.concatenate(list(clustered(queries, dimension, seed, 2, clusters)))
    np.save(folder / "queries.npy", unit_rows(asked, dimension, "queries"))
    np.save(folder / "shape.npy", np.array([count, dimension]))


def _stored(folder: Path) -> np.ndarray:
    from index.folder import open_vectors

    count, dimension = np.load(folder / "shape.npy").tolist()
    return open_vectors(folder / "vectors.faiss", count, dimension)


def _build(engine: str, folder: Path) -> dict[str, float]:
    from index.folder import write_folder

    vectors = _stored(folder)
    watch = Watch()
    if engine in OURS:
        write_folder(
            folder / engine,
            [f"{number}.jpg" for number in range(len(vectors))],
            (vectors[first : first + 4096] for first in range(0, len(vectors), 4096)),
            dimension=vectors.shape[1],
            model_name="synthetic",
            model_fingerprint="synthetic",
            dataset="synthetic",
            image_folder=Path("/synthetic"),
            kind=engine,  # type: ignore[arg-type]
        )
        disk = sum(path.stat().st_size for path in (folder / engine).iterdir())
    elif engine == "usearch":
        from usearch.index import Index  # type: ignore[import-not-found]

        index = Index(ndim=vectors.shape[1], metric="ip", dtype="f16")
        for first in range(0, len(vectors), 4096):
            block = np.array(vectors[first : first + 4096])
            index.add(np.arange(first, first + len(block)), block, threads=os.cpu_count() or 1)
        index.save(str(folder / "usearch"))
        disk = (folder / "usearch").stat().st_size
    else:
        disk = (folder / "vectors.faiss").stat().st_size  # there is nothing to build but the file
    wall, cpu = watch.seconds()
    return {"build_seconds": wall, "build_cpu_seconds": cpu, "disk_mb": disk / 1e6}


def _search(engine: str, folder: Path) -> dict[str, float]:
    queries = np.load(folder / "queries.npy")
    before = anonymous_mb()
    find, ranks = _opened(engine, folder)
    find(queries[:2])  # loads what is loaded at first use
    watch = Watch()
    found = find(queries)
    wall, cpu = watch.seconds()
    watch = Watch()
    for query in queries[:10]:
        find(query[None])
    results = {
        "queries_per_second": len(queries) / wall,
        "queries_per_cpu_second": len(queries) / cpu,
        "one_query_ms": watch.seconds()[1] / len(queries[:10]) * 1000,
        "memory_mb": anonymous_mb() - before,
    }
    if ranks is not None:
        watch = Watch()
        ranks(queries)
        results["ranks_per_cpu_second"] = len(queries) / watch.seconds()[1]
    truth = folder / "truth.npy"
    if not truth.exists():
        from index.scores import list_rows

        nobody = [np.empty(0, dtype=np.int64)] * len(queries)
        np.save(truth, np.array([rows for rows, _ in list_rows(queries, _stored(folder), DEPTH, nobody)]))
    both = zip(np.load(truth).tolist(), found, strict=True)
    results["recall_at_10"] = float(np.mean([len(set(true) & set(got)) / DEPTH for true, got in both]))
    return results


def _opened(engine: str, folder: Path) -> tuple[Callable, Callable | None]:
    """Returns a search for the 10 best rows of queries, and the count of the ranks of some rows."""
    if engine in OURS:
        from index.faiss_index import FaissIndex

        index = FaissIndex.open(folder / engine)
        targets = [index.ids[number] for number in range(0, len(index), max(1, len(index) // 1000))]

        def find(queries: np.ndarray) -> list[list[int]]:
            return [[int(one[:-4]) for one in ranking.ids] for ranking in index.search(queries, DEPTH)]

        return find, lambda queries: index.rank_of(queries, targets[: len(queries)])
    if engine == "usearch":
        from usearch.index import Index  # type: ignore[import-not-found]

        peer: Any = Index.restore(str(folder / "usearch"))
        threads = int(os.environ["OMP_NUM_THREADS"])

        def ask(queries: np.ndarray) -> list[list[int]]:
            keys = peer.search(queries, DEPTH, threads=threads).keys
            return np.asarray(keys).reshape(len(queries), -1).tolist()

        return ask, None
    import faiss

    store = faiss.read_index(str(folder / "vectors.faiss"))
    return lambda queries: store.search(queries, DEPTH)[1].tolist(), None


class Watch:
    """Seconds on the clock, and of the processor, since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float]:
        """Returns those of the clock, then those of the processor."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def anonymous_mb() -> float:
    """Memory that is no mapped file; where the system does not tell the two apart, the highest so far."""
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _table(settings: SearchSettings, rows: list[dict[str, Any]]) -> str:
    columns = COLUMNS | {
        f"queries_per_second_{n}": f"queries/s, {n} thread{'s' * (n > 1)}" for n in settings.threads
    }
    cells = [tuple(_cell(row.get(name, "")) for name in columns) for row in rows]
    return as_markdown([tuple(columns.values()), *cells])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if value < 2 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _report(settings: SearchSettings, rows: list[dict[str, Any]]) -> None:
    settings.output.mkdir(parents=True, exist_ok=True)
    found = {"settings": plain_settings(settings), "machine": where("benchmarks.search"), "rows": rows}
    write_json(settings.output / "search.json", found)
    (settings.output / "search.md").write_text(_table(settings, rows) + "\n", encoding="utf-8")
    _plot(rows, settings.output / "search.png")


def where(module: str) -> dict[str, Any]:
    """Says when, on what and by which command something was measured, for the results' JSON.

    Args:
        module: The benchmark's, as ``python -m`` takes it.
    """
    return {
        "date": date.today().isoformat(),
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "load": os.getloadavg()[0],
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
    }


def plain_settings(settings: Any) -> dict[str, Any]:
    """Returns a settings dataclass as JSON can hold it."""
    return {name: _plain(value) for name, value in dataclasses.asdict(settings).items()}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws queries a CPU second against recall, a colour an engine, a size a marker."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    sizes = sorted({row["vectors"] for row in rows})
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    for row in rows:
        axes.scatter(
            row["recall_at_10"],
            row["queries_per_cpu_second"],
            color=f"C{engines.index(row['engine'])}",
            marker="os^Dv"[sizes.index(row["vectors"]) % 5],
        )
        axes.annotate(
            f"{row['engine']}, {row['vectors']:,}",
            (row["recall_at_10"], row["queries_per_cpu_second"]),
            textcoords="offset points",
            xytext=(6, 4),
            ha="right" if row["recall_at_10"] > 0.97 else "left",
            fontsize=7,
        )
    axes.set(yscale="log", xlabel="recall@10", ylabel="queries a CPU second, one thread")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
