"""How much memory a run takes that has as many queries as Flickr30k: the loop, the measures and the report.

    python -m benchmarks.full_run_memory

Made-up searches go through the real `run_rounds`, into a real ``rounds.jsonl`` and from there through
evaluation and report. Nothing is embedded, so what a run takes beyond this figure are its models and its
index. Prints the records, their size on disk, and the peak memory of the process after each stage.
"""

from __future__ import annotations

import logging
import resource
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from evaluation.measures import measure_sessions
from evaluation.plots import plot_recall_f1
from evaluation.report import write_report
from evaluation.runs import append_rounds, stream_rounds
from evaluation.sessions import build_sessions
from evaluation.tables import as_markdown
from feedback.protocols import PROTOCOLS
from feedback.rounds import run_rounds
from feedback.strategies.words import Append
from feedback.users import FirstUser
from files import write_json
from index.faiss_index import Ranking
from records import Query
from settings import run_script

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemorySettings:
    """Measures the memory of a run with made-up searches.

    Attributes:
        queries: Flickr30k's, five captions an image.
        images: Flickr30k's.
        rounds: Rounds, the first search included.
        folder: Where the run's file goes, some 6 kB a query and round; the system's folder for temporary
            files when not given.
    """

    queries: int = 158_915
    images: int = 31_783
    rounds: int = 4
    folder: Path | None = None


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
    import tyro

    settings = tyro.cli(MemorySettings)
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        print(as_markdown(measure(settings, Path(folder))))


def measure(settings: MemorySettings, folder: Path) -> list[tuple[str, str]]:
    """Runs the stages one after the other.

    Returns:
        A row a stage, and the peak memory of the process when it was done.
    """
    searches: Any = MadeUpSearches(settings.images)
    queries = [
        Query(f"{number}.jpg#0", f"two people on a street, {number}", target, frozenset({target}))
        for number in range(settings.queries)
        for target in (searches.index.ids[number % 100],)
    ]
    path = folder / "rounds.jsonl"
    rows = [("Stage", "Peak memory, MB"), ("start: imports, queries, image ids", _peak())]
    run_rounds(
        queries, retriever=searches, user=FirstUser(), strategy=Append(), protocol=PROTOCOLS["honest"],
        captions=MadeUpCaptions(), round_count=settings.rounds,
        keep=lambda rounds: append_rounds(path, rounds),
    )  # fmt: skip
    rows.append((f"loop: {settings.queries * settings.rounds:,} records", _peak()))
    sessions = build_sessions(stream_rounds(path), settings.rounds, queries)
    measures = measure_sessions(sessions, settings.rounds, settings.images)
    rows.append((f"measures, from {path.stat().st_size / 1e9:.1f} GB of records", _peak()))
    write_json(folder / "measures.json", measures.to_json())
    write_json(folder / "settings.json", {})
    plot_recall_f1({"made up": measures.summary()}, folder / "recall_f1.png")
    write_report(folder, folder, sessions)
    rows.append(("report", _peak()))
    return rows


def _peak() -> str:
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes here
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6:,.0f}"


if __name__ == "__main__":
    raise SystemExit(run_script(main))
