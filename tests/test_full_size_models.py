"""The full-size system, walked with random models of the same kinds: opened as the hub's, whole runs."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_vlms
from chat_servers import COMMIT, into_hub_cache
from conftest import make_language_model
from small_runs import model_folder, picture_folder

from evaluation.runs import read_rounds
from files import read_json
from settings import run_script

PROJECT = Path(__file__).parent.parent
EMBEDDING, SCRIPT = "embed_image_as_faiss", "multi_modal_query_expansion"
bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="needs bitsandbytes: pip install -r requirements/gpu.txt",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders by name: two search and caption with BLIP, two describe as instructed, one rewrites."""
    folders = {
        name: tmp_path_factory.mktemp(name)
        for name in ("blip", "blip-captioner", "llava-next", "smolvlm", "llama")
    }
    for name, weights in (("blip", "itm.pth"), ("blip-captioner", "captioner.pth")):
        (model_folder(folders[name], weights) / weights).rename(folders[name] / "pytorch_model.bin")
    tiny_vlms.llava_next(folders["llava-next"], width=64)
    tiny_vlms.smolvlm(folders["smolvlm"])
    make_language_model(folders["llama"], width=64)
    return folders


@pytest.fixture
def pictures(tmp_path):
    return picture_folder(tmp_path / "pictures", 40)


@pytest.fixture
def command(pictures, models, tmp_path):
    """Arguments of a small run through every model."""

    def command(captioner, precision, **changes):
        values = {
            "dataset": "image_folder", "root": pictures, "encoder": models["blip"],
            "caption_model": models[captioner], "rewrite_model": models["llama"], "quantization": precision,
            "caption_batch": 4, "rewrite_batch": 4, "user": "reference", "rounds": 2, "queries": 6,
            "caption_cache": tmp_path / "captions.sqlite", "output": tmp_path / "run",
        } | changes  # fmt: skip
        return flags(values)

    return command


def flags(values):
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def check_run(folder):
    """Every query was captioned and asked again."""
    rounds = read_rounds(folder / "rounds.jsonl")
    assert len({record.query_id for record in rounds}) == 6
    first = [record for record in rounds if record.number == 0 and not record.stop]
    assert first and all(len(record.captions) == 1 and record.captions[0] for record in first)
    again = {record.query_id: record for record in rounds if record.number == 1}
    assert set(again) == {record.query_id for record in first}
    assert all(again[record.query_id].text != record.text for record in first)
    assert (folder / "report.html").is_file() and read_json(folder / "measures.json")["images"] == 40
    return rounds


CASES = [  # llava-next in fp32 is the run with models of the hub
    ("smolvlm", "fp32"),
    ("blip-captioner", "fp32"),
    pytest.param("llava-next", "int4", marks=bitsandbytes),
]


@pytest.mark.parametrize(("captioner", "precision"), CASES)
def test_a_whole_run(captioner, precision, command, models, pictures, tmp_path, monkeypatch, capsys):
    given = flags({"dataset": "image_folder", "root": pictures, "encoder": models["blip"]})
    monkeypatch.setattr(sys, "argv", [EMBEDDING, *given])
    assert run_script(importlib.import_module(EMBEDDING).main) == 0
    monkeypatch.setattr(sys, "argv", [SCRIPT, *command(captioner, precision)])
    assert run_script(importlib.import_module(SCRIPT).main) == 0
    assert "Recall@10" in capsys.readouterr().out
    check_run(tmp_path / "run")
    captioner_name = read_json(tmp_path / "run" / "settings.json")["captioner"]
    assert f" {precision}: Describe" in captioner_name and str(models[captioner]) not in captioner_name


def test_a_whole_run_with_models_of_the_hub(command, models, pictures, tmp_path):
    """In a process of its own, which finds the models downloaded and the network gone."""
    hub = tmp_path / "hub"
    ids = {"encoder": "someone/blip", "caption_model": "someone/llava-next", "rewrite_model": "someone/llama"}
    for model_id in ids.values():
        into_hub_cache(hub, model_id, models[model_id.removeprefix("someone/")])
    given = flags({"dataset": "image_folder", "root": pictures, "encoder": ids["encoder"]})
    for script, arguments in ((EMBEDDING, given), (SCRIPT, command("llava-next", "fp32", **ids))):
        done = subprocess.run(
            [sys.executable, f"{script}.py", *arguments],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, done.stderr
    check_run(tmp_path / "run")
    captioner_name = read_json(tmp_path / "run" / "settings.json")["captioner"]
    assert captioner_name.startswith(f"someone/llava-next@{COMMIT} fp32: Describe")
