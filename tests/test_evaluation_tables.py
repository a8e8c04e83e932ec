"""Rows as Markdown, CSV and LaTeX: what a reader of each format gets back is what was put in."""

import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from evaluation.tables import as_csv, as_latex, as_markdown

ROWS = [
    ["Run", "Recall@10", "difference"],
    ["a|b, 30% noise", "9.5", "+1.5 (-1.5 to +5.0)"],
    ["c_d", "10.0", ""],
]


def test_markdown_is_aligned_and_keeps_bars_inside_cells():
    assert as_markdown(ROWS).splitlines() == [
        r"| Run             | Recall@10 |          difference |",
        r"| --------------- | --------: | ------------------: |",
        r"| a\|b, 30% noise |       9.5 | +1.5 (-1.5 to +5.0) |",
        r"| c_d             |      10.0 |                     |",
    ]
    assert as_markdown([["k"], ["1"]], left=0).splitlines() == ["|   k |", "| --: |", "|   1 |"]


@given(
    st.lists(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r")), min_size=2, max_size=2),
        min_size=1,
    )
)
def test_csv_is_read_back_as_it_was(rows):
    assert list(csv.reader(io.StringIO(as_csv(rows), newline=""))) == rows


def test_latex_escapes_and_sets_signs_in_mathematics():
    assert as_latex(ROWS) == (
        "\\begin{tabular}{lrr}\n\\toprule\n"
        "Run & Recall@10 & difference \\\\\n\\midrule\n"
        "a\\textbar{}b, 30\\% noise & 9.5 & $+1.5$ ($-1.5$ to $+5.0$) \\\\\n"
        "c\\_d & 10.0 &  \\\\\n\\bottomrule\n\\end{tabular}\n"
    )
    assert "2026-11-23 \\& $-2$ x-1" in as_latex([["2026-11-23 & -2 x-1"]])
    assert "\\textbackslash{}\\{\\}\\^" not in as_latex([["\\{}^"]])
    assert "\\textbackslash{}\\{\\}\\textasciicircum{}" in as_latex([["\\{}^"]])
