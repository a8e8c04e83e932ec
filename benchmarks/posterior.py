"""What strategies that score every image cost a query and round, as collection and rounds grow.

    OMP_NUM_THREADS=1 python -m benchmarks.posterior --sizes 100000 1000000

The vectors are those of `benchmarks.search`, in an index on the disk. Every session has a target, begins with
a vector near it in the place of words, and points at the picture shown that is nearest to it, round after
round; none ends. The second round is the first with feedback. Encoding texts is not measured, and captions
have vectors of the same width. All sessions move together, as in a run. Each strategy has a process of its
own.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search import BLOCK, CLUSTER, DIMENSION, MADE_UP, clustered, write_index
from benchmarks.timing import Watch, anonymous_mb, in_a_process, parser, report
from settings import run_script

log = logging.getLogger(__name__)

STRATEGIES = ("bayes", "bayes-captions", "rrf", "score-fusion")
SHOWN = 10
CAPTIONS = "captions.npy"


def main() -> None:
    """Runs from the command line."""
    read = parser(__doc__)
    read.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000], help="numbers of images")
    read.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    read.add_argument("--sessions", type=int, default=64, help="queries that move together")
    read.add_argument("--rounds", type=int, default=10, help="of each, the first search included")
    arguments = read.parse_args()
    rows = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(arguments, size, Path(folder))
    report("posterior", arguments, rows)


def measure(arguments: argparse.Namespace, size: int, folder: Path) -> list[dict[str, Any]]:
    """Returns a row a strategy over so many images, whose index goes to an empty folder."""
    log.info("%d vectors: making them", size)
    in_a_process(1, _write_index, folder, size)
    rows = []
    for name in arguments.strategies:
        played = in_a_process(1, _play, name, folder, arguments.sessions, arguments.rounds)
        rows.append({"strategy": name, "images": size} | played)
        log.info("%s: %.0f CPU ms a query and round", name, played["last round"])
    return rows


class VectorEncoder:
    """Stands for a text encoder: a text is the number of a row among some that were made before."""

    dimension = DIMENSION
    fingerprint = MADE_UP

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Looks up the rows of n numbers, (n, dimension) float32."""
        return self._rows[[int(text) for text in texts]]

    def encode_images(self, images: list[Any]) -> np.ndarray:
        """Is not asked."""
        raise NotImplementedError


def _write_index(folder: Path, count: int) -> None:
    clusters = max(1, count // CLUSTER)
    captions = np.lib.format.open_memmap(folder / CAPTIONS, "w+", np.float32, (count, DIMENSION))
    for number, block in enumerate(clustered(count, 3, clusters)):
        captions[number * BLOCK : number * BLOCK + len(block)] = block
    captions.flush()
    write_index(folder / "index", count, clustered(count, 1, clusters), "flat")


def _play(name: str, folder: Path, sessions: int, rounds: int) -> dict[str, float]:
    from feedback.calibration import Calibration
    from feedback.history import History, Turn
    from feedback.strategies import make_strategy
    from feedback.strategies.collection import Collection
    from index.faiss_index import FaissIndex
    from retriever import Retriever

    index = FaissIndex.open(folder / "index")
    calibration = Calibration(captions=2.0)  # as on COCO; without a weight captions would be compared in vain
    clusters = max(1, len(index) // CLUSTER)
    words = np.concatenate(list(clustered(sessions * (rounds + 1), 2, clusters)))
    retriever = Retriever(VectorEncoder(words), index)
    before = anonymous_mb()
    said = np.load(folder / CAPTIONS, mmap_mode="r")
    collection = Collection(retriever, None, lambda: said, lambda: calibration)
    strategy = make_strategy(name, None, collection)
    targets = index.vectors[np.linspace(0, len(index) - 1, sessions, dtype=int)].astype(np.float64)
    turns: list[tuple[Turn, ...]] = [()] * sessions
    moved, searched, most = [], [], 0.0
    searches: list[Any] = [str(number) for number in range(sessions)]
    for number in range(rounds):
        if number:
            watch = Watch()
            searches = [each.search for each in strategy.next([History(told) for told in turns])]
            moved.append(1000 * watch.cpu() / sessions)
        watch = Watch()
        rankings = retriever.search(searches, SHOWN)
        retriever.rank(searches, [index.ids[0]] * sessions)
        searched.append(1000 * watch.cpu() / sessions)
        most = max(most, anonymous_mb() - before)
        for place, ranking in enumerate(rankings):
            # The nearest that was not picked before, so that every round has something new to say.
            picked = {image_id for turn in turns[place] for image_id in turn.liked}
            left = [image_id for image_id in ranking.ids if image_id not in picked] or [*ranking.ids]
            best = left[int(np.argmax(retriever.vectors_of(left) @ targets[place]))]
            caption = str(sessions * (number + 1) + place)
            turns[place] += (Turn(str(place), ranking.ids, (best,), (), (caption,)),)
    return {
        "second round": moved[0],
        "last round": moved[-1],
        "search and rank": float(np.median(searched[1:])),
        "memory, MB": most,
        "of the vectors' bytes": most * 1e6 / (4 * DIMENSION * len(index)),
    }


if __name__ == "__main__":
    raise SystemExit(run_script(main))
