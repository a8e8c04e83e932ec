"""What a query costs as the collection grows, and as its session goes on.

    python -m benchmarks.growth
    python -m benchmarks.growth --sizes 1000 10000 --strategies append rocchio

Plays the loop's own steps (`feedback.rounds`) over synthetic vectors: move the query, search, count the
target's rank, judge. The models' share is left out: texts get vectors at once, captions cost nothing. Every
size and strategy has a process of its own, with one thread; figures are CPU seconds, which other work on the
machine moves little. Results: two tables, ``growth.json``, ``growth.md`` and ``growth.png``.
"""

from __future__ import annotations

import logging
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.search import (
    CLUSTER,
    Watch,
    anonymous_mb,
    clustered,
    in_a_process,
    plain_settings,
    where,
)
from evaluation.tables import as_markdown
from files import write_json
from settings import IndexKind, StrategyName, run_script

if TYPE_CHECKING:
    from retriever import Retriever

log = logging.getLogger(__name__)

DIMENSION = 256
PROTOCOL = "honest"
LISTED = 50


@dataclass(frozen=True)
class GrowthSettings:
    """Weighs a query against the size of the collection and the number of rounds.

    Attributes:
        sizes: Numbers of images.
        strategies: Played at every size; none that needs a language model or the pictures.
        rounds: Rounds at every size, the first search included.
        long_size: Images of the collection in which sessions are long.
        long_rounds: Rounds of those sessions.
        queries: Asked together.
        kind: Of the index; "auto" is what a build would choose.
        seed: Of vectors and picks.
        output: Folder of the results.
        scratch: Folder for the indexes meanwhile; the system's temporary one when not given.
    """

    sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    strategies: tuple[StrategyName, ...] = ("append", "rocchio", "rrf", "bayes")
    rounds: int = 4
    long_size: int = 100_000
    long_rounds: int = 10
    queries: int = 16
    kind: IndexKind = "flat"
    seed: int = 0
    output: Path = Path("runs/benchmark-growth")
    scratch: Path | None = None

    def __post_init__(self) -> None:
        if min(self.rounds, self.long_rounds) < 2:
            raise ValueError(
                f"rounds and long_rounds: got {self.rounds} and {self.long_rounds}, expected at least 2: "
                "the first moves no query"
            )


def main() -> None:
    """Runs from the command line."""
    import tyro

    settings = tyro.cli(GrowthSettings)
    sizes, rounds = measure(settings)
    settings.output.mkdir(parents=True, exist_ok=True)
    machine = where("benchmarks.growth")
    found = {
        "settings": plain_settings(settings), "machine": machine, "by_size": sizes, "by_round": rounds,
    }  # fmt: skip
    write_json(settings.output / "growth.json", found)
    text = "\n\n".join(tables(settings, sizes, rounds))
    (settings.output / "growth.md").write_text(text + "\n", encoding="utf-8")
    _plot(settings, sizes, rounds, settings.output / "growth.png")
    print(text)
    log.info("written: %s", settings.output / "growth.json")


