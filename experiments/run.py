"""One experiment: a strategy against the scrolling control, with all its results."""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from evaluation.measures import measure_sessions
from evaluation.plots import plot_recall_f1
from evaluation.report import write_report
from evaluation.runs import stream_rounds
from evaluation.sessions import build_sessions
from evaluation.tables import format_table
from evaluation.trec import write_trec
from experiments.own_models import OwnModels
from experiments.run_folder import check_run_folder, run_folder
from experiments.setup import Setup
from feedback.protocols import PROTOCOLS
from feedback.strategies import STRATEGIES
from files import write_json
from records import Round
from settings import ExperimentSettings

log = logging.getLogger(__name__)

SCROLLING = "scrolling"  # the control: the person's own words in every round, only more images
CONTROL_ROUNDS = f"{SCROLLING}.rounds.jsonl"


def scrolling_name(protocol: str) -> str:
    """Names the control: where shown images stay candidates, the same words show the same images again."""
    return SCROLLING if PROTOCOLS[protocol].removes_shown else "no feedback"


def run_experiment(settings: ExperimentSettings, own: OwnModels | None = None) -> Path:
    """Runs the feedback loop, or what is left of it, and writes all results.

    Returns:
        The run's folder with ``settings.json``, ``rounds.jsonl``, ``measures.json``, ``recall_f1.png``,
        ``report.html``, the scrolling control's ``scrolling.rounds.jsonl`` and, for other tools, ``trec/``.

    Raises:
        FileNotFoundError: If dataset, checkpoint or index are missing.
        ValueError: If they cannot be used, or the folder holds a run with other settings.
    """
    started = time.monotonic()
    settings = settings.resolved()
    check_run_folder(settings)
    setup = Setup.open(settings, own=own)
    setup.check_rewriter()
    user = setup.user(settings.user, settings.user_noise)
    with run_folder(settings, setup.identity()) as folder:
        setup.costs.keep_in(folder / "costs.json")
        setup.costs.run = settings.strategy
        log.info("%s:", settings.strategy)
        setup.play(settings.strategy, user, folder / "rounds.jsonl")
        setup.costs.run = SCROLLING
        # The control ignores feedback; a user who may abandon a search does so there too.
        control_user = setup.user("first") if settings.user_patience is None else user
        log.info("%s, the control without feedback:", scrolling_name(settings.protocol))
        setup.play("original", control_user, folder / CONTROL_ROUNDS)
        setup.costs.save()
        fallbacks = write_results(folder, setup)
    captioned = setup.captions.counts() if STRATEGIES[settings.strategy].needs_captioner else "no captions"
    reasons = ", ".join(f"{count} {reason}" for reason, count in fallbacks.most_common() if reason)
    log.info(
        f"{fallbacks.total()} refined queries, {fallbacks.total() - fallbacks['']} fell back to appending"
        f"{f' ({reasons})' if reasons else ''}; {captioned}; {time.monotonic() - started:.0f} s"
    )
    entry = STRATEGIES[settings.strategy]
    if entry.needs_rewriter and not entry.calibrated:
        log.info(
            "more found so far (docs/feedback.md): embed with --captions, then --strategy bayes-captions"
        )
    return folder


def write_results(folder: Path, setup: Setup) -> Counter[str]:
    """Measures the run and the control in a folder, and writes measures, plot, report and TREC files.

    Returns:
        How many refined queries there are, by why their rewrite was replaced; under "" those as written.
    """
    settings, queries, image_count = setup.loop, setup.queries, len(setup.retriever.index)
    scrolled = build_sessions(stream_rounds(folder / CONTROL_ROUNDS), settings.rounds, queries)
    control = measure_sessions(scrolled, settings.rounds, image_count)
    fallbacks: Counter[str] = Counter()
    records = _counted(stream_rounds(folder / "rounds.jsonl"), fallbacks)
    sessions = build_sessions(records, settings.rounds, queries)
    measures = measure_sessions(sessions, settings.rounds, image_count)
    write_json(
        folder / "measures.json",
        measures.to_json()
        | {
            SCROLLING: control.summary(),
            "images": image_count,
            "left_out_by_the_reader": len(setup.dataset.skipped),
            "queries_left_out": [dataclasses.asdict(skip) for skip in setup.left_out],
            "fallbacks": fallbacks.total() - fallbacks[""],
        },
    )
    write_trec(folder / "trec", stream_rounds(folder / "rounds.jsonl"), sessions, settings.rounds)
    name, measure = scrolling_name(settings.protocol), PROTOCOLS[settings.protocol].measure_of(queries)
    curves = {setup.strategies[0]: measures.summary(), name: control.summary()}
    plot_recall_f1(curves, folder / "recall_f1.png", measure=measure)
    write_report(folder, setup.dataset.folder, sessions, scrolled, control=name)
    print(format_table(measures.summary()))  # noqa: T201  the final table is the script's answer
    values = " ".join(f"{100 * value:.1f}" for value in control.summary()[measure])
    log.info("%s, the control without feedback: %s %s", name, measure, values)
    log.info("written: %s", folder / "report.html")
    return fallbacks


def _counted(rounds: Iterable[Round], fallbacks: Counter[str]) -> Iterator[Round]:
    """Passes records on; counts refined queries by why their rewrite was replaced, numbers aside."""
    for record in rounds:
        if record.number:
            fallbacks[re.sub(r"^kept .*", "kept too few of the words asked for", record.fallback)] += 1
        yield record
