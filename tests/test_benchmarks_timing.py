"""What the benchmarks share: turns, processes, and the results' table and file."""

import argparse
import json
import os
import subprocess
import sys

import pytest

from benchmarks.timing import in_a_process, in_turns, report
from settings import PROJECT

BENCHMARKS = sorted(path.stem for path in (PROJECT / "benchmarks").glob("*.py"))
SHARED = {"__init__", "sequential", "timing"}


def test_ways_take_turns_and_keep_what_they_returned():
    order = []
    timed = in_turns({name: lambda name=name: order.append(name) or len(order) for name in "ab"}, 3)
    assert "".join(order) == "ababab"
    assert (timed["a"].result, timed["b"].result) == (5, 6)
    assert timed["a"].wall >= 0 and timed["a"].cpu >= 0


def test_a_process_has_the_threads_asked_for_and_this_one_keeps_its_own(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert in_a_process(3, os.getenv, "OMP_NUM_THREADS") == "3"
    assert in_a_process(3, os.getenv, "MKL_NUM_THREADS") == "3"
    assert os.environ["OMP_NUM_THREADS"] == "7" and "MKL_NUM_THREADS" not in os.environ


def test_the_report_says_by_which_command_and_on_what(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["search", "--queries", "1"])
    rows = [
        {"engine": "flat", "vectors": 31783, "queries/s": 1234.5, "ranks/s": 0.12345},
        {"engine": "peer", "vectors": 31783, "queries/s": 99.94, "ranks/s": None},
    ]
    report("search", argparse.Namespace(output=tmp_path / "new", queries=1), rows)
    kept = json.loads((tmp_path / "new" / "search.json").read_text())
    assert kept["rows"] == rows and kept["settings"]["queries"] == 1
    printed = capsys.readouterr().out
    assert "python -m benchmarks.search --queries 1" in printed
    assert kept["hardware"] in printed and kept["date"] in printed
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()[-4:]]
    assert cells[0] == ["engine", "vectors", "queries/s", "ranks/s"]
    assert cells[2:] == [["flat", "31,783", "1,234", "0.123"], ["peer", "31,783", "99.9", "–"]]


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name not in SHARED])
def test_help_loads_no_model_library(name):
    code = f"import sys; from benchmarks.{name} import main; sys.argv[1:] = ['--help']\ntry: main()\n"
    code += "finally: print({'torch', 'transformers', 'faiss'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert "--output" in done.stdout and done.stdout.endswith("set()\n")
