"""Recall and F1 per round, drawn for one or several runs; and differences with their intervals."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.comparison import Difference
from files import write_bytes

# Okabe and Ito's palette, told apart by most colour-blind readers; markers and dashes survive grey printing.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", "-.", ":")
LEGEND_WIDTH = 130  # letters, marks included


def plot_recall_f1(
    curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path, k: int = 10, measure: str | None = None
) -> None:
    """Draws recall and F1 in each round, two panels beside each other.

    Args:
        curves: For each run its name and its summary (means per round).
        path: The PNG to write.
        k: Cutoff of the measures drawn.
        measure: In the left panel. None: Recall@k of the target, or where not every run has targets the
            recall of the relevant images.

    Raises:
        ValueError: If there is no run, or one lacks the measures.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if not curves:
        raise ValueError("no run to draw: curves is empty")
    if measure is not None and measure != f"Recall@{k}":
        panels = {measure: measure}
    elif all(f"Recall@{k}" in summary for summary in curves.values()):
        panels = {f"Recall@{k}": f"Recall@{k} of the target"}
    else:
        panels = {f"R@{k}": f"Recall@{k} of the relevant images"}
    panels[f"F1@{k}"] = f"F1@{k}"
    for name, summary in curves.items():
        absent = [drawn for drawn in panels if drawn not in summary]
        if absent:
            raise ValueError(f"run {name!r} has no {' and no '.join(absent)}; it has {', '.join(summary)}")

    columns = max(1, min(4, len(curves), LEGEND_WIDTH // (max(map(len, curves)) + 6)))
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(9, 3.7 + 0.2 * lines), dpi=150, layout=ConstrainedLayoutEngine(wspace=0.06))
    FigureCanvasAgg(figure)
    for axes, (drawn, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for place, (name, summary) in enumerate(curves.items()):
            axes.plot(
                range(len(summary[drawn])),
                summary[drawn],
                # A leading underscore would hide the run from the legend.
                label=name if not name.startswith("_") else f" {name}",
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
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        top = max(max(summary[drawn]) for summary in curves.values())
        axes.set_ylim(0, min(1.0, top * 1.15) if top else 1.0)
        axes.margins(x=0.04)
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", facecolor="white")
    write_bytes(path, picture.getvalue())


def plot_differences(differences: Mapping[str, Difference], path: Path, label: str) -> None:
    """Draws each run's difference from its control with its interval, one line a run.

    Args:
        differences: For each run its name and its difference, as shares of one.
        path: The PNG to write.
        label: What the difference is of.

    Raises:
        ValueError: If there is no run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if not differences:
        raise ValueError("no run to draw: differences is empty")
    figure = Figure(figsize=(8, 1.2 + 0.32 * len(differences)), dpi=150, layout=ConstrainedLayoutEngine())
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, difference in enumerate(differences.values()):
        sure = difference.low > 0 or difference.high < 0
        colour = COLOURS[0] if sure else "#888888"
        ends = [100 * difference.low, 100 * difference.high]
        axes.plot(ends, [place, place], color=colour, linewidth=2)
        axes.plot([100 * difference.mean], [place], "o", color=colour, markersize=6)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(differences)), [name.removeprefix("_") for name in differences])
    axes.invert_yaxis()
    axes.set_xlabel(f"{label},\nin points; grey: the interval holds 0")
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", facecolor="white")
    write_bytes(path, picture.getvalue())
