"""How much memory a run takes that has as many queries as Flickr30k: the loop, the measures and the report.

    python -m benchmarks.full_run_memory

Made-up searches go through the real `run_rounds`, into a real ``rounds.jsonl`` and from there through
evaluation and report. Nothing is embedded, so what a run takes beyond this figure are its models and its
index. Prints the records, their size on disk, and the peak memory of the process after each stage.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.timing import parser, report
from records import Query
from settings import run_script

if TYPE_CHECKING:
    from index.faiss_index import Ranking


class MadeUpSearches:
    """Lists any images, never the target: no session stops early."""

    def __init__(self, images: int) -> None:
        self.index: Any = SimpleNamespace(
            ids=tuple(f"flickr30k-images/{number:010}.jpg" for number in range(images))
        )
        self._random = np.random.default_rng(0)

    def prepared(self, queries: Sequence[Any]) -> list[Any]:
        """Leaves the queries as they are."""
        return list(queries)

    def search(self, queries: Sequence[Any], k: int, exclude: Sequence[frozenset[str]]) -> list[Ranking]:
        """Lists any k images but those shown before."""
        from index.faiss_index import Ranking

        rankings = []
        for seen in exclude:
            rows = self._random.integers(100, len(self.index.ids), 2 * k)  # the targets are the first hundred
            ids = [i for i in dict.fromkeys(self.index.ids[row] for row in rows) if i not in seen][:k]
            rankings.append(Ranking(tuple(ids), tuple(np.linspace(0.4, 0.3, k).tolist()[: len(ids)])))
        return rankings

    def rank(self, queries: Sequence[Any], target_ids: Sequence[str], exclude: Any) -> np.ndarray:
        """Ranks the target anywhere below the first page."""
        return self._random.integers(100, len(self.index.ids), len(queries))


class MadeUpCaptions:
    """Says as much of every image as a captioner does."""

    def captions_of(self, image_ids: Sequence[str]) -> list[str]:
        """Describes each image in eleven words."""
        return [f"a man in a blue shirt is standing beside {image_id}" for image_id in image_ids]


def main() -> None:
    """Runs from the command line."""
    read = parser(__doc__)
    read.add_argument("--queries", type=int, default=158_915, help="Flickr30k's, five captions an image")
    read.add_argument("--images", type=int, default=31_783, help="Flickr30k's")
    read.add_argument("--rounds", type=int, default=4, help="rounds, the first search included")
    read.add_argument(
        "--folder", type=Path, help="for the run's file, 6 kB a query and round; the system's if not given"
    )
    arguments = read.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = measure(arguments, Path(folder))
    report("full_run_memory", arguments, rows)


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Returns a row a stage, with the peak memory of the process when it was done."""
    from evaluation.measures import measure_sessions
    from evaluation.plots import plot_recall_f1
    from evaluation.report import write_report
    from evaluation.runs import append_rounds, stream_rounds
    from evaluation.sessions import build_sessions
    from feedback.protocols import PROTOCOLS
    from feedback.rounds import run_rounds
    from feedback.strategies.words import Append
    from feedback.users import FirstUser
    from files import write_json

    searches: Any = MadeUpSearches(arguments.images)
    queries = [
        Query(f"{number}.jpg#0", f"two people on a street, {number}", target, frozenset({target}))
        for number in range(arguments.queries)
        for target in (searches.index.ids[number % 100],)
    ]
    path = folder / "rounds.jsonl"
    rows = [_row("start: imports, queries, image ids")]
    run_rounds(
        queries, retriever=searches, user=FirstUser(), strategy=Append(), protocol=PROTOCOLS["honest"],
        captions=MadeUpCaptions(), round_count=arguments.rounds,
        keep=lambda rounds: append_rounds(path, rounds),
    )  # fmt: skip
    rows.append(_row(f"loop: {arguments.queries * arguments.rounds:,} records"))
    sessions = build_sessions(stream_rounds(path), arguments.rounds, queries)
    measures = measure_sessions(sessions, arguments.rounds, arguments.images)
    rows.append(_row(f"measures, from {path.stat().st_size / 1e9:.1f} GB of records"))
    write_json(folder / "measures.json", measures.to_json())
    write_json(folder / "settings.json", {})
    plot_recall_f1({"made up": measures.summary()}, folder / "recall_f1.png")
    write_report(folder, folder, sessions)
    rows.append(_row("report"))
    return rows


def _row(stage: str) -> dict[str, Any]:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"stage": stage, "peak memory, MB": kilobytes * 1024 / 1e6}


if __name__ == "__main__":
    raise SystemExit(run_script(main))
