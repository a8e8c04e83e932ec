"""Many strategies, users and seeds in one run, on the same queries, captions and embeddings; one table."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from evaluation.comparison import Difference, adjusted_by_holm, compare, mean_over_seeds
from evaluation.measures import Measures, measure_sessions
from evaluation.plots import plot_differences, plot_recall_f1
from evaluation.report import RunFiles, write_report
from evaluation.runs import stream_rounds
from evaluation.sessions import build_sessions
from evaluation.tables import as_csv, as_markdown, format_value
from evaluation.trec import write_trec
from experiments.costs import counts_of
from experiments.models import hardware
from experiments.own_models import OwnModels
from experiments.run import scrolling_name
from experiments.run_folder import check_run_folder, run_folder
from experiments.setup import Setup
from feedback.protocols import PROTOCOLS
from feedback.strategies import STRATEGIES
from feedback.users import CONTROLS
from files import write_bytes, write_json
from settings import ComparisonSettings

log = logging.getLogger(__name__)

EXTRA_MEASURES = ("Session F1", "BRI")  # of the last round, where the run has them
COSTS = {
    "search": "searches", "caption": "captions", "rewrite": "rewrites", "tokens": "tokens",
    "search seconds": "s searching", "move seconds": "s moving", "caption seconds": "s captioning",
    "rewrite seconds": "s rewriting", "seconds": "s in all",
}  # fmt: skip


@dataclass(frozen=True)
class Play:
    """One strategy with one user."""

    name: str  # in tables
    strategy: str
    user: str
    noise: float  # share of wrong picks
    seeds: tuple[int, ...]  # what is random is played once with each; one seed where nothing is random
    control: str  # name of the run without feedback that it is compared with; its own for that run itself

    @property
    def is_control(self) -> bool:
        """Whether it is a run without feedback."""
        return self.name == self.control

    def file(self, folder: Path, seed: int) -> Path:
        """Returns the file of the records of one seed."""
        noise = f"-noise{self.noise:g}" if self.noise else ""
        number = f"-seed{seed}" if len(self.seeds) > 1 else ""
        return folder / f"{self.strategy}-{self.user}{noise}{number}.rounds.jsonl"


@dataclass(frozen=True)
class Scores:
    """What is kept of one play; query by query the headline measure alone. Means over its seeds."""

    written: dict[str, Any]  # for comparison.json, see `Measures.to_json`
    headline: Measures  # holds one measure
    counts: dict[str, float]  # how much of each stage it asked for, see `counts_of`

    @property
    def means(self) -> dict[str, list[float]]:
        """Means per round, by measure."""
        return self.written["means_per_round"]


@dataclass(frozen=True)
class Row:
    """What a comparison found for one play."""

    play: Play
    scores: Scores
    minus_scrolling: Difference  # its headline measure in the last round minus that of its control
    p_value: float  # of that difference, adjusted for all rows of the table
    minus_controls: Mapping[str, Difference]  # minus the same strategy's random and first picks
    costs: Mapping[str, float | None]  # a query's, see `Costs.per_query`


def run_comparison(settings: ComparisonSettings, own: OwnModels | None = None) -> Path:
    """Plays every strategy with every user, and compares each with scrolling.

    Returns:
        The folder with one ``NAME.rounds.jsonl`` each, ``comparison.md``, ``comparison.csv``,
        ``comparison.json``, ``comparison.png``, where there is a difference ``differences.png`` and the
        ``report.html`` of the run that gained most, and for other tools ``trec/NAME/``.

    Raises:
        FileNotFoundError: If dataset, checkpoint or index are missing.
        ValueError: If they cannot be used, or the folder holds a comparison with other settings.
    """
    settings = settings.resolved()
    check_run_folder(settings)
    setup = Setup.open(settings, own=own)
    setup.check_rewriter()
    plays = plays_of(settings)
    for play in plays:  # a user that cannot judge is found out before anything is played
        setup.user(play.user, play.noise)
    measure = PROTOCOLS[settings.protocol].measure_of(setup.queries)
    with run_folder(settings, setup.identity()) as folder:
        setup.costs.keep_in(folder / "costs.json")
        scores: dict[str, Scores] = {}
        for play in plays:
            log.info("playing %s", play.name)
            setup.costs.run = play.name
            for seed in play.seeds:
                setup.play(play.strategy, setup.user(play.user, play.noise, seed), play.file(folder, seed))
            scores[play.name] = _scores(folder, setup, play, measure)
        setup.costs.save()
        rows = _compare(plays, scores, measure, setup)
        _write(folder, rows, measure, setup)
        _report_best(folder, rows, setup)
    return folder


def plays_of(settings: ComparisonSettings) -> list[Play]:
    """Lists what is played: the control without feedback first, then every strategy with every user.

    Judging users play once with each of the noises; only what is random plays with several seeds. Where users
    may give up, each has a control of its own, in which the same user looks and gives up as it would.
    """
    seeds = tuple(range(settings.seed, settings.seed + settings.seeds))
    people = [
        (user, noise)
        for user in settings.users
        for noise in ((0.0,) if user in CONTROLS else settings.noises)
    ]
    scrolling = scrolling_name(settings.protocol)
    plays = []
    if settings.user_patience is None:
        plays.append(Play(scrolling, "original", "first", 0.0, seeds[:1], scrolling))
    for user, noise in people:
        who = f"{user} user" + (f", {noise:.0%} wrong" if noise else "")
        drawn = seeds if noise or user == "random" else seeds[:1]
        control = scrolling if settings.user_patience is None else f"{scrolling}, {who}"
        if settings.user_patience is not None:
            plays.append(Play(control, "original", user, noise, drawn, control))
        plays += [
            Play(f"{strategy}, {who}", strategy, user, noise, drawn, control)
            for strategy in settings.strategies
            # That is the control, unless the user's words reach it too.
            if strategy != "original" or PROTOCOLS[settings.protocol].tells
        ]
    return plays


def _scores(folder: Path, setup: Setup, play: Play, measure: str) -> Scores:
    """Measures a play's files, one after the other, and writes each as TREC files."""
    files = [play.file(folder, seed) for seed in play.seeds]
    round_count, image_count = setup.loop.rounds, len(setup.retriever.index)
    measured = []
    for file in files:
        sessions = build_sessions(stream_rounds(file), round_count, setup.queries)
        measured.append(measure_sessions(sessions, round_count, image_count))
        name = file.name.removesuffix(".rounds.jsonl")
        write_trec(folder / "trec" / name, stream_rounds(file), sessions, round_count)
    measures = mean_over_seeds(measured)
    needs = STRATEGIES[play.strategy]
    collection = image_count if needs.captions_collection else 0
    counted = [
        counts_of(stream_rounds(file), needs.needs_captions, needs.needs_rewriter, collection)
        for file in files
    ]
    return Scores(
        measures.to_json(),
        replace(measures, values={measure: measures.values[measure]}),
        {stage: sum(counts[stage] for counts in counted) / len(counted) for stage in counted[0]},
    )


