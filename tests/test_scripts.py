"""The scripts: a light --help, one line a mistake, a whole small run."""

import importlib
import logging
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from evaluation.runs import read_rounds
from index.merge import merge_indexes
from settings import find_model, run_script
from tests.small_runs import draw_noise, model_folder, picture_folder

PROJECT = Path(__file__).parent.parent
SCRIPTS = sorted(path.stem for path in PROJECT.glob("*.py") if "run_script(main)" in path.read_text("utf-8"))
HEAVY = ("torch", "transformers", "faiss", "matplotlib", "numpy", "PIL", "tokenizers")


@pytest.mark.parametrize("name", SCRIPTS)
def test_constants_are_settings(name, monkeypatch):
    script = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [name, "--nosuch"])
    with pytest.raises(SystemExit) as caught:  # the constants pass: it is the argument that is refused
        script.main()
    assert caught.value.code == 2


# --help and mistakes, in processes of their own

MAX_IMPORTS = 400  # modules, tyro's and typeguard's for the most part; 280 when this was written


def in_a_process(*command):
    return subprocess.run([sys.executable, *command], cwd=PROJECT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_imports_no_model_library(name):
    done = in_a_process("-X", "importtime", f"{name}.py", "--help")
    assert done.returncode == 0 and "--preset" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "settings" in imported
    assert not [module for module in imported if module.split(".")[0] in HEAVY]
    assert len(imported) < MAX_IMPORTS


def test_a_mistake_is_one_line_on_stderr(tmp_path):
    wrong = ("--dataset", "image_folder", "--root", "/no/such", "--output", str(tmp_path))
    done = in_a_process("multi_modal_query_expansion.py", *wrong)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: /no/such: no such image folder.*\n", done.stderr)


MAX_IMPORTS_OF_A_SEARCH = 1450  # modules, torch's for more than half; 1,279 when this was written


def test_a_search_prints_the_best_and_imports_little(arguments, tmp_path):
    pictures = {key: arguments[key] for key in EMBEDDING}
    search = ("interactive_search.py", *map(str, flat(pictures, text="picture 3 of a b", shown=5)))
    first = in_a_process(*search)
    assert first.returncode == 0
    again = in_a_process("-X", "importtime", *search)
    assert again.stdout == first.stdout
    lines = [re.split(r" {2,}", line.strip()) for line in again.stdout.splitlines()]
    assert [line[0] for line in lines] == ["1", "2", "3", "4", "5"]
    scores = [float(line[1].split()[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert len({line[2] for line in lines}) == 5 and all(Path(line[2]).is_file() for line in lines)
    imported = {line.rsplit("|", 1)[-1].strip() for line in again.stderr.splitlines() if "|" in line}
    unwanted = {"transformers", "torch._dynamo", "sympy", "scipy", "matplotlib", "jinja2", "httpx2"}
    assert "torch" in imported and not unwanted & imported
    assert len(imported) < MAX_IMPORTS_OF_A_SEARCH


# In this process: as the scripts, without their seconds of imports


class Errors(logging.Handler):
    def __init__(self):
        super().__init__(logging.ERROR)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def run(monkeypatch):
    """Runs a script's main; returns the exit status and the errors logged."""
    errors = Errors()
    logging.getLogger().addHandler(errors)

    def run(name, *arguments):
        errors.lines.clear()
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        return run_script(importlib.import_module(name).main), list(errors.lines)

    yield run
    logging.getLogger().removeHandler(errors)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "blip": model_folder(folder / "blip", "itm.pth"),
        "captioner": model_folder(folder / "captioner", "captioner.pth"),
    }


@pytest.fixture
def pictures(tmp_path):
    return picture_folder(tmp_path / "pictures")


EMBEDDING = ("--dataset", "--root", "--blip")


@pytest.fixture
def arguments(run, pictures, models, tmp_path):
    """Of a small run that goes through; its pictures are embedded."""
    given = {
        "--dataset": "image_folder",
        "--root": pictures,
        "--blip": models["blip"],
        "--caption-model": models["captioner"],
        "--quantization": "fp32",
        "--strategy": "append",
        "--user": "reference",
        "--rounds": 3,
        "--caption-cache": tmp_path / "captions.sqlite",
        "--output": tmp_path / "run",
    }
    assert run("embed_image_as_faiss", *flat({key: given[key] for key in EMBEDDING})) == (0, [])
    return given


def flat(arguments, **changes):
    changes = {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return [part for pair in (arguments | changes).items() for part in pair]


def alike(records):
    """In one order and without scores: encoded in another batch, they differ in the last bits."""
    return sorted((replace(record, scores=()) for record in records), key=lambda r: (r.query_id, r.number))


def test_a_whole_run_its_repetition_and_its_refusal(run, arguments, capsys, caplog, tmp_path):
    name, folder = "multi_modal_query_expansion", tmp_path / "run"
    caplog.set_level(logging.INFO)
    assert run(name, *flat(arguments)) == (0, [])
    headings = [line for line in caplog.messages if line.endswith(":")]
    assert headings == ["append:", "scrolling, the control without feedback:"]
    table = capsys.readouterr().out
    assert "Recall@10" in table and len(table.splitlines()) == 2 + 3
    names = {path.name for path in folder.iterdir()}
    assert {"settings.json", "rounds.jsonl", "scrolling.rounds.jsonl", "measures.json"} <= names
    assert {"recall_f1.png", "report.html", "trec"} <= names
    records = read_rounds(folder / "rounds.jsonl")
    assert len({record.query_id for record in records}) == 60
    assert any(record.captions for record in records)

    before = (folder / "rounds.jsonl").read_bytes()
    assert run(name, *flat(arguments, query_batch=7)) == (0, [])
    assert capsys.readouterr().out == table
    assert (folder / "rounds.jsonl").read_bytes() == before

    (folder / "rounds.jsonl").write_bytes(before[: len(before) // 2])  # killed
    assert run(name, *flat(arguments, query_batch=7)) == (0, [])
    assert alike(read_rounds(folder / "rounds.jsonl")) == alike(records)
    assert capsys.readouterr().out == table

    status, errors = run(name, *flat(arguments, strategy="original"))
    assert status == 2 and len(errors) == 1 and "strategy: 'append' there, 'original' now" in errors[0]
    assert (folder / "rounds.jsonl").read_bytes() != b""


def test_what_needs_no_model_is_refused_before_anything_is_opened(run, arguments, pictures, tmp_path):
    name = "multi_modal_query_expansion"
    assert run(name, *flat(arguments, rounds=1)) == (0, [])
    nothing = tmp_path / "nosuch"
    for script, changes, words in (
        (name, {"root": nothing, "rounds": 2}, "rounds: 1 there, 2 now"),
        (name, {"root": nothing, "output": tmp_path / "new", "quantization": "int8"}, "got int8 for a BLIP"),
        ("interactive_search", {"index": nothing, "quantization": "int4", "shown": 5}, "got int4 for a BLIP"),
        ("interactive_search", {"strategy": "bayes-captions"}, "or choose --strategy bayes"),
    ):
        given = arguments
        if script == "interactive_search":
            given = {key: arguments[key] for key in (*EMBEDDING, "--caption-model", "--quantization")}
            given |= {"--caption-cache": tmp_path / "captions.sqlite"}
        status, errors = run(
            script, *flat(given, **changes), *(["--terminal"] if given is not arguments else ())
        )
        assert status == 2 and len(errors) == 1 and words in errors[0]
    assert not nothing.exists()


def test_a_comparison_of_scrolling_alone_is_its_table_without_a_plot_of_differences(
    run, arguments, capsys, tmp_path
):
    del arguments["--strategy"], arguments["--user"]
    assert run("compare", *flat(arguments, strategies="original", users="first")) == (0, [])
    assert len(capsys.readouterr().out.splitlines()) == 2 + 1
    assert (tmp_path / "run" / "comparison.png").is_file()
    assert not (tmp_path / "run" / "differences.png").exists()


CAPTIONING = ("--dataset", "--root", "--caption-model", "--quantization", "--caption-cache")


def test_captions_made_ahead_are_found_by_the_run(run, arguments, pictures, caplog):
    caplog.set_level(logging.INFO)
    ahead = {key: arguments[key] for key in CAPTIONING} | {"--caption-batch": 4}
    (pictures / "7.png").write_bytes(b"")
    assert run("caption_images", *flat(ahead)) == (0, [])
    assert caplog.messages[-1] == "29 captions made, 0 reused, 1 pictures broken"
    assert sum("7.png cannot be captioned: the file is empty" in line for line in caplog.messages) == 1
    assert run("caption_images", *flat(ahead)) == (0, [])
    assert caplog.messages[-1] == "0 captions made, 29 reused, 1 pictures broken"
    assert run("multi_modal_query_expansion", *flat(arguments)) == (0, [])
    (summary,) = (line for line in caplog.messages if "refined queries" in line)
    assert "; 0 captions made, " in summary and " 0 reused" not in summary


def test_a_picture_that_broke_after_embedding_moves_no_query(run, arguments, pictures, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for number in range(0, 30, 2):
        (pictures / f"{number}.png").write_bytes(b"broken")
    assert run("multi_modal_query_expansion", *flat(arguments)) == (0, [])
    records = {(r.query_id, r.number): r for r in read_rounds(tmp_path / "run" / "rounds.jsonl")}
    broken = [r for r in records.values() if r.captions == ("",)]
    assert broken and all(int(r.liked[0].split(".")[0]) % 2 == 0 for r in broken)
    for record in broken:
        after = records.get((record.query_id, record.number + 1))
        assert after is None or after.text == record.text
    assert any("pictures broken" in line for line in caplog.messages)


CSV = "images_captions.csv"
MISTAKES = (
    ({"root": "/no/such"}, None, "/no/such: no such image folder"),
    ({"split": "dev"}, None, "image_folder: got split 'dev', expected 'all'"),
    ({"blip": "/no/such"}, None, "no checkpoint at /no/such"),
    ({"blip": "captioner"}, None, "captioner.pth looks like a captioner, and a retrieval model is needed"),
    ({}, "", "got an empty first line, expected the columns image_name"),
    ({}, "a,b\n1,2\n", "got a, b, expected the columns image_name"),
    ({}, "image_name,comment_number,comment\n", "no usable caption"),
    ({"caption_model": "/no/such"}, None, "the model /no/such cannot be opened"),
    ({"caption_numbers": "7"}, None, "no queries for caption numbers ('7',)"),
)


def test_a_users_mistake_is_one_line_and_can_be_mended(run, arguments, pictures, models):
    name, good_csv = "multi_modal_query_expansion", (pictures / CSV).read_text()
    for changes, wrong_csv, words in MISTAKES:
        changes = {key: models.get(value, value) for key, value in changes.items()}
        (pictures / CSV).write_text(good_csv if wrong_csv is None else wrong_csv)
        status, errors = run(name, *flat(arguments, **changes))
        assert status == 2
        assert len(errors) == 1 and words in errors[0] and "\n" not in errors[0]
    (pictures / CSV).write_text(good_csv)
    assert run(name, *flat(arguments, strategy="original", rounds=1)) == (0, [])


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_only_embedding_writes_an_index(run, arguments, models, pictures, tmp_path):
    index, home = pictures / "index-all", tmp_path / "elsewhere"
    before = contents(index)
    searching = {key: arguments[key] for key in EMBEDDING} | {"--text": "a picture"}
    other = model_folder(tmp_path / "other", "retrieval_full.pth")
    status, errors = run("interactive_search", *flat(searching, blip=other))
    assert status == 2 and "another model's index" in errors[0]
    status, errors = run("multi_modal_query_expansion", *flat(arguments, blip=other))
    assert status == 2 and "another model's index" in errors[0]
    home.mkdir()
    status, errors = run("interactive_search", *flat(searching, root=home))
    assert status == 2 and f"embed_image_as_faiss.py --dataset image_folder --root {home}" in errors[0]
    assert not list(home.iterdir()) and contents(index) == before


def test_a_merged_index_is_searched_as_it_stands(run, arguments, pictures, tmp_path, capsys):
    other, merged = tmp_path / "others", tmp_path / "merged"
    draw_noise(other / f"{number}.png" for number in range(30, 33))
    embedding = {key: arguments[key] for key in EMBEDDING}
    assert run("embed_image_as_faiss", *flat(embedding, root=other)) == (0, [])
    merge_indexes([pictures / "index-all", other / "index-all"], merged)
    before = {folder: contents(folder) for folder in (merged, pictures, other)}
    Image.new("RGB", (9, 9)).save(tmp_path / "mine.png")
    capsys.readouterr()
    for searched in ({"text": "a b"}, {"text": "a -b"}, {"picture": tmp_path / "mine.png"}):
        searching = flat(embedding, index=merged, root=other, shown=40, **searched)
        assert run("interactive_search", *searching) == (0, [])
        found = [re.split(r" {2,}", line.strip())[2] for line in capsys.readouterr().out.splitlines()]
        assert len(found) == 33 and all(Path(path).is_file() for path in found)
    assert {folder: contents(folder) for folder in before} == before
    status, errors = run("interactive_search", *flat(embedding), "--text=-b")
    assert status == 2 and "only words with a sign" in errors[0]


def test_a_run_over_pictures_that_are_not_in_the_index_is_refused(run, arguments, pictures):
    Image.new("RGB", (9, 9)).save(pictures / "new.png")
    status, errors = run("multi_modal_query_expansion", *flat(arguments))
    assert status == 2 and "1 of the dataset's 31 images are not in the index" in errors[0]
    (pictures / "new.png").unlink()
    (pictures / "3.png").unlink()
    status, errors = run("multi_modal_query_expansion", *flat(arguments))
    assert status == 2 and "holds 1 others (first '3.png')" in errors[0]


def test_a_model_is_found_where_the_person_stands_and_below_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_model("BLIP/weights/demo") == PROJECT / "BLIP" / "weights" / "demo"
    assert find_model("no/such") is None and find_model("") is None
    (tmp_path / "mine").mkdir()
    assert find_model("mine") == Path("mine")
