"""requirements.txt is enough for the feedback loop and the commands: neither imports an optional package."""

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest

from settings import PROJECT

BASE = ("requirements.txt", "requirements/demo.txt", "requirements/models.txt")
LOCK = "requirements/lock.txt"  # names what all of them bring along
BROUGHT_ALONG = {"httpx", "fsspec", "pyarrow", "grpcio"}  # by optional packages, under no name of their own


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*files):
    """The distributions that requirements files name."""
    lines = [line for file in files for line in (PROJECT / file).read_text(encoding="utf-8").splitlines()]
    return {normalized(found[0]) for line in lines if (found := re.match(r"[A-Za-z][\w.-]*", line))}


def optional():
    files = {f"requirements/{path.name}" for path in (PROJECT / "requirements").glob("*.txt")}
    return (declared(*files - {*BASE, LOCK}) | BROUGHT_ALONG) - declared(*BASE)


def imported_by(modules):
    """The distributions that a fresh Python loads to import modules."""
    code = f"import json, sys, {modules}; print(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    known = packages_distributions()
    return {normalized(name) for module in json.loads(done.stdout) for name in known.get(module, ())}


def test_an_optional_package_would_be_noticed():
    assert {"pymilvus", "bitsandbytes", "uvicorn"} <= optional()
    assert "hypothesis" in imported_by("hypothesis") & optional()


@pytest.mark.parametrize("modules", ["feedback.rounds", "feedback.strategies, experiments.run, retriever"])
def test_no_optional_package_is_imported(modules):
    packages = imported_by(modules)
    assert "numpy" in packages
    assert not packages & optional()
