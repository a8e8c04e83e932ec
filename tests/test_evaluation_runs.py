import subprocess
import sys

import pytest

from evaluation.runs import append_rounds, read_rounds
from files import read_json, write_json
from tests.test_evaluation_measures import make_round

ROUNDS = [make_round("é 1", 0, ["a", "b"], "b", ["b"]), make_round("é 1", 1, ["b"], "b", ["b"], stop="found")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "missing or unknown fields"),
    ],
)
def test_broken_lines_are_named(tmp_path, line, message):
    path = tmp_path / "rounds.jsonl"
    append_rounds(path, ROUNDS)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=rf"rounds\.jsonl, line 3: .*{message}") as caught:
        read_rounds(path)
    assert "\n" not in str(caught.value)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_failed_rename_leaves_no_temporary_file(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_json(tmp_path / "taken", {})
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_importing_loads_no_heavy_library():
    modules = "measures, trec, comparison, plots, tables, report, runs"
    heavy = "{'matplotlib', 'ir_measures', 'jinja2', 'PIL', 'torch'}"
    loaded = f"', '.join({heavy} & sys.modules.keys())"
    code = f"import sys; from evaluation import {modules}; sys.exit({loaded} or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
