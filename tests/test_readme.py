"""The documents agree with each other and with the code."""

import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import pytest

import settings

PROJECT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")
DOCUMENTS = (
    *READMES,
    *(f"docs/{path.name}" for path in sorted((PROJECT / "docs").glob("*.md")) if path.name != "CHANGELOG.md"),
)
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"\bpython (?:-m )?[\w./]+[^\n`]*")


def text_of(name):
    return (PROJECT / name).read_text(encoding="utf-8")


def headings(name):
    return [len(found) for found in re.findall(r"^(#+) \S", BLOCK.sub("", text_of(name)), re.MULTILINE)]


def tables(name):
    """All tables of a document, each a list of rows of cells, header first."""
    found = re.findall(r"(?:^\|.*\|\n)+", BLOCK.sub("", text_of(name)), re.MULTILINE)
    rows = [[line.strip("|").split(" | ") for line in table.splitlines()] for table in found]
    return [[[cell.strip() for cell in row] for row in (table[0], *table[2:])] for table in rows]


def table_of(name, *titles):
    (table,) = (table for table in tables(name) if table[0][0] in titles)
    return table[1:]


def constant_rows(name):
    return [(row[0].strip("`"), row[1]) for row in table_of(name, "Constant", "常量")]


def commands():
    return [(name, command) for name in DOCUMENTS for command in COMMAND.findall(text_of(name))]


def source_of(words):
    """The file that a `python ...` command runs."""
    if words[1] != "-m":
        return PROJECT / words[1]
    module = PROJECT / words[2].replace(".", "/")
    return module / "__main__.py" if module.is_dir() else module.with_suffix(".py")


def flags_of(path, source):
    """The flags that a script takes: those of its settings' class, or those it names itself."""
    if path.parent.name == "playground":  # a dataset's check
        source += text_of("playground/check.py")
    read = re.search(r"(?:read_settings|tyro\.cli)\((\w+)", source)
    if not read:
        return set(re.findall(r"\"(--[\w-]+)\"", source))
    dotted = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
    own = f"class {read[1]}" in source
    kind = getattr(importlib.import_module(dotted) if own else settings, read[1])
    names = {field.name.replace("_", "-") for field in dataclasses.fields(kind)}
    switched_off = {f"--no-{name}" for name in names if getattr(kind, name.replace("-", "_"), None) is True}
    return {f"--{name}" for name in names} | switched_off | {"--help"}


def test_readmes_have_the_same_headings_in_the_same_order():
    assert headings(READMES[0]) == headings(READMES[1])
    assert len(headings(READMES[0])) > 5


def test_readmes_have_the_same_code_blocks_links_and_markers():
    english, chinese = map(text_of, READMES)
    assert BLOCK.findall(english) == BLOCK.findall(chinese)
    for pattern in (r"^<!-- .* -->$", r"\]\(((?!README)[^)]+)\)"):
        mine, theirs = (re.findall(pattern, BLOCK.sub("", text), re.MULTILINE) for text in (english, chinese))
        assert mine == theirs


def test_readmes_have_the_same_tables():
    english, chinese = map(tables, READMES)
    assert [len(table) for table in english] == [len(table) for table in chinese]
    assert [name for name, _ in constant_rows(READMES[0])] == [name for name, _ in constant_rows(READMES[1])]


@pytest.mark.parametrize("name", READMES)
def test_constants_exist_with_the_defaults_that_the_table_gives(name):
    defaults = {field.name: field.default for field in dataclasses.fields(settings.ExperimentSettings)}
    for constant, default in constant_rows(name):
        assert constant.lower() in defaults
        given = re.fullmatch(r"`([^`]+)`", default)
        if given and defaults[constant.lower()] is not None:
            assert given[1] == str(defaults[constant.lower()])
        else:
            assert defaults[constant.lower()] is None


@pytest.mark.parametrize("name", READMES)
def test_presets_exist(name):
    named = set(re.findall(r"`(laptop|rtx\d+-[\w]+|fp16-[\w]+)`", text_of(name)))
    assert named == set(settings.PRESETS) - {"demo"}


@pytest.mark.parametrize(("document", "command"), commands())
def test_commands_name_scripts_and_flags_that_exist(document, command):
    words = shlex.split(command)
    path = source_of(words)
    assert path.is_file(), f"{document}: {command}"
    flags = {word for word in words if word.startswith("--")}
    assert flags <= flags_of(path, path.read_text(encoding="utf-8")), f"{document}: {command}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_and_local_links_exist(name):
    text = text_of(name)
    targets = set(re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    for link in re.findall(r"\]\(([^)]+)\)", BLOCK.sub("", text)):
        assert "://" in link or ((PROJECT / name).parent / link.split("#")[0]).exists(), link


def test_the_example_runs_and_ends_as_the_guide_says(capsys):
    (example,) = re.findall(
        r"^```python\n(import numpy.*?)^```$", text_of("docs/own_models.md"), re.MULTILINE | re.DOTALL
    )
    exec(compile(example, "own_models.md", "exec"), {"__name__": "example"})  # noqa: S102
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "3.jpg" in lines[2]
    assert lines[2].endswith("found")


def test_the_demo_writes_its_report_where_the_readmes_say():
    (flags,) = re.findall(r"compare\.py (--.*)", text_of("Makefile"))
    run = settings.read_settings(settings.ComparisonSettings, {}, shlex.split(flags)).resolved()
    for name in READMES:
        assert f"`runs/{run.run_name()}/report.html`" in text_of(name)


@pytest.mark.parametrize("name", READMES)
def test_a_readme_stays_a_page(name):
    assert len(text_of(name).splitlines()) <= 230


def test_the_table_of_settings_is_that_of_the_code():
    assert text_of("docs/settings.md") == settings.settings_table(), (
        "run: python settings.py > docs/settings.md"
    )
