"""Arrows run one way: no circle among modules, and no import that runs back up, inside functions neither."""

import ast
import subprocess
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
# From the bottom up; a room may import what stands before it, and itself.
FLOORS = (
    ("settings", "records", "files"),
    ("index",),
    ("playground", "evaluation"),
    ("BLIP",),
    ("retriever", "generation"),
    ("captioning", "query_editing"),
    ("feedback",),
    ("experiments",),
    ("interactive", "scale"),
    ("scripts",),
    ("benchmarks",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules():
    """Python files outside tests that git knows or would take, by dotted name."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    paths = [PROJECT / name for name in listed if not name.startswith("tests/")]
    return {
        ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
        if path.is_file()
    }


MODULES = modules()


def imports_of(tree, name):
    """Names of the project's modules that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            wanted = [f"{node.module}.{alias.name}" for alias in node.names]
            wanted = [one if one in MODULES else node.module for one in wanted]
        else:
            continue
        yield from (one for one in wanted if one in MODULES and one != name)


def room_of(name):
    room = name.split(".")[0]
    return room if room in FLOOR_OF else "scripts"


IMPORTS = {name: set(imports_of(ast.parse(path.read_text("utf-8")), name)) for name, path in MODULES.items()}


def test_no_circle_among_modules():
    try:
        list(TopologicalSorter(IMPORTS).static_order())
    except CycleError as error:
        pytest.fail(f"these import each other: {' -> '.join(error.args[1])}")


def test_no_import_runs_back_up():
    wrong = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if room_of(name) != room_of(other) and FLOOR_OF[room_of(other)] >= FLOOR_OF[room_of(name)]
    ]
    assert not wrong


def test_the_walk_sees_imports():
    assert "settings" in IMPORTS["multi_modal_query_expansion"]
    assert "experiments.run" in IMPORTS["multi_modal_query_expansion"]  # inside a function
