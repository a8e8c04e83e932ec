"""Dual encoders of each family, opened from a folder, against the model's own forward."""

import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_servers import COMMIT, into_hub_cache
from PIL import Image
from small_runs import model_folder, picture_folder
from tiny_encoders import FAMILIES, save_encoder

from files import read_json
from index.dual_encoder import DualEncoder
from index.faiss_index import FaissIndex
from settings import run_script

PROJECT = Path(__file__).parent.parent
TEXTS = ["a red Bus on the beach", "a dog", "狗 海滩", "the the the the the the the the the the the the cat"]
# As each family's paper or model card says.
TEXT_OPTIONS = {
    "clip": {"max_length": 12},
    "metaclip_2": {"max_length": 12},
    "siglip": {"max_length": 64, "padding": "max_length"},
    "siglip2": {"max_length": 64, "padding": "max_length"},
    "chinese_clip": {"max_length": 52},
    "align": {"max_length": 64},
}


def pictures():
    random = np.random.default_rng(0)
    shapes = [(40, 60), (90, 33), (3, 50), (32, 32), (200, 150)]
    return [Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, str(folder), *save_encoder(request.param, folder)


def own_forward(name, model, tokenizer, processor):
    """One text and one picture at a time, through the model's forward."""
    rows = {"text_embeds": [], "image_embeds": []}
    for number, image in enumerate(pictures()):
        text = TEXTS[number % len(TEXTS)]
        text = text.lower() if name.startswith("siglip") else text
        tokenizer.padding_side = "right"
        tokens = tokenizer(text, truncation=True, return_tensors="pt", **TEXT_OPTIONS[name])
        if name.startswith("siglip"):
            tokens = {"input_ids": tokens["input_ids"]}
        array = np.asarray(image)
        pixels = processor(array, input_data_format="channels_last", return_tensors="pt")
        with torch.inference_mode():
            output = model(**tokens, **pixels)
        for kind, found in rows.items():
            found.append(torch.nn.functional.normalize(output[kind][0], dim=-1).numpy())
    return np.stack(rows["text_embeds"][: len(TEXTS)]), np.stack(rows["image_embeds"])


def test_vectors_are_those_of_the_models_own_forward(family):
    name, folder, model, tokenizer, processor = family
    encoder = DualEncoder.open(folder, "tiny", batch_size=2)
    assert type(encoder._image_processor).__name__.endswith("Pil")  # no torchvision, wherever it is installed
    texts, images = own_forward(name, model, tokenizer, processor)
    assert np.ptp(texts, axis=0).max() > 1e-2 and np.ptp(images, axis=0).max() > 1e-2  # not all alike
    for rows, expected in ((encoder.encode_texts(TEXTS), texts), (encoder.encode_images(pictures()), images)):
        assert rows.dtype == np.float32 and rows.shape == (len(expected), encoder.dimension)
        np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert encoder.encode_texts([]).shape == encoder.encode_images([]).shape == (0, encoder.dimension)


def test_a_picture_resized_ahead_gives_the_same_vector(family):
    encoder = DualEncoder.open(family[1], "tiny")
    ahead = [encoder.prepare_image(image) for image in pictures()]
    np.testing.assert_array_equal(encoder.encode_images(ahead), encoder.encode_images(pictures()))


def test_a_line_of_pixels_is_no_danger(family):
    encoder = DualEncoder.open(family[1], "tiny")
    line = Image.new("RGB", (1, 200_000), "red")
    (row,) = encoder.encode_images([encoder.prepare_image(line)])
    assert np.isfinite(row).all()


def test_texts_that_are_cut_are_counted(family, caplog):
    encoder = DualEncoder.open(family[1], "tiny")
    ends = 1 if family[0].startswith("siglip") else 2
    word = "a" if family[0] == "siglip2" else "a "
    fits, cut = (word * (encoder.text_limit - ends + more) for more in (0, 1))
    rows = encoder.encode_texts([fits, "a dog"])
    assert "cut" not in caplog.text
    np.testing.assert_allclose(encoder.encode_texts([cut]), rows[:1], atol=1e-5)
    assert f"1 texts were cut to {encoder.text_limit} tokens" in caplog.text


def test_one_text_is_not_a_list_of_letters(family):
    with pytest.raises(ValueError, match="got one str, expected a sequence"):
        DualEncoder.open(family[1], "tiny").encode_texts("a dog")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "siglip"
    save_encoder("siglip", folder)
    return folder


@pytest.fixture
def run(monkeypatch, caplog):
    caplog.set_level(logging.INFO)

    def run(script, **given):
        words = (word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value))
        monkeypatch.setattr("sys.argv", [script, *map(str, words)])
        caplog.clear()
        return run_script(importlib.import_module(script).main), caplog.messages

    return run


