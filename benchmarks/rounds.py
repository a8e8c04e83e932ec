"""How much faster the rounds are than one query at a time: same models, same queries, one process.

    python -m benchmarks.rounds

Plays the published protocol (`PROTOCOL` below) with the strategy "rewrite": as research code does
(`benchmarks.sequential`), then with this project's loop, one factor added after the other. Models are loaded
before the clock starts. Results: a table, ``rounds.json`` and ``rounds.png`` in the output folder.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.runs import read_rounds
from evaluation.tables import as_markdown
from experiments.setup import Setup
from feedback.protocols import PROTOCOLS
from files import write_json
from records import Query, Round
from settings import ExperimentSettings, run_script

log = logging.getLogger(__name__)

PROTOCOL = "reference"
STRATEGY = "rewrite"
SEQUENTIAL = "one query at a time, float32"
ONE = {"query_batch": 1, "caption_batch": 1, "rewrite_batch": 1}

# What is added from row to row: settings that differ from the demo's.
STEPS: dict[str, dict[str, Any]] = {
    "captions and prompt kept, ranks counted": {**ONE, "quantization": "fp32"},
    "all queries of a round together": {"quantization": "fp32"},
    "16 bits where the processor has them": {"quantization": "auto"},
}
AGAIN = "captions of an earlier run"


@dataclass(frozen=True)
class BenchmarkSettings:
    """Times the rounds against the published way of playing them.

    Attributes:
        queries: Queries of the demo's test split that this project plays.
        sequential_queries: How many of them are played one at a time, which takes minutes.
        rounds: Rounds, the first search included.
        output: Folder of the results.
    """

    queries: int = 500
    sequential_queries: int = 500
    rounds: int = 4
    output: Path = Path("runs/benchmark-rounds")


def main() -> None:
    """Runs from the command line."""
    import tyro

    settings = tyro.cli(BenchmarkSettings)
    rows = measure(settings)
    write_json(settings.output / "rounds.json", {"settings": _plain(settings), "rows": rows})
    _plot(rows, settings.output / "rounds.png")
    print(_table(rows))
    log.info("written: %s", settings.output / "rounds.json")


def measure(settings: BenchmarkSettings) -> list[dict[str, Any]]:
    """Plays the queries in each way.

    Returns:
        A row a way: its name, queries, seconds, queries an hour, seconds by stage, the share of queries whose
        target ranks are the sequential ones, and the ids of the others.
    """
    scratch = settings.output / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    base = ExperimentSettings(
        dataset="demo",
        protocol=PROTOCOL,
        strategy=STRATEGY,
        user="reference",
        caption_numbers=("4",),
        rounds=settings.rounds,
        queries=settings.queries,
        output=scratch,
    ).resolved()
    parts = Setup.open(base)
    queries = parts.queries
    sequential = _spread(queries, settings.sequential_queries)
    rows = [_sequential_row(parts, sequential)]
    known = rows[0].pop("ranks")
    for number, (name, changes) in enumerate(STEPS.items()):
        cache = scratch / f"captions-{number}.sqlite"
        changed = dataclasses.replace(base, **changes, caption_cache=cache)
        asked = sequential if "query_batch" in changes else queries
        rows.append(_row(name, changed, asked, known))
        if name == list(STEPS)[-1]:
            rows.append(_row(AGAIN, changed, asked, known))
    for row in rows:
        row["times faster"] = row["queries an hour"] / rows[0]["queries an hour"]
    shutil.rmtree(scratch)
    return rows


def _sequential_row(parts: Setup, queries: Sequence[Query]) -> dict[str, Any]:
    from benchmarks.sequential import SequentialRounds

    settings = parts.settings
    player = SequentialRounds(
        parts.dataset, parts.retriever, settings.caption_model or "", settings.rewrite_model or ""
    )
    protocol = PROTOCOLS[PROTOCOL]
    player.play(queries[0], protocol, 2)  # so that nothing is loaded on the clock
    player.seconds.clear()
    started, ranks = time.perf_counter(), {}
    for query in queries:
        ranks[query.id] = player.play(query, protocol, parts.loop.rounds)
    return _timed(SEQUENTIAL, len(queries), time.perf_counter() - started, dict(player.seconds)) | {
        "ranks": ranks,
        "same ranks": 1.0,
        "queries with other ranks": [],
    }


def _row(
    name: str, settings: ExperimentSettings, queries: Sequence[Query], known: dict[str, list[int]]
) -> dict[str, Any]:
    parts = dataclasses.replace(Setup.open(settings), queries=tuple(queries))
    parts.rewriter.rewrite(["a dog"], ["a cat"])  # so that nothing is loaded on the clock
    parts.captions.captions_of([parts.dataset.images[0].id])
    parts.costs.spent.clear()
    path = settings.output / "rounds.jsonl" if settings.output else Path("rounds.jsonl")
    path.unlink(missing_ok=True)
    started = time.perf_counter()
    parts.play(STRATEGY, parts.user("reference"), path)
    seconds = time.perf_counter() - started
    stages = {stage: account.seconds for stage, account in parts.costs.spent[parts.costs.run].items()}
    ranks = _ranks(read_rounds(path))
    compared = [query_id for query_id in known if query_id in ranks]
    others = [query_id for query_id in compared if ranks[query_id] != known[query_id]]
    return _timed(name, len(queries), seconds, stages) | {
        "same ranks": 1 - len(others) / max(1, len(compared)),
        "queries with other ranks": others,
    }


def _timed(name: str, count: int, seconds: float, stages: dict[str, float]) -> dict[str, Any]:
    rate = 3600 * count / seconds
    return {"way": name, "queries": count, "seconds": seconds, "queries an hour": rate, "stages": stages}


def _ranks(records: Sequence[Round]) -> dict[str, list[int]]:
    ranks: dict[str, list[int]] = {}
    for record in records:
        if record.target_rank is not None:
            ranks.setdefault(record.query_id, []).append(record.target_rank)
    return ranks


def _spread(queries: Sequence[Query], count: int) -> list[Query]:
    count = min(count, len(queries))
    return [queries[number * len(queries) // count] for number in range(count)]


def _table(rows: Sequence[dict[str, Any]]) -> str:
    cells = [("Way of playing", "Queries", "Seconds", "Queries an hour", "Times faster", "Same ranks")]
    for row in rows:
        cells.append(
            (
                row["way"],
                str(row["queries"]),
                f"{row['seconds']:.0f}",
                f"{row['queries an hour']:.0f}",
                f"{row['times faster']:.1f}",
                f"{100 * row['same ranks']:.1f} %",
            )
        )
    return as_markdown(cells)


def _plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    names = [row["way"] for row in rows][::-1]
    rates = [row["queries an hour"] for row in rows][::-1]
    bars = axes.barh(names, rates, color="#4477aa")
    axes.bar_label(bars, [f"{row['times faster']:.1f}x" for row in rows][::-1], padding=4)
    axes.set(xlabel="Queries an hour")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _plain(settings: BenchmarkSettings) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}


if __name__ == "__main__":
    sys.exit(run_script(main))
