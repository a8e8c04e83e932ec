"""Tables: of one run, one row per round, and any rows as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

COLUMNS = ("Recall@1", "Recall@5", "Recall@10", "F1@10", "Mean rank")
COLUMNS_WITHOUT_TARGET = ("P@10", "R@10", "F1@10", "Session recall", "Session F1")
# Ranks, and logarithms of ranks, are not shares of one; they are not shown in percent.
NOT_SHARES = ("Mean rank", "Median rank", "BRI")


def format_table(summary: Mapping[str, Sequence[float]], columns: Sequence[str] | None = None) -> str:
    """Lays out the means of a run, as `Measures.summary` gives them, as Markdown; shares in percent.

    The columns are measures, in order; None: the usual ones of those at hand.
    """
    if columns is None:
        usual = COLUMNS if "Mean rank" in summary else COLUMNS_WITHOUT_TARGET
        columns = [name for name in usual if name in summary]
    rows = [["Round", *columns]]
    for number in range(len(summary[columns[0]])):
        rows.append([str(number), *(format_value(name, summary[name][number]) for name in columns)])
    return as_markdown(rows, left=0)


def format_value(name: str, value: float) -> str:
    """Returns a mean as the table shows it: a share in percent, a rank to a tenth, BRI to a thousandth."""
    if name in NOT_SHARES:
        return f"{value:.3f}" if name == "BRI" else f"{value:.1f}"
    return f"{100 * value:.1f}"


def as_markdown(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lays out rows as a Markdown table that is aligned in a terminal too.

    Args:
        rows: The header first; all of one length.
        left: How many columns, from the first, hold words and stand to the left; the others hold numbers.

    Returns:
        Lines joined by newlines, none at the end. A ``|`` inside a cell is escaped.
    """
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *(len(row[place]) for row in cells)) for place in range(len(cells[0]))]
    ruler = ["-" * width if place < left else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in (cells[0], ruler, *cells[1:])
    )


def as_csv(rows: Sequence[Sequence[str]]) -> str:
    """Writes rows as CSV, the header first."""
    sheet = io.StringIO()
    csv.writer(sheet, lineterminator="\n").writerows(rows)
    return sheet.getvalue()
