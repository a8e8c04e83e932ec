"""How much faster the feedback loop is than one query at a time: same models, same queries, one process.

    python -m benchmarks.rounds

Runs the published protocol with the strategy "rewrite" on the demo: as research code does
(`benchmarks.sequential`), then by this project's loop, one factor added after the other. Models are loaded
before the clock starts.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.timing import Watch, busy_core, parser, report
from records import Query
from settings import ExperimentSettings, run_script

if TYPE_CHECKING:
    from experiments.setup import Setup

log = logging.getLogger(__name__)

PROTOCOL = "reference"
STRATEGY = "rewrite"
USER = "reference"
SEQUENTIAL = "one query at a time, float32"
ONE = {"query_batch": 1, "caption_batch": 1, "rewrite_batch": 1}
# What is added from row to row, as settings that differ from the demo's; the captions' file is a fresh one
# for every row but the last.
STEPS: dict[str, dict[str, Any]] = {
    "captions and prompt kept, ranks counted": {**ONE, "quantization": "fp32"},
    "all queries of a round together": {"quantization": "fp32"},
    "the engine for the machine: OpenVINO on a CPU": {"quantization": "auto"},
}
AGAIN = "captions of an earlier run"


def main() -> None:
    """Runs from the command line."""
    read = parser(__doc__)
    read.add_argument("--queries", type=int, default=500, help="queries of the demo's test split")
    read.add_argument("--sequential-queries", type=int, default=500, help="how many of them one at a time")
    read.add_argument("--rounds", type=int, default=4, help="rounds, the first search included")
    read.add_argument("--busy", action="store_true", help="measure beside a process that keeps a core busy")
    arguments = read.parse_args()
    with busy_core(arguments.busy):
        report("rounds", arguments, measure(arguments))


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row a way; "same ranks" is the share of queries whose targets rank as in the first way."""
    from experiments.setup import Setup

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        settings = ExperimentSettings(
            dataset="demo",
            split="test",
            protocol=PROTOCOL,
            rewriting="guarded",  # as `benchmarks.sequential`
            strategy=STRATEGY,
            user=USER,
            caption_numbers=("4",),
            rounds=arguments.rounds,
            queries=arguments.queries,
            output=scratch,
        ).resolved()
        setup = Setup.open(settings)
        few = spread(setup.queries, arguments.sequential_queries)
        first, known = _sequential(setup, few)
        rows = [first]
        for number, (way, changes) in enumerate(STEPS.items()):
            changed = dataclasses.replace(settings, **changes, caption_cache=scratch / f"{number}.sqlite")
            asked = few if "query_batch" in changes else setup.queries
            rows.append(_ours(way, changed, asked, known))
        rows.append(_ours(AGAIN, changed, asked, known))
    for row in rows:
        row["times as fast"] = row["queries an hour"] / first["queries an hour"]
    return rows


def _sequential(setup: Setup, queries: Sequence[Query]) -> tuple[dict[str, Any], dict[str, list[int]]]:
    from benchmarks.sequential import SequentialLoop
    from feedback.protocols import PROTOCOLS

    settings, protocol = setup.settings, PROTOCOLS[PROTOCOL]
    loop = SequentialLoop(
        setup.dataset, setup.retriever, settings.caption_model or "", settings.rewrite_model or ""
    )
    loop.run(queries[0], protocol, 2)  # so that nothing is loaded on the clock
    loop.seconds.clear()
    watch = Watch()
    ranks = {query.id: loop.run(query, protocol, setup.loop.rounds) for query in queries}
    return _row(SEQUENTIAL, queries, watch.wall(), loop.seconds, ranks, ranks), ranks


def _ours(
    way: str, settings: ExperimentSettings, queries: Sequence[Query], known: dict[str, list[int]]
) -> dict[str, Any]:
    from evaluation.runs import read_rounds
    from experiments.setup import Setup

    setup = dataclasses.replace(Setup.open(settings), queries=tuple(queries))
    setup.rewriter.rewrite(["a dog"], ["a cat"])  # so that nothing is loaded on the clock
    setup.captions.captions_of([setup.dataset.images[0].id])
    setup.costs.spent.clear()
    with tempfile.TemporaryDirectory() as folder:
        path, watch = Path(folder) / "rounds.jsonl", Watch()
        setup.play(STRATEGY, setup.user(USER), path)
        seconds = watch.wall()
        records = read_rounds(path)
    stages = {stage: account.seconds for stage, account in setup.costs.spent[setup.costs.run].items()}
    ranks: dict[str, list[int]] = {}
    for record in records:
        ranks.setdefault(record.query_id, []).append(record.target_rank or 0)
    return _row(way, queries, seconds, stages, ranks, known)


def _row(
    way: str,
    queries: Sequence[Query],
    seconds: float,
    stages: dict[str, float],
    ranks: dict[str, list[int]],
    known: dict[str, list[int]],
) -> dict[str, Any]:
    same = sum(ranks[query_id] == before for query_id, before in known.items())
    log.info("%s: %d queries in %.0f s", way, len(queries), seconds)
    return {
        "way": way,
        "queries": len(queries),
        "seconds": seconds,
        "rewriting, s": stages.get("rewrite", 0.0),
        "captioning, s": stages.get("caption", 0.0),
        "queries an hour": 3600 * len(queries) / seconds,
        "same ranks": same / len(known),
    }


def spread(queries: Sequence[Query], count: int) -> list[Query]:
    """Takes so many of the queries, evenly."""
    count = min(count, len(queries))
    return [queries[number * len(queries) // count] for number in range(count)]


if __name__ == "__main__":
    raise SystemExit(run_script(main))
