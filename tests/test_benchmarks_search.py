"""The search benchmark on few vectors: every engine has its row, recall and speeds; the files are there."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.search import SearchSettings, clustered, measure
from benchmarks.search import main as search_benchmark


def test_vectors_are_unit_rows_and_streams_differ():
    (first,) = clustered(1000, 64, 0, 1, 5)
    (second,) = clustered(1000, 64, 0, 2, 5)
    assert np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    assert not np.allclose(first[:10], second[:10])
    assert ((first @ second.T).max(axis=1) > 0.5).all()  # of the same clusters


def test_each_engine_is_measured(tmp_path):
    settings = SearchSettings(
        sizes=(700,), engines=("flat", "faiss-flat"), dimension=16, queries=20, threads=(1,)
    )
    flat, plain = measure(settings, 700, tmp_path)
    for row in (flat, plain):
        assert row["recall_at_10"] == pytest.approx(1)
        assert row["queries_per_second_1"] > 0 and row["queries_per_cpu_second"] > 0
        assert row["disk_mb"] >= 700 * 16 * 4 / 1e6
    assert flat["ranks_per_cpu_second"] > 0
    assert not (tmp_path / "flat").exists()


def test_table_data_and_picture_are_written(tmp_path, monkeypatch, capsys):
    arguments = [
        "--sizes",
        "500",
        "--engines",
        "flat",
        "--dimension",
        "16",
        "--queries",
        "9",
        "--threads",
        "1",
    ]
    monkeypatch.setattr("sys.argv", ["search", *arguments, "--output", str(tmp_path)])
    search_benchmark()
    assert "| 500" in capsys.readouterr().out
    kept = json.loads((tmp_path / "search.json").read_text())
    assert kept["rows"][0]["engine"] == "flat" and "--sizes 500" in kept["machine"]["command"]
    assert (tmp_path / "search.md").read_text().count("\n") == 3
    assert Path(tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
