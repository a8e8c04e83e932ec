"""Which packages the loop and a session of the demo import, and that no optional one is among them.

    python -m benchmarks.base_imports

Optional is what `requirements.txt` does not name and another requirements file does, the demo's aside:
Milvus, Ray, servers of pages, quantization, video, development. Prints a table.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import packages_distributions

from evaluation.tables import as_markdown
from settings import PROJECT, run_script

log = logging.getLogger(__name__)

NEEDED = ("requirements.txt", "requirements/demo.txt", "requirements/models.txt")
LOOP = "import feedback.rounds"
SESSION = """
import sys, tempfile
from multi_modal_query_expansion import main
sys.argv = [
    "multi_modal_query_expansion.py", "--dataset", "demo", "--strategy", "rewrite-anchored",
    "--caption-numbers", "4", "--queries", "4", "--output", {folder!r},
]
main()
"""


def main() -> None:
    """Runs from the command line."""
    with tempfile.TemporaryDirectory() as folder:
        loop, session = packages_after(LOOP), packages_after(SESSION.format(folder=folder))
    named = set().union(*map(declared, NEEDED))
    rows: list[tuple[str, ...]] = [
        ("Package", "named in `requirements.txt` or the demo's", LOOP, "a session of the demo")
    ]
    for package in sorted(loop | session):
        marks = (package in named, package in loop, package in session)
        rows.append((package, *("yes" if mark else "" for mark in marks)))
    print(as_markdown(rows, left=4))
    optional = optional_packages() & (loop | session)
    if optional:
        raise ValueError(f"optional packages were imported: {', '.join(sorted(optional))}")
    log.info("of the %d optional packages none was imported", len(optional_packages()))


def packages_after(code: str) -> set[str]:
    """Runs code in a fresh process.

    Args:
        code: Python.

    Returns:
        Names of the distributions from which modules were imported; modules of none go by their own name.

    Raises:
        ValueError: If the code fails.
    """
    ending = (
        "\nimport json, sys\nprint('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + ending], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(f"the code failed: {done.stderr.strip().splitlines()[-1]}")
    ours = {path.stem for path in PROJECT.glob("*.py")} | {path.name for path in PROJECT.iterdir()}
    modules = set(json.loads(done.stdout.splitlines()[-1])) - set(sys.stdlib_module_names) - ours
    return distributions_of(module for module in modules if not module.startswith("_"))


def distributions_of(modules: Iterable[str]) -> set[str]:
    """Returns the distributions of top-level modules; a module of none goes by its own name."""
    known = packages_distributions()
    return {normalised(name) for module in modules for name in known.get(module, [module])}


def declared(file: str) -> set[str]:
    """Returns the distributions that a requirements file names."""
    lines = (line.split("#")[0].strip() for line in (PROJECT / file).read_text(encoding="utf-8").splitlines())
    names = (re.match(r"[\w.-]+", line) for line in lines if not line.startswith("-"))
    return {normalised(name[0]) for name in names if name}


def optional_packages() -> set[str]:
    """Returns the distributions that only optional parts need."""
    files = {path.name for path in PROJECT.glob("requirements*.txt")}
    return set().union(*map(declared, files - set(NEEDED))) - set().union(*map(declared, NEEDED))


def normalised(name: str) -> str:
    """Spells a distribution's name as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    raise SystemExit(run_script(main))