def measure(settings: GrowthSettings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Plays all sizes, then the long sessions.

    Returns:
        A row a size: CPU milliseconds a query of listing, of ranking and, by strategy, of moving; CPU seconds
        of opening the index; megabytes. And a row a round of the long sessions: CPU milliseconds a query of
        all steps together, by strategy.
    """
    rows = []
    long: list[list[float]] = []
    for size in sorted({*settings.sizes, settings.long_size}):
        with tempfile.TemporaryDirectory(dir=settings.scratch) as name:
            folder = Path(name)
            log.info("%d images: making the index", size)
            in_a_process(1, make_index, folder, size, settings.kind, settings.seed)
            if size in settings.sizes:
                rows.append(_by_size(settings, folder, size))
                log.info("%s", rows[-1])
            if size == settings.long_size:
                for strategy in settings.strategies:
                    played = in_a_process(1, _play, folder, strategy, settings.long_rounds, settings)
                    long.append([sum(steps.values()) for steps in played["rounds"]])
    by_round = [
        {"round": number} | dict(zip(settings.strategies, costs, strict=True))
        for number, costs in enumerate(zip(*long, strict=True))
    ]
    return rows, by_round


def _by_size(settings: GrowthSettings, folder: Path, size: int) -> dict[str, Any]:
    row: dict[str, Any] = {"images": size} | in_a_process(1, _weigh, folder, settings)
    for strategy in settings.strategies:
        played = in_a_process(1, _play, folder, strategy, settings.rounds, settings)
        row[f"{strategy}_ms"] = fmean(steps["move"] for steps in played["rounds"][1:])
        row[f"{strategy}_mb"] = played["memory_mb"]
    return row


def make_index(folder: Path, count: int, kind: IndexKind, seed: int) -> None:
    """Writes an index of synthetic vectors, `DIMENSION` wide.

    Args:
        folder: Where to.
        count: Vectors.
        kind: Of the index.
        seed: Of the vectors.
    """
    from index.folder import write_folder
    from index.scores import unit_rows

    vectors = clustered(count, DIMENSION, seed, 1, max(1, count // CLUSTER))
    write_folder(
        folder,
        [f"{number // 10_000:05}/{number:010}.jpg" for number in range(count)],
        (unit_rows(block, DIMENSION, "vectors") for block in vectors),
        dimension=DIMENSION,
        model_name="synthetic",
        model_fingerprint="synthetic",
        dataset="synthetic",
        image_folder=Path("/synthetic"),
        kind=kind,
    )


class _Words:
    """Gives each text a direction of its own, at once."""

    dimension = DIMENSION
    fingerprint = "synthetic"

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.stack(
            [
                np.random.default_rng(zlib.crc32(text.encode())).standard_normal(DIMENSION, dtype=np.float32)
                for text in texts
            ]
        )
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def encode_images(self, images: Sequence[Any]) -> np.ndarray:
        raise NotImplementedError("no strategy of this benchmark looks at pictures")


class _Says:
    """Gives each image a caption, at once."""

    def captions_of(self, image_ids: Sequence[str]) -> list[str]:
        return [f"a picture with the number {image_id[:-4]}" for image_id in image_ids]


def _opened(folder: Path) -> Retriever:
    from retriever import Retriever

    return Retriever.open(_Words(), folder)


def _weigh(folder: Path, settings: GrowthSettings) -> dict[str, float]:
    import retriever  # noqa: F401  # what it loads is no memory of the index

    before, watch = anonymous_mb(), Watch()
    opened = _opened(folder)
    opening = watch.seconds()[1]
    asked = opened.encode_texts([f"query {number}" for number in range(settings.queries)])
    targets = [opened.index.ids[number] for number in _targets(len(opened.index), settings.queries)]
    opened.index.search(asked[:1], LISTED)  # so that the file is in the system's cache
    watch = Watch()
    opened.index.search(asked, LISTED)
    listing = watch.seconds()[1]
    watch = Watch()
    for row in asked:
        opened.index.search(row[None], LISTED)
    alone = watch.seconds()[1]
    watch = Watch()
    opened.index.rank_of(asked, targets)
    ranking = watch.seconds()[1]
    return {
        "opening_seconds": opening,
        "memory_mb": anonymous_mb() - before,
        "list_ms": 1000 * listing / len(asked),
        "list_alone_ms": 1000 * alone / len(asked),
        "rank_ms": 1000 * ranking / len(asked),
    }


def _targets(count: int, queries: int) -> range:
    return range(0, count, max(1, count // queries))[:queries]


def _play(folder: Path, strategy: str, round_count: int, settings: GrowthSettings) -> dict[str, Any]:
    """Plays sessions of one strategy.

    Returns:
        "rounds": of each, CPU milliseconds a query of "move", "search" (the rank included) and "judge";
        "memory_mb": what the process took from opening the index on.
    """
    import retriever  # noqa: F401  # as in `_weigh`
    from feedback.protocols import PROTOCOLS
    from feedback.rounds import next_searches, search_round, take_feedback
    from feedback.strategies import make_strategy
    from feedback.strategies.collection import Collection
    from feedback.users import RandomUser
    from records import Query, Round

    before = anonymous_mb()
    searched, says = _opened(folder), _Says()
    moves = make_strategy(strategy, None, Collection(searched, says.captions_of))
    protocol, user = PROTOCOLS[PROTOCOL], RandomUser(settings.seed)
    ids = searched.index.ids
    queries = [
        Query(f"{number}#0", f"query {number}", ids[row], frozenset({ids[row]}))
        for number, row in enumerate(_targets(len(ids), settings.queries))
    ]
    pasts: list[list[Round]] = [[] for _ in queries]
    costs, highest = [], 0.0
    for number in range(round_count):
        due = [place for place, past in enumerate(pasts) if not past or not past[-1].stop]
        if not due:
            raise ValueError(
                f"{strategy} over {len(ids)} images: all targets were found before round {number}; "
                "give larger --sizes or fewer --rounds"
            )
        batch, before_now = [queries[place] for place in due], [pasts[place] for place in due]
        watch, watches = Watch(), [0.0]
        searches = next_searches(batch, before_now, moves)
        highest = max(highest, anonymous_mb())
        watches.append(watch.seconds()[1])
        fresh = search_round(batch, before_now, searches, number, searched, protocol)
        watches.append(watch.seconds()[1])
        fresh = take_feedback(batch, before_now, fresh, user, moves, says, protocol)
        watches.append(watch.seconds()[1])
        each = [1000 * float(cost) / len(batch) for cost in np.diff(watches)]
        costs.append(dict(zip(("move", "search", "judge"), each, strict=True)))
        for past, record in zip(before_now, fresh, strict=True):
            past.append(record)
    return {"rounds": costs, "memory_mb": highest - before}


def tables(
    settings: GrowthSettings, sizes: Sequence[dict[str, Any]], rounds: Sequence[dict[str, Any]]
) -> list[str]:
    """Lays out both tables as Markdown.

    Args:
        settings: What was asked for.
        sizes: From `measure`.
        rounds: From `measure`.
    """
    names = [f"move, `{strategy}`" for strategy in settings.strategies]
    head = [
        "Images", "opening, CPU s", "list", "list, one query alone", "rank", *names, "memory, MB",
        "the strategies' most, MB",
    ]  # fmt: skip
    body = [
        [
            f"{row['images']:,}",
            _cell(row["opening_seconds"]),
            *(_cell(row[f"{stage}_ms"]) for stage in ("list", "list_alone", "rank", *settings.strategies)),
            _cell(row["memory_mb"]),
            _cell(max(row[f"{strategy}_mb"] for strategy in settings.strategies)),
        ]
        for row in sizes
    ]
    by_round = [
        ["Round", *(f"`{strategy}`" for strategy in settings.strategies)],
        *([str(row["round"]), *(_cell(row[strategy]) for strategy in settings.strategies)] for row in rounds),
    ]
    return [as_markdown([head, *body], left=0), as_markdown(by_round, left=0)]


def _cell(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def _plot(
    settings: GrowthSettings, sizes: Sequence[dict[str, Any]], rounds: Sequence[dict[str, Any]], path: Path
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    counts = [row["images"] for row in sizes]
    for stage in ("list", "rank", *settings.strategies):
        name = f"move, {stage}" if stage in settings.strategies else stage
        left.plot(counts, [row[f"{stage}_ms"] for row in sizes], marker="o", label=name)
    left.set(xscale="log", yscale="log", xlabel="images", ylabel="CPU ms a query")
    for place, strategy in enumerate(settings.strategies, start=2):  # colours as on the left
        costs = [row[strategy] for row in rounds]
        right.plot([row["round"] for row in rounds], costs, label=strategy, color=f"C{place}")
    right.set(yscale="log", xlabel=f"round, {settings.long_size:,} images", ylabel="CPU ms a query")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
