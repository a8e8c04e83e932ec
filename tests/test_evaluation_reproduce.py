"""Expected results: the file's shape, its commands, and the comparison with what a command leaves."""

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import settings
from evaluation import reproduce
from evaluation.reproduce import Expected, compare, read_expected, score_of

PROJECT = Path(__file__).parents[1]
KINDS = {
    "multi_modal_query_expansion.py": settings.ExperimentSettings,
    "multi_modal_query_expansion_mscoco.py": settings.ExperimentSettings,
    "compare.py": settings.ComparisonSettings,
    "experiments.dialogues": settings.DialogueSettings,
}
ENTRIES = read_expected()


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
def test_every_command_is_one_that_settings_accept_and_writes_the_file_named(entry):
    words = shlex.split(entry.command)
    program, *flags = words[2:] if words[1] == "-m" else words[1:]
    # Scores that change from run to run of a moving default would reproduce nothing: the folder is named.
    run = settings.read_settings(KINDS[program], {}, flags)
    assert run.output is not None and Path(entry.file).parent == run.output
    run.resolved()


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
def test_scores_are_shares_and_dates_are_dates(entry):
    assert all(0 <= number <= 1 for number in entry.expected or ())
    assert 0 <= entry.tolerance <= 0.05 and entry.about and re.fullmatch(r"[a-z0-9-]+", entry.name)
    if entry.origin == "measured":
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", entry.date) and entry.hardware


def test_there_are_published_and_own_results():
    assert {"published"} <= {entry.origin for entry in ENTRIES.values()}
    assert any(entry.command.split()[3] == "demo" for entry in ENTRIES.values())


ONE = Expected(
    "one", "x", "python x.py", "result.json", ("means", "R", 1), (0.5,), 0.02, "published", "a paper"
)


def test_a_score_is_found_by_its_path_and_compared_within_the_tolerance(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"means": {"R": [0.1, 0.52]}}))
    assert score_of(ONE, tmp_path) == (0.52,) and compare(ONE, (0.52,)) == compare(ONE, (0.48,)) == []
    assert compare(ONE, (0.53,)) == ["number 0: got 0.5300, expected 0.5000 within 0.02"]
    rounds = replace(ONE, score=("means", "R"), expected=(0.1, 0.5))
    assert score_of(rounds, tmp_path) == (0.1, 0.52) and compare(rounds, (0.1, 0.52)) == []
    assert compare(rounds, (0.1,)) == ["got 1 numbers, expected 2"]
    assert compare(ONE, (float("nan"),)) != []
    assert compare(replace(ONE, origin="open", expected=None), (0.1,)) == []
    with pytest.raises(ValueError, match="holds no means / S: no 'S'"):
        score_of(replace(ONE, score=("means", "S")), tmp_path)
    with pytest.raises(ValueError, match="holds no means / R / 7"):
        score_of(replace(ONE, score=("means", "R", 7)), tmp_path)
    with pytest.raises(ValueError, match="expected a number"):
        score_of(replace(ONE, score=("means",)), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"result\.json is missing; run: python x\.py"):
        score_of(ONE, tmp_path / "none")


def test_a_command_is_run_and_its_result_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "PROJECT", tmp_path)
    (tmp_path / "x.py").write_text("open('result.json', 'w').write('{\"R\": [0.25, 0.5]}')")
    entry = replace(ONE, score=("R",), expected=(0.25, 0.6), file=str(tmp_path / "result.json"))
    assert reproduce.reproduce(entry) == ["number 1: got 0.5000, expected 0.6000 within 0.02"]
    assert "0.2500 | 0.5000" in capsys.readouterr().out
    assert reproduce.reproduce(replace(entry, tolerance=0.1), runs=False) == []
    (tmp_path / "x.py").write_text("raise SystemExit(3)")
    with pytest.raises(ValueError, match="one: the command ended with status 3"):
        reproduce.reproduce(entry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"origin": "guessed"}, "origin is 'guessed'"),
        ({"origin": "open"}, "open as long as nothing is expected"),
        ({"expected": None}, "open as long as nothing is expected"),
        ({"origin": "measured"}, "needs the hardware and the date"),
        ({"source": None}, "needs its source"),
        ({"command": "rm x"}, "beginning with python"),
        ({"expected": "half"}, "expected a number"),
        ({"colour": "red"}, "entry 1: expected the fields"),
        ({"name": "first"}, "'first' is there already"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, change, message):
    good = {
        "name": "first", "about": "x", "command": "python x.py", "file": "f.json", "score": ["R"],
        "expected": [0.5], "tolerance": 0.1, "origin": "published", "source": "a paper",
    }  # fmt: skip
    path = tmp_path / "expected.yaml"
    path.write_text(json.dumps([good, good | {"name": "second"}]))  # JSON is YAML
    assert list(read_expected(path)) == ["first", "second"]
    path.write_text(json.dumps([good, good | {"name": "second"} | change]))
    with pytest.raises(ValueError, match=message):
        read_expected(path)
    path.write_text("a: [")
    with pytest.raises(ValueError, match="not YAML"):
        read_expected(path)


def test_the_list_and_an_unknown_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce"])
    reproduce.main()
    listed = capsys.readouterr().out
    assert all(f"| {name} " in listed for name in ENTRIES)
    monkeypatch.setattr(sys, "argv", ["reproduce", "nosuch"])
    with pytest.raises(ValueError, match="got 'nosuch', expected one of demo-default"):
        reproduce.main()
