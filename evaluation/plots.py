"""Recall and F1 per round, drawn for one or several runs; and differences with their intervals."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.comparison import Difference
from files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by most colour-blind readers; markers and dashes survive grey printing.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", "-.", ":")
LEGEND_WIDTH = 130  # letters, marks included


def plot_recall_f1(
    curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path, measure: str = "Recall@10"
) -> None:
    """Draws a PNG of `measure` and F1 in each round, two panels; `curves` are summaries by run."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    label = "Recall@10 of the target" if measure == "Recall@10" else measure
    panels = {measure: label, "F1@10": "F1@10"}
    columns = max(1, min(4, len(curves), LEGEND_WIDTH // (max(map(len, curves)) + 6)))
    lines = -(-len(curves) // columns)
    figure = _figure(9, 3.7 + 0.2 * lines, wspace=0.06)
    for axes, (drawn, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for place, (name, summary) in enumerate(curves.items()):
            axes.plot(
                range(len(summary[drawn])),
                summary[drawn],
                label=name,
                color=COLOURS[place % len(COLOURS)],
                # Shifted by one for each turn of the palette, so that no two runs look alike.
                marker=MARKERS[(place + place // len(COLOURS)) % len(MARKERS)],
                linestyle=DASHES[place % len(DASHES)],
                linewidth=1.8,
                markersize=5,
                clip_on=False,
                zorder=3,
            )
        axes.set_xlabel("Round")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        top = max(max(summary[drawn]) for summary in curves.values())
        axes.set_ylim(0, min(1.0, top * 1.15) if top else 1.0)
        axes.margins(x=0.04)
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    _save(figure, path)


def plot_differences(differences: Mapping[str, Difference], path: Path, label: str) -> None:
    """Draws a PNG of differences, shares of one, with their intervals; one line a run, at least one.

    The label says what they are of.
    """
    figure = _figure(8, 1.2 + 0.32 * len(differences))
    axes = figure.subplots()
    for place, difference in enumerate(differences.values()):
        sure = difference.low > 0 or difference.high < 0
        colour = COLOURS[0] if sure else "#888888"
        ends = [100 * difference.low, 100 * difference.high]
        axes.plot(ends, [place, place], color=colour, linewidth=2)
        axes.plot([100 * difference.mean], [place], "o", color=colour, markersize=6)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(differences)), list(differences))
    axes.invert_yaxis()
    axes.set_xlabel(f"{label},\nin points; grey: the interval holds 0")
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _save(figure, path)


def _figure(width: float, height: float, wspace: float | None = None) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), dpi=150, layout=ConstrainedLayoutEngine(wspace=wspace))
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", facecolor="white")
    write_bytes(path, picture.getvalue())
