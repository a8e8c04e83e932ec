"""`make fuzz` tries every property there is, counts honestly and fails when one does."""

import os
import re
import subprocess
import sys
from pathlib import Path

from fuzz import GROUPS, TESTS

HOLDS = """
from hypothesis import given, strategies as st

def test_no_property():
    raise AssertionError("is not run")

@given(st.integers())
def test_holds(number):
    with open(SEEN, "a") as file:
        file.write(f"{number}\\n")
"""
FAILS = """
@given(st.integers(0, 10_000))
def test_fails(number):
    assert number < 100
"""


def run(path, minutes):
    done = subprocess.run(
        [sys.executable, TESTS / "fuzz.py", str(path), "--minutes", str(minutes)],
        cwd=path.parent, capture_output=True, text=True, timeout=300,
        env=os.environ | {"FUZZ_EXAMPLES": "20", "CI": "1"},
    )  # fmt: skip
    return done.returncode, done.stdout


def test_every_input_is_counted_and_a_second_pass_brings_others(tmp_path):
    path, seen = tmp_path / "test_one.py", tmp_path / "seen"
    path.write_text(HOLDS.replace("SEEN", repr(str(seen))))
    status, said = run(path, 0.02)
    assert status == 0
    numbers = seen.read_text().split()
    (count,) = re.findall(r"([\d,]+) test_one.py::test_holds", said)
    (passes,) = re.findall(r"1 of 1 properties, (\d+) whole passes", said)
    assert int(count.replace(",", "")) == len(numbers)
    assert int(passes) >= 2 and len(set(numbers)) > 25  # though in CI Hypothesis would repeat its twenty


def test_a_property_that_fails_is_shown_and_the_status_says_so(tmp_path):
    path = tmp_path / "test_two.py"
    path.write_text(HOLDS.replace("SEEN", repr(os.devnull)) + FAILS)
    status, said = run(path, 0.5)
    assert status == 1 and "number=100" in said


def test_a_file_without_properties_is_a_failure(tmp_path):
    path = tmp_path / "test_none.py"
    path.write_text("def test_plain(): pass\n")
    assert run(path, 0.01)[0] == 1


def test_no_property_is_left_out():
    grouped = {path for patterns in GROUPS.values() for one in patterns for path in TESTS.glob(one)}
    holding = {path for path in TESTS.glob("test_*.py") if "@given(" in path.read_text("utf-8")}
    assert holding - grouped == {Path(__file__)}
    for patterns in GROUPS.values():
        assert all(list(TESTS.glob(one)) for one in patterns)
