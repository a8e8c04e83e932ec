"""Files from elsewhere must not run code: nothing in this project reads or writes pickles."""

import ast
from pathlib import Path

PROJECT = Path(__file__).parent.parent
SKIPPED = {".venv", "runs", "data", "node_modules", ".git", "tests"}  # tests write hostile files
IMPORTS = {"dill", "cloudpickle", "joblib", "shelve", "marshal"}


def findings(source):
    """Yields the line and what is wrong there; a pickle's exceptions may be caught."""
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Call | ast.Import) else ""
        if isinstance(node, ast.Attribute) and text.startswith("pickle.") and not text.endswith("Error"):
            yield node.lineno, text
        if isinstance(node, ast.ImportFrom) and node.module in IMPORTS | {"pickle"}:
            yield node.lineno, node.module
        if isinstance(node, ast.Import) and IMPORTS & {name.name.split(".")[0] for name in node.names}:
            yield node.lineno, text
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        unsafe = given.get("allow_pickle", "False") != "False" or ".read_pickle(" in text
        if unsafe or (text.startswith("torch.load(") and given.get("weights_only") != "True"):
            yield node.lineno, text


def test_the_search_finds_what_it_looks_for():
    unsafe = (
        "import pickle\npickle.loads(b'')", "from pickle import load", "import joblib.numpy_pickle",
        "torch.load('x')", "torch.load('x', weights_only=False)", "np.save('x', y, allow_pickle=flag)",
        "pd.read_pickle('x')",
    )  # fmt: skip
    safe = "torch.load('x', weights_only=True)", "np.load('x')", "np.load('x', allow_pickle=False)"
    assert all(list(findings(source)) for source in unsafe)
    assert not any(list(findings(source)) for source in safe)


def test_nothing_reads_or_writes_a_pickle():
    paths = [path for path in PROJECT.rglob("*.py") if not SKIPPED & set(path.relative_to(PROJECT).parts)]
    assert PROJECT / "index" / "faiss_index.py" in paths and len(paths) > 50
    found = {str(path): list(findings(path.read_text(encoding="utf-8"))) for path in paths}
    assert not {path: lines for path, lines in found.items() if lines}
