"""The benchmarks of search and strategies, on few vectors: each way has a row, held against what is true."""

import argparse

import pytest

from benchmarks import posterior
from benchmarks.search import measure


def test_each_engine_is_measured_and_exact_ones_are_right(tmp_path):
    arguments = argparse.Namespace(engines=["flat", "faiss-flat"], queries=20, threads=[1])
    flat, plain = measure(arguments, 700, tmp_path)
    for row in (flat, plain):
        assert row["recall@10"] == row["right ranks"] == pytest.approx(1)
        assert row["queries/s"] > 0 and row["queries/CPU s"] > 0 and row["ranks/CPU s"] > 0
        assert row["disk, MB"] >= 700 * 256 * 4 / 1e6
    assert plain["times faiss-flat"] == 1
    assert flat["times faiss-flat"] == pytest.approx(flat["queries/CPU s"] / plain["queries/CPU s"])
    assert not (tmp_path / "flat").exists()


def test_a_graph_has_no_ranks(tmp_path):
    pytest.importorskip("usearch", reason="needs requirements/dev.txt, Python 3.11")
    arguments = argparse.Namespace(engines=["usearch"], queries=20, threads=[1])
    (row,) = measure(arguments, 700, tmp_path)
    assert row["recall@10"] > 0.9 and row["ranks/CPU s"] is None


def test_each_strategy_is_played_over_several_rounds(tmp_path):
    arguments = argparse.Namespace(strategies=list(posterior.STRATEGIES), sessions=3, rounds=3)
    rows = posterior.measure(arguments, 700, tmp_path)
    assert [row["strategy"] for row in rows] == list(posterior.STRATEGIES)
    assert all(row["second round"] > 0 and row["last round"] > 0 for row in rows)
