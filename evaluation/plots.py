"""Recall and F1 per round, drawn for one or several runs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.runs import write_atomically

# Okabe and Ito's palette, told apart by most colour-blind readers; markers and dashes survive grey printing.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", "-.", ":")


def plot_recall_f1(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path, k: int = 10) -> None:
    """Draws recall and F1 in each round, two panels beside each other.

    Where not every run has targets, the left panel shows the recall of the relevant images instead.

    Args:
        curves: For each run its name and its summary (means per round).
        path: The PNG to write.
        k: Cutoff of the measures drawn.

    Raises:
        ValueError: If there is no run, or one lacks the measures.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if not curves:
        raise ValueError("no run to draw: curves is empty")
    if all(f"Recall@{k}" in summary for summary in curves.values()):
        panels = {f"Recall@{k}": f"Recall@{k} of the target"}
    else:
        panels = {f"R@{k}": f"Recall@{k} of the relevant images"}
    panels[f"F1@{k}"] = f"F1@{k}"
    for name, summary in curves.items():
        absent = [measure for measure in panels if measure not in summary]
        if absent:
            raise ValueError(f"run {name!r} has no {' and no '.join(absent)}; it has {', '.join(summary)}")

    figure = Figure(figsize=(9, 3.9), dpi=150, layout=ConstrainedLayoutEngine(wspace=0.06))
    FigureCanvasAgg(figure)
    for axes, (measure, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for place, (name, summary) in enumerate(curves.items()):
            axes.plot(
                range(len(summary[measure])),
                summary[measure],
                # A leading underscore would hide the run from the legend.
                label=name if not name.startswith("_") else f" {name}",
                color=COLOURS[place % len(COLOURS)],
                marker=MARKERS[place % len(MARKERS)],
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
        top = max(max(summary[measure]) for summary in curves.values())
        axes.set_ylim(0, min(1.0, top * 1.15) if top else 1.0)
        axes.margins(x=0.04)
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=9
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", facecolor="white")
    write_atomically(path, picture.getvalue())
