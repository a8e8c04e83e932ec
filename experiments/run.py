"""One experiment: a strategy against the scrolling control, with all its results."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from evaluation.measures import evaluate
from evaluation.plots import plot_recall_f1
from evaluation.report import write_report
from evaluation.tables import format_table
from evaluation.trec import write_trec
from experiments.own_models import OwnModels
from experiments.run_folder import run_folder
from experiments.setup import Setup
from feedback.protocols import PROTOCOLS
from feedback.strategies import STRATEGIES
from files import write_json
from records import Round
from settings import ExperimentSettings

log = logging.getLogger(__name__)

SCROLLING = "scrolling"  # the control: the person's own words in every round, only more images


def scrolling_name(protocol: str) -> str:
    """Names the control: where shown images stay candidates, the same words show the same images again."""
    return SCROLLING if PROTOCOLS[protocol].removes_shown else "no feedback"


def run_experiment(settings: ExperimentSettings, own: OwnModels | None = None) -> Path:
    """Plays the rounds, or what is left of them, and writes all results.

    Args:
        settings: Everything; see `ExperimentSettings`.
        own: Models given as objects, instead of those that the settings name.

    Returns:
        The run's folder with ``settings.json``, ``rounds.jsonl``, ``measures.json``, ``recall_f1.png``,
        ``report.html``, the scrolling control's ``scrolling.rounds.jsonl`` and, for other tools, ``trec/``.

    Raises:
        FileNotFoundError: If dataset, checkpoint or index are missing.
        ValueError: If they cannot be used, or the folder holds a run with other settings.
    """
    started = time.monotonic()
    settings = settings.resolved()
    parts = Setup.open(settings, own=own)
    parts.check_rewriter()
    user = parts.user(settings.user, settings.user_noise)
    with run_folder(settings, parts.identity()) as folder:
        parts.costs.keep_in(folder / "costs.json")
        parts.costs.run = settings.strategy
        rounds = parts.play(settings.strategy, user, folder / "rounds.jsonl")
        parts.costs.run = SCROLLING
        # Nobody's feedback moves the control; a user who may give up gives up there too.
        control_user = parts.user("first") if settings.user_patience is None else user
        control = parts.play("original", control_user, folder / f"{SCROLLING}.rounds.jsonl")
        parts.costs.save()
        _write_results(folder, parts, settings.strategy, rounds, control)
    captioned = parts.captions.counts() if STRATEGIES[settings.strategy].needs_captioner else "no captions"
    _log_summary(rounds, captioned, time.monotonic() - started)
    return folder


def _write_results(
    folder: Path, parts: Setup, strategy: str, rounds: Sequence[Round], control: Sequence[Round]
) -> None:
    settings, queries, image_count = parts.settings, parts.queries, len(parts.retriever.index)
    measures = evaluate(rounds, settings.rounds, queries, image_count)
    control_measures = evaluate(control, settings.rounds, queries, image_count)
    write_json(
        folder / "measures.json",
        measures.to_json()
        | {
            SCROLLING: control_measures.to_json()["means_per_round"],
            "images": image_count,
            "left_out_by_the_reader": len(parts.dataset.skipped),
            "queries_left_out": [dataclasses.asdict(skip) for skip in parts.left_out],
            "fallbacks": sum(bool(record.fallback) for record in rounds),
        },
    )
    write_trec(folder / "trec", rounds, settings.rounds, queries)
    name, measure = scrolling_name(settings.protocol), PROTOCOLS[settings.protocol].measure_of(queries)
    curves = {strategy: measures.summary(), name: control_measures.summary()}
    plot_recall_f1(curves, folder / "recall_f1.png", measure=measure)
    write_report(folder, parts.dataset.folder)
    print(format_table(measures.summary()))  # noqa: T201  the final table is the script's answer
    values = " ".join(f"{100 * value:.1f}" for value in control_measures.summary()[measure])
    log.info("%s, the control without feedback: %s %s", name, measure, values)
    log.info("written: %s", folder / "report.html")


def _log_summary(rounds: Sequence[Round], captions: str, seconds: float) -> None:
    moved = sum(record.number > 0 for record in rounds)
    reasons = Counter(record.fallback.split(" ")[0] for record in rounds if record.fallback)
    fell_back = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    log.info(
        "%d refined queries, %d fell back to appending%s; %s; %.0f s",
        moved,
        sum(reasons.values()),
        f" ({fell_back})" if fell_back else "",
        captions,
        seconds,
    )
