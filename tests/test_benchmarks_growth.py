"""The growth benchmark on small collections: a row a size, a row a round."""

import json

import pytest

from benchmarks.growth import GrowthSettings, measure, tables
from benchmarks.growth import main as growth_benchmark

SMALL = {"sizes": (500, 8_000), "long_size": 8_000, "long_rounds": 6, "rounds": 3, "queries": 4}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    settings = GrowthSettings(
        **SMALL, strategies=("append", "bayes"), scratch=tmp_path_factory.mktemp("growth")
    )
    return settings, *measure(settings)


def test_each_size_has_a_row_of_costs(measured):
    _, sizes, _ = measured
    assert [row["images"] for row in sizes] == [500, 8_000]
    for row in sizes:
        for cost in ("opening_seconds", "list_ms", "rank_ms", "list_alone_ms", "append_ms", "bayes_ms"):
            assert row[cost] > 0, cost
    assert sizes[1]["bayes_mb"] - sizes[1]["append_mb"] > 8_000 * 256 * 4 / 1e6  # it holds all vectors


def test_each_round_of_the_long_sessions_has_a_row(measured):
    _, _, rounds = measured
    assert [row["round"] for row in rounds] == list(range(6))
    assert all(row["append"] > 0 and row["bayes"] > 0 for row in rounds)


def test_sessions_that_all_end_early_are_named():
    settings = GrowthSettings(sizes=(10,), long_size=10, strategies=("append",), rounds=3, queries=2)
    with pytest.raises(ValueError, match="append over 10 images: all targets were found before round 1"):
        measure(settings)


def test_tables_hold_all_rows(measured):
    by_size, by_round = tables(*measured)
    assert by_size.count("\n") == 3 and "|  8,000 |" in by_size
    assert by_round.count("\n") == 7 and "`bayes`" in by_round


def test_table_data_and_picture_are_written(tmp_path, monkeypatch, capsys):
    small = "--sizes 300 --long-size 300 --long-rounds 2 --rounds 2 --queries 2 --strategies append"
    arguments = small.split()
    monkeypatch.setattr("sys.argv", ["growth", *arguments, "--output", str(tmp_path)])
    growth_benchmark()
    assert "| Round |" in capsys.readouterr().out
    kept = json.loads((tmp_path / "growth.json").read_text())
    assert kept["by_size"][0]["images"] == 300 and "--sizes 300" in kept["machine"]["command"]
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "growth.md").is_file()


def test_one_round_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        GrowthSettings(rounds=1)
