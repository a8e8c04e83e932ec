"""Many strategies and users in one run, on the same queries, captions and embeddings; one table."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping
from pathlib import Path

from evaluation.comparison import Difference, compare
from evaluation.measures import Measures, evaluate
from evaluation.plots import plot_recall_f1
from evaluation.runs import write_atomically, write_json
from refinement.claim import claim_folder
from refinement.experiment import SCROLLING
from refinement.parts import Parts
from settings import ComparisonSettings

log = logging.getLogger(__name__)

MEASURE = "Recall@10"  # of the target; a search ends with a hit, so it is Hits@10 too


def run_comparison(settings: ComparisonSettings) -> Path:
    """Plays every strategy with every user, and compares each with scrolling.

    Args:
        settings: See `ComparisonSettings`.

    Returns:
        The folder with one ``NAME.rounds.jsonl`` each, ``comparison.md``, ``comparison.csv``,
        ``comparison.json`` and ``comparison.png``.

    Raises:
        FileNotFoundError: If dataset, checkpoint or index are missing.
        ValueError: If they cannot be used, or the folder holds a comparison with other settings.
    """
    settings = settings.resolved()
    parts = Parts.open(settings)
    folder = claim_folder(settings, parts.model_names)
    pairs = {SCROLLING: ("original", "first")} | {
        f"{strategy}, {user} user": (strategy, user)
        for user in settings.users
        for strategy in settings.strategies
        if strategy != "original"  # that is scrolling
    }
    runs = {}
    for name, (strategy, user) in pairs.items():
        log.info("playing %s", name)
        file = folder / f"{strategy}-{user}.rounds.jsonl"
        runs[name] = evaluate(
            parts.play(strategy, user, file), settings.rounds, parts.queries, len(parts.retriever.index)
        )
    differences = {
        name: compare(runs[SCROLLING], run, MEASURE, seed=settings.seed) for name, run in runs.items()
    }
    _write(folder, runs, differences, settings)
    return folder


def _write(
    folder: Path,
    runs: Mapping[str, Measures],
    differences: Mapping[str, Difference],
    settings: ComparisonSettings,
) -> None:
    header = [
        "Run",
        *(f"{MEASURE}, round {number}" for number in range(settings.rounds)),
        "minus scrolling",
        "95% interval",
        "Session F1",
        "BRI",
    ]
    rows = []
    for name, run in runs.items():
        summary, difference = run.summary(), differences[name]
        rows.append(
            [
                name,
                *(f"{100 * value:.1f}" for value in summary[MEASURE]),
                f"{100 * difference.mean:+.1f}",
                f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}",
                f"{100 * summary['Session F1'][-1]:.1f}",
                f"{summary['BRI'][-1]:.3f}",
            ]
        )
    table = "\n".join(
        "| " + " | ".join(cells) + " |" for cells in (header, ["---"] + ["---:"] * (len(header) - 1), *rows)
    )
    queries = next(iter(differences.values())).query_count
    write_atomically(
        folder / "comparison.md",
        f"{table}\n\n{queries} queries; paired bootstrap over queries, 10,000 resamples.\n".encode(),
    )
    sheet = io.StringIO()
    csv.writer(sheet, lineterminator="\n").writerows([header, *rows])
    write_atomically(folder / "comparison.csv", sheet.getvalue().encode())
    write_json(
        folder / "comparison.json",
        {name: run.to_json() | {"minus_scrolling": vars(differences[name])} for name, run in runs.items()},
    )
    plot_recall_f1({name: run.summary() for name, run in runs.items()}, folder / "comparison.png")
    print(table)  # noqa: T201  the final table is the script's answer
    log.info("written: %s", folder / "comparison.md")
