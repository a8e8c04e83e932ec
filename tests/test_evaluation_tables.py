"""Rows as Markdown and CSV: what a reader of each format gets back is what was put in."""

from evaluation.tables import as_markdown, format_table

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


def test_a_runs_table_has_shares_in_percent_and_ranks_as_they_are():
    summary = {"Recall@10": [0.5, 1.0], "Mean rank": [12.0, 1.0], "BRI": [2.0, 1.23456]}
    assert format_table(summary, ["Mean rank", "BRI"]).splitlines() == [
        "| Round | Mean rank |   BRI |",
        "| ----: | --------: | ----: |",
        "|     0 |      12.0 | 2.000 |",
        "|     1 |       1.0 | 1.235 |",
    ]
    assert "|      50.0 |" in format_table(summary)