def _compare(plays: Sequence[Play], scores: Mapping[str, Scores], measure: str, setup: Setup) -> list[Row]:
    """Compares every play with its control, and with the same strategy's random and first picks."""

    def minus(play: Play, other: str) -> Difference:
        return compare(scores[other].headline, scores[play.name].headline, measure, seed=setup.loop.seed)

    minus_scrolling = {play.name: minus(play, play.control) for play in plays}
    family = [play.name for play in plays if not play.is_control]
    adjusted = adjusted_by_holm([minus_scrolling[name].p_value for name in family])
    p_values = dict(zip(family, adjusted, strict=True))
    rows = []
    for play in plays:
        picks = {user: f"{play.strategy}, {user} user" for user in CONTROLS if play.user != user}
        minus_controls = {
            user: minus(play, name) for user, name in picks.items() if name in scores and not play.is_control
        }
        counts = scores[play.name].counts
        costs = setup.costs.per_query(play.name, counts, len(setup.queries))
        p_value = p_values.get(play.name, 1.0)
        rows.append(Row(play, scores[play.name], minus_scrolling[play.name], p_value, minus_controls, costs))
    return rows


def _write(folder: Path, rows: Sequence[Row], measure: str, setup: Setup) -> None:
    scores = _score_cells(rows, measure)
    table, costs = as_markdown(scores), as_markdown(_cost_cells(rows))
    text = f"{table}\n\n{_explanation(rows, setup)}\n\nCost of one query:\n\n{costs}\n"
    write_bytes(folder / "comparison.md", text.encode())
    write_bytes(folder / "comparison.csv", as_csv(scores).encode())
    write_json(folder / "comparison.json", _json(rows, setup))
    means = {row.play.name: row.scores.means for row in rows}
    plot_recall_f1(means, folder / "comparison.png", measure=measure)
    differences = {row.play.name: row.minus_scrolling for row in rows if not row.play.is_control}
    if differences:
        label = f"{measure} of the last round minus the control's"
        plot_differences(differences, folder / "differences.png", label)
    print(as_markdown(_narrow(scores, measure)))  # noqa: T201  the final table is the script's answer
    log.info("written: %s, comparison.png, differences.png", folder / "comparison.md")


