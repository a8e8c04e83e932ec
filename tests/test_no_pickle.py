"""Files from elsewhere must not run code: nothing in this project reads or writes pickles."""

import ast
from pathlib import Path

PROJECT = Path(__file__).parent.parent
SKIPPED = {".venv", "runs", "data", "node_modules", ".git"}
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def sources():
    for path in PROJECT.rglob("*.py"):
        if not SKIPPED & set(path.relative_to(PROJECT).parts):
            yield path, path.read_text(encoding="utf-8")


def findings(source):
    """Yields the line and what is wrong there."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            names = []
        for name in names:  # a pickle's exceptions may be caught
            if name.split(".")[0] in MODULES and name not in MODULES and not name.endswith("Error"):
                yield node.lineno, name
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        values = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called == "torch.load" and values.get("weights_only") != "True":
            yield node.lineno, "torch.load without weights_only=True"
        if values.get("allow_pickle", "False") != "False":
            yield node.lineno, f"{called} with allow_pickle"
        if called.split(".")[-1] == "read_pickle":
            yield node.lineno, called
        if called.split(".")[-1] in ("yaml.load", "unsafe_load"):
            yield node.lineno, called


def test_the_search_finds_what_it_looks_for():
    for source in (
        "import pickle\npickle.loads(b'')",
        "from pickle import load",
        "import joblib.numpy_pickle",
        "torch.load('x')",
        "torch.load('x', weights_only=False)",
        "np.load('x', allow_pickle=True)",
        "np.save('x', y, allow_pickle=flag)",
        "pd.read_pickle('x')",
    ):
        assert list(findings(source)), source
    for source in (
        "torch.load('x', weights_only=True)",
        "np.load('x')",
        "np.load('x', allow_pickle=False)",
        "import pickled",
        "import pickle\ntry: load()\nexcept pickle.UnpicklingError: raise",
    ):
        assert not list(findings(source)), source


def test_nothing_reads_or_writes_a_pickle():
    paths = [path for path, _ in sources()]
    assert PROJECT / "index" / "faiss_index.py" in paths and len(paths) > 50
    found = [
        f"{path.relative_to(PROJECT)}:{line}: {what}"
        for path, source in sources()
        for line, what in findings(source)
    ]
    # Tests write hostile files to show that they are refused.
    assert not [one for one in found if not one.startswith("tests/")]
