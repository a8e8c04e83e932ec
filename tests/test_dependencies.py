"""What is imported is declared, and what is declared is imported."""

import ast
import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

PROJECT = Path(__file__).parent.parent
REQUIREMENTS = [PROJECT / "requirements.txt", *sorted((PROJECT / "requirements").glob("*.txt"))]
REQUIREMENTS.remove(LOCK := PROJECT / "requirements" / "lock.txt")
FOLDERS = [path for path in PROJECT.iterdir() if path.is_dir() and path.name not in ("runs", "build", "dist")]
SOURCES = sorted(
    [
        *PROJECT.glob("*.py"),
        *(path for folder in FOLDERS if folder.name[0] != "." for path in folder.rglob("*.py")),
    ]
)
LOCAL = {path.stem for path in SOURCES} | {path.parent.name for path in SOURCES}
DISTRIBUTIONS = {**packages_distributions(), "PIL": ["pillow"], "faiss": ["faiss-cpu"]}

# Needed though nothing imports them.
INDIRECT = {"accelerate": "transformers places models on GPUs and opens GGUF files through it"}
# Brought along by optional packages, under no name of their own.
BROUGHT_ALONG = {"httpx", "fsspec", "pyarrow", "grpcio"}
# Packages of this project that nobody imports without their extra.
EXTRAS = {"interactive": "requirements/page.txt"}


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(path):
    """Distributions that a requirements file names, comments left out."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {normalised(re.match(r"[\w.-]+", line)[0]) for line in lines if line and not line.startswith("-")}


def imported(tree, *, at_once):
    """Top-level names of what a module imports; ``at_once``: not those in functions and branches."""
    found = set()
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - LOCAL


def distribution_of(module):
    return normalised(DISTRIBUTIONS.get(module, [module])[0])


def imports_of(path, at_once=False):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {distribution_of(module) for module in imported(tree, at_once=at_once)}


def test_the_walk_sees_imports_wherever_they_stand():
    source = (
        "import a.b\nfrom c import d\nif True:\n    import e\ndef f():\n    from g.h import i\nimport os\n"
    )
    assert imported(ast.parse(source), at_once=False) == {"a", "c", "e", "g"}
    assert imported(ast.parse(source), at_once=True) == {"a", "c"}
    assert len(SOURCES) > 80 and not any(".venv" in path.parts for path in SOURCES)


def test_every_import_is_declared():
    everywhere = set().union(*map(declared, REQUIREMENTS))
    base = declared(PROJECT / "requirements.txt")
    for path in SOURCES:
        undeclared = imports_of(path) - everywhere
        assert not undeclared, f"{path}: declare it in a requirements file: {undeclared}"
        room = path.relative_to(PROJECT).parts[0]
        if room != "tests":
            present = base | (declared(PROJECT / EXTRAS[room]) if room in EXTRAS else set())
            late = imports_of(path, at_once=True) - present
            assert not late, f"{path}: not in requirements.txt, so import it where it is used: {late}"


def test_every_base_requirement_is_imported():
    used = set().union(*(imports_of(path) for path in SOURCES if path.parent.name != "tests"))
    base = declared(PROJECT / "requirements.txt")
    assert base - used == set(INDIRECT)


def test_every_requirement_has_an_exact_version_in_the_lock():
    lock = LOCK.read_text(encoding="utf-8")
    locked = {normalised(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    for name in ("demo", "page", "dev", "video", "servers"):  # what `make setup` and `make test` install
        assert not declared(PROJECT / "requirements" / f"{name}.txt") - locked
    assert not declared(PROJECT / "requirements.txt") - locked


def loaded_by(modules):
    """The distributions that a fresh Python loads to import modules."""
    code = f"import json, sys, {modules}; print(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    known = packages_distributions()
    return {normalised(name) for module in json.loads(done.stdout) for name in known.get(module, ())}


def test_the_feedback_loop_and_the_commands_load_no_optional_package():
    base = [PROJECT / "requirements.txt", *(LOCK.with_name(f"{name}.txt") for name in ("demo", "models"))]
    optional = set().union(*map(declared, REQUIREMENTS)) | BROUGHT_ALONG
    optional -= set().union(*map(declared, base))
    assert {"pymilvus", "bitsandbytes", "uvicorn"} <= optional
    assert "pytest" in loaded_by("pytest") & optional  # it would be noticed
    loaded = loaded_by("feedback.rounds, feedback.strategies, experiments.run, retriever")
    assert "numpy" in loaded and not loaded & optional