def test_the_scripts_work_with_a_dual_encoder(run, siglip, tmp_path, capsys):
    world = {"dataset": "image_folder", "root": picture_folder(tmp_path / "pictures"), "encoder": siglip}
    assert run("embed_image_as_faiss", **world)[0] == 0
    assert any("reusing the index of 30 images" in line for line in run("embed_image_as_faiss", **world)[1])
    capsys.readouterr()
    assert run("interactive_search", **world, text="a red bus")[0] == 0
    words = DualEncoder.open(str(siglip), "").encode_texts(["a red bus"])
    manifest = read_json(tmp_path / "pictures" / "index-all" / "manifest.json")
    assert manifest["model_fingerprint"].startswith("siglip ") and manifest["dimension"] == words.shape[1]
    best = FaissIndex.open(tmp_path / "pictures" / "index-all").search(words, 1)[0].ids[0]
    assert best in capsys.readouterr().out.splitlines()[0]
    playing = world | {
        "caption_model": model_folder(tmp_path / "captioner", "captioner.pth"), "quantization": "fp32",
        "caption_cache": tmp_path / "captions.sqlite", "output": tmp_path / "run", "user": "reference",
    }  # fmt: skip
    assert run("multi_modal_query_expansion", **playing, strategy="append")[0] == 0
    assert len((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()) > 60


def test_what_needs_blip_says_so(run, siglip, tmp_path):
    world = {"dataset": "image_folder", "root": picture_folder(tmp_path / "pictures", 3), "encoder": siglip}
    assert "image_size: got 64 for" in run("embed_image_as_faiss", **world, image_size=64)[1][-1]
    assert run("embed_image_as_faiss", **world)[0] == 0
    for script, more in (("multi_modal_query_expansion", {"user": "reference"}), ("interactive_search", {})):
        status, said = run(script, **world, **more, strategy="itm", output=tmp_path / "run")
        assert status == 2 and "got itm, which re-ranks with BLIP's matching head (ITM)" in said[-1]
    blip = model_folder(tmp_path / "blip", "itm.pth")
    status, said = run("interactive_search", **world | {"encoder": blip}, text="a dog")
    assert status == 2 and "another model's index" in said[-1]


def test_a_model_that_is_no_dual_encoder_is_refused(run, language_model, tmp_path):
    root = picture_folder(tmp_path / "pictures", 3)
    status, said = run("embed_image_as_faiss", dataset="image_folder", root=root, encoder=language_model)
    assert status == 2 and "it is a llama model, expected BLIP, or a dual encoder" in said[-1]


def test_an_encoder_of_the_hub_is_known_by_its_commit(siglip, tmp_path):
    """In a process of its own, which finds the model downloaded and the network gone."""
    into_hub_cache(tmp_path / "hub", "someone/siglip", siglip)
    root = picture_folder(tmp_path / "pictures", 3)
    named = ["--dataset", "image_folder", "--root", str(root), "--encoder", "someone/siglip"]
    offline = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "embed_image_as_faiss.py", *named]
    done = subprocess.run(command, cwd=PROJECT, env=offline, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    manifest = read_json(root / "index-all" / "manifest.json")
    assert manifest["model_fingerprint"].startswith(f"siglip someone/siglip@{COMMIT}")
