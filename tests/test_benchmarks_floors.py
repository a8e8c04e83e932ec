"""Every stage beside its floor: all stages run on the demo, and the tables say what was measured."""

import json

import pytest

from benchmarks.floors import FloorSettings, Probe, Stage, probe_table, stage_table
from benchmarks.floors import main as floors

STAGES = ("decode", "embed", "encode a query", "search", "count the target's rank", "search, one query alone",
          "caption", "rewrite: read", "rewrite: write", "write the records")  # fmt: skip


@pytest.mark.demo
def test_every_stage_is_measured_and_written_down(tmp_path, monkeypatch, capsys, language_model):
    small = FloorSettings(images=8, captioned=2, pairs=2, batch=2, vectors=3000, queries=8)
    arguments = [
        part
        for name in ("images", "captioned", "pairs", "batch", "vectors", "queries")
        for part in (f"--{name}", str(getattr(small, name)))
    ]
    monkeypatch.setattr(
        "sys.argv", ["floors", *arguments, "--rewrite-model", language_model, "--output", str(tmp_path)]
    )
    floors()
    printed = capsys.readouterr().out
    kept = json.loads((tmp_path / "floors.json").read_text())
    assert len(kept["stages"]) == len(STAGES)
    for stage, name in zip(kept["stages"], STAGES, strict=True):
        assert stage["name"].startswith(name)
        assert stage["floor_ms"] > 0 and stage["measured_ms"] > 0
        assert stage["ratio"] == pytest.approx(stage["measured_ms"] / stage["floor_ms"])
        assert stage["name"] in printed
    assert all(value > 0 for value in kept["probe"].values())
    assert (tmp_path / "floors.md").read_text() == printed


def test_tables_say_floor_measured_and_ratio():
    table = stage_table([Stage("search", "query", "bytes", 0.5, 1.25)])
    cells = [cell.strip() for cell in table.splitlines()[2].strip("|").split("|")]
    assert cells == ["search", "query", "bytes", "0.5", "1.25", "2.5"]
    table = probe_table(Probe(108e9, 394e9, 31.4e9, 0.97e9))
    rates = [row.split("|")[2].strip() for row in table.splitlines()[2:]]
    assert rates == ["108 GFLOP", "394 GFLOP", "31.4 GB", "0.97 GB"]