def _report_best(folder: Path, rows: Sequence[Row], setup: Setup) -> None:
    """Reports the run that gained most over its control, case by case."""
    settings, queries = setup.loop, setup.queries
    compared = [row for row in rows if not row.play.is_control]
    if not compared:
        return
    best = max(compared, key=lambda row: row.minus_scrolling.mean).play
    scores = {row.play.name: row.scores for row in rows}
    control = next(row.play for row in rows if row.play.name == best.control)
    files = [play.file(folder, play.seeds[0]) for play in (best, control)]
    sessions, scrolled = (build_sessions(stream_rounds(file), settings.rounds, queries) for file in files)
    made_of = RunFiles(
        scores[best.name].written | {"scrolling": scores[control.name].means},
        files[0].name,
        "comparison.png",
        {"strategy": best.strategy, "user": best.user, "user_noise": best.noise},
    )
    path = write_report(folder, setup.dataset.folder, sessions, scrolled, control=control.name, files=made_of)
    log.info("written: %s, of %s", path, best.name)


def _score_cells(rows: Sequence[Row], measure: str) -> list[list[str]]:
    first = rows[0].scores.means
    extra = [name for name in EXTRA_MEASURES if name in first]
    controls = [user for user in CONTROLS if any(user in row.minus_controls for row in rows)]
    header = [
        "Run",
        "seeds",
        *(f"{measure}, round {number}" for number in range(len(first[measure]))),
        f"minus {rows[0].play.control.split(',')[0]} (95%)",
        "p (Holm)",
        *(f"minus {user} pick (95%)" for user in controls),
        *extra,
    ]
    cells = [header]
    for row in rows:
        means, minus = row.scores.means, ["", ""]
        if not row.play.is_control:
            minus = [
                _interval(row.minus_scrolling),
                f"{row.p_value:.3f}" if row.p_value >= 0.001 else "< 0.001",
            ]
        cells.append(
            [
                row.play.name,
                str(len(row.play.seeds)),
                *(format_value(measure, value) for value in means[measure]),
                *minus,
                *(_interval(row.minus_controls.get(user)) for user in controls),
                *(format_value(name, means[name][-1]) for name in extra),
            ]
        )
    return cells


def _narrow(cells: list[list[str]], measure: str) -> list[list[str]]:
    """Shortens a table for a terminal: the rounds' heads, a user that all share, seeds that are all one."""
    rounds = [place for place, head in enumerate(cells[0]) if head.startswith(f"{measure}, round ")]
    minus, p_value = rounds[-1] + 1, rounds[-1] + 2
    kept = [0, *([1] if any(row[1] != "1" for row in cells[1:]) else []), *rounds, minus, p_value]
    users = {row[0].split(", ", 1)[1] for row in cells[1:] if row[minus]}
    shared = f", {users.pop()}" if len(users) == 1 else ""
    header = [f"{measure} in round", "seeds", *map(str, range(len(rounds))), cells[0][minus], "p"]
    rows = [[row[0].removesuffix(shared), *row[1:]] for row in cells[1:]]
    return [[row[place] for place in kept] for row in (header, *rows)]


def _interval(difference: Difference | None) -> str:
    if difference is None:
        return ""
    return f"{100 * difference.mean:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"


def _cost_cells(rows: Sequence[Row]) -> list[list[str]]:
    def cell(name: str, value: float | None) -> str:
        return "not measured" if value is None else f"{value:.{3 if 'seconds' in name else 1}f}"

    header = ["Run", *COSTS.values()]
    return [header, *([row.play.name, *(cell(name, row.costs[name]) for name in COSTS)] for row in rows)]


def _explanation(rows: Sequence[Row], setup: Setup) -> str:
    several = max(len(row.play.seeds) for row in rows)
    family = sum(not row.play.is_control for row in rows)
    return (
        f"{rows[0].minus_scrolling.query_count} queries, protocol {setup.loop.protocol}, seed "
        f"{setup.loop.seed}; {hardware()}. Shares in percent. Intervals: paired bootstrap over queries, "
        f"10,000 resamples, each for itself. p: of no difference from the control, adjusted for the "
        f"{family} comparisons of the table (Holm). What is random is the mean over {several} seeds; all "
        "else is deterministic and played once. Costs: as if each run had been played alone; seconds per "
        "caption and rewrite are means over all runs. "
        f"{len(setup.left_out)} queries were left out because no picture that answers them could be read."
    )


def _json(rows: Sequence[Row], setup: Setup) -> dict[str, object]:
    runs = {
        row.play.name: row.scores.written
        | {
            "strategy": row.play.strategy,
            "user": row.play.user,
            "noise": row.play.noise,
            "seeds": list(row.play.seeds),
            "minus_scrolling": asdict(row.minus_scrolling),
            "p_value_holm": row.p_value,
            "minus_controls": {user: asdict(found) for user, found in row.minus_controls.items()},
            "costs_per_query": dict(row.costs),
        }
        for row in rows
    }
    return {
        "runs": runs,
        "queries_left_out": [asdict(skip) for skip in setup.left_out],
        "hardware": hardware(),
    }
