"""The full-size system's way, walked with random models of the same kinds: opened as the hub's, whole runs.

The models are made from configurations of a few thousand parameters and saved with their processors and
tokenizers; only their weights are not those of the hub.
"""

import csv
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_vlms
import torch
from conftest import CHAT_TEMPLATE, tiny_tokenizer
from PIL import Image

from evaluation.runs import read_rounds
from files import read_json
from settings import run_script

PROJECT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures" / "blip"
EMBEDDING, SCRIPT = "embed_image_as_faiss", "multi_modal_query_expansion"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="needs bitsandbytes: pip install -r requirements/gpu.txt",
)


def blip(folder, kind):
    """A BLIP of the hub's layout: weights, configuration and vocabulary."""
    from transformers import BlipConfig

    shutil.copy(FIXTURES / "vocab.txt", folder)
    words = len((FIXTURES / "vocab.txt").read_text(encoding="utf-8").splitlines())
    small = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.2,  # the default of the vision part is next to nothing
    }
    torch.manual_seed(0)
    config = BlipConfig(
        text_config=small | {"vocab_size": words + 2, "encoder_hidden_size": 24, "bos_token_id": words},
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
        image_text_hidden_size=16,
    )
    kind(config).save_pretrained(folder)
    return folder


def llama(folder, width):
    """A chat model; bitsandbytes packs 4-bit weights in blocks of 64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**tiny_vlms.text_settings(tokenizer, width))).save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders by name: two search and caption with BLIP, two describe as instructed, one rewrites."""
    from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

    folders = {
        name: tmp_path_factory.mktemp(name)
        for name in ("blip", "blip-captioner", "llava-next", "smolvlm", "llama")
    }
    blip(folders["blip"], BlipForImageTextRetrieval)
    blip(folders["blip-captioner"], BlipForConditionalGeneration)
    tiny_vlms.llava_next(folders["llava-next"], width=64)
    tiny_vlms.smolvlm(folders["smolvlm"])
    llama(folders["llama"], width=64)
    return folders


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = [("image_name", "comment_number", "comment")]
    for number in range(40):
        noise = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        noise.resize((40 + number, 30), Image.Resampling.NEAREST).save(folder / f"{number}.png")
        rows.append((f"{number}.png", 0, f"a dog number {number} on a cat"))
    with (folder / "images_captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture
def command(pictures, models, tmp_path):
    """Arguments of a small run through every model."""

    def command(captioner, precision, **changes):
        values = {
            "dataset": "image_folder", "root": pictures, "blip": models["blip"],
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
    given = flags({"dataset": "image_folder", "root": pictures, "blip": models["blip"]})
    monkeypatch.setattr(sys, "argv", [EMBEDDING, *given])
    assert run_script(importlib.import_module(EMBEDDING).main) == 0
    monkeypatch.setattr(sys, "argv", [SCRIPT, *command(captioner, precision)])
    assert run_script(importlib.import_module(SCRIPT).main) == 0
    assert "Recall@10" in capsys.readouterr().out
    check_run(tmp_path / "run")
    captioner_name = read_json(tmp_path / "run" / "settings.json")["captioner"]
    assert f" {precision}: Describe" in captioner_name and str(models[captioner]) not in captioner_name


def hub_folder(hub, model_id, folder):
    """Puts a model where the hub's library keeps what it has downloaded."""
    cache = hub / f"models--{model_id.replace('/', '--')}"
    shutil.copytree(folder, cache / "snapshots" / COMMIT)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    return model_id


def test_a_whole_run_with_models_of_the_hub(command, models, pictures, tmp_path):
    """In a process of its own, which finds the models downloaded and the network gone."""
    hub = tmp_path / "hub"
    ids = {
        name: hub_folder(hub, f"someone/{folder}", models[folder])
        for name, folder in (("blip", "blip"), ("caption_model", "llava-next"), ("rewrite_model", "llama"))
    }
    given = flags({"dataset": "image_folder", "root": pictures, "blip": ids["blip"]})
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
