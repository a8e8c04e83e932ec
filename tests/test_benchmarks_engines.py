"""The engine benchmark compares like with like; the start-up benchmark times whole processes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import start_up
from benchmarks.engines import EnginesSettings, measure, sorting_rows
from benchmarks.engines import main as compare_engines
from BLIP.checkpoints import load_retrieval

FIXTURES = Path(__file__).parent / "fixtures" / "blip"
CONFIG = {"num_attention_heads": 2, "vision": {"heads": 3}}
SETTINGS = EnginesSettings(engines=("towers", "packed", "bf16"), seconds=0.01)


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    return load_retrieval(FIXTURES / "itm.pth", config=CONFIG)


@pytest.mark.parametrize("part", SETTINGS.parts)
def test_engines_that_keep_32_bits_agree(model, part):
    eager, towers, packed, halved = measure(SETTINGS, "tiny", model, part, 2)
    assert [row["engine"] for row in (eager, towers, packed, halved)] == ["eager", "towers", "packed", "bf16"]
    assert eager["greatest difference"] == 0 and eager["times faster"] == 1
    assert max(towers["greatest difference"], packed["greatest difference"]) <= 1e-5
    assert 1e-5 < halved["greatest difference"] < 0.5
    assert all(row["CPU ms each"] > 0 and row["ready, s"] > 0 for row in (eager, towers, packed, halved))


def test_a_missing_engine_is_named_with_its_installation(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        ModuleNotFoundError, match="openvino needs openvino; run: pip install -r requirements-e"
    ):
        measure(replace(SETTINGS, engines=("openvino",)), "tiny", model, "text", 1)


def test_tables_and_data_are_written(tmp_path, monkeypatch, capsys):
    arguments = ["--models", "demo", "--engines", "towers", "--parts", "text", "--demo-batches", "1"]
    arguments += ["--seconds", "0.01", "--texts", "6", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["engines", *arguments])
    compare_engines()
    written = json.loads((tmp_path / "engines.json").read_text())
    assert [row["engine"] for row in written["rows"]] == ["eager", "towers"]
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["|", "model", "|", "part", "|", "batch", "|", "eager,", "ms", "|", "towers", "|"] in printed
    assert [line[3] for line in printed if line[:2] == ["|", "demo"]] == ["text", "eager", "towers"]


def test_orders_of_texts_are_compared():
    assert [row["texts"] for row in sorting_rows(70)] == ["in the order given", "sorted by length"]


def test_processes_are_timed_and_a_failure_is_told(monkeypatch):
    monkeypatch.setattr(start_up, "COMMANDS", {"help": ("-c", "import json")})
    (row,) = start_up.measure(2)
    assert row["modules"] > 10 and row["s, least"] >= 0.001 and row["CPU s, median"] > 0
    monkeypatch.setattr(start_up, "COMMANDS", {"help": ("-c", "raise SystemExit('no demo')")})
    with pytest.raises(ValueError, match="exit status 1, expected 0: no demo"):
        start_up.measure(1)
