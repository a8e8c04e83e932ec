"""Checkpoints of every format open as the same model; everything else is refused with a reason."""

import json
import os
import pickle
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from blip_twins import twin_of
from safetensors.torch import save_file

from BLIP.checkpoints import load_captioner, load_towers
from BLIP.tokenizer import Tokenizer
from BLIP.weight_files import content, fetch_checkpoint, find_weights, is_hub_id, read_checkpoint

FIXTURES = Path(__file__).parent / "fixtures" / "blip"
CONFIG = {"num_attention_heads": 2, "vision": {"heads": 3}}


TOKENIZER = Tokenizer.open(FIXTURES)


@pytest.fixture(scope="module")
def flat():
    return torch.load(FIXTURES / "itm.pth", weights_only=True)["model"]


@pytest.fixture(scope="module")
def retrieval():
    return load_towers(FIXTURES / "itm.pth", TOKENIZER)


@pytest.fixture
def folder(tmp_path):
    """A folder with the head counts of the tiny model."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "container", ["flat.pth", "legacy.pth", "nested.ckpt", "flat.safetensors", "module.pth", "hugging.bin"]
)
def test_every_container_and_naming_gives_the_same_model(folder, flat, retrieval, container):
    file = folder / container
    if container == "flat.safetensors":
        save_file({name: tensor.contiguous() for name, tensor in flat.items()}, file)
    elif container == "module.pth":
        torch.save({"model": {f"module.{name}": tensor for name, tensor in flat.items()}, "epoch": 3}, file)
    elif container == "hugging.bin":
        torch.save(retrieval.state_dict() | {"text_encoder.embeddings.position_ids": torch.arange(208)}, file)
    else:
        content = {"state_dict": flat} if container == "nested.ckpt" else flat
        torch.save(content, file, _use_new_zipfile_serialization=container != "legacy.pth")
    opened = load_towers(folder, TOKENIZER)
    file.write_bytes(b"")  # the model outlives its file
    assert same(opened, retrieval)


def test_trainer_file_gives_main_weights_not_twins(retrieval):
    assert same(load_towers(FIXTURES / "retrieval_full.pth", TOKENIZER), retrieval)


def test_saved_folder_brings_its_own_head_counts(tmp_path, retrieval):
    twin_of(retrieval).save_pretrained(tmp_path)
    assert same(load_towers(tmp_path, TOKENIZER), retrieval)


def test_tied_tensors_and_which_wins(folder):
    state = torch.load(FIXTURES / "captioner.pth", weights_only=True)["model"]
    words, output = (
        "text_decoder.bert.embeddings.word_embeddings.weight",
        "text_decoder.cls.predictions.decoder.weight",
    )
    for dropped in (words, output):
        torch.save({name: tensor for name, tensor in state.items() if name != dropped}, folder / "one.pth")
        model = load_captioner(folder / "one.pth", TOKENIZER)
        assert torch.equal(model.state_dict()[dropped], state[dropped])
        embedding = model.text_decoder.bert.embeddings.word_embeddings
        assert model.text_decoder.cls.predictions.decoder.weight is embedding.weight
    state[output] = state[output] + 1
    torch.save(state, folder / "two.pth")
    model = load_captioner(folder / "two.pth", TOKENIZER)
    assert torch.equal(model.state_dict()[words], state[output])


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda file: file.write_bytes(b""), "is empty"),
        (lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "no checkpoint"),
        (lambda file: file.write_bytes((FIXTURES / "itm.pth").read_bytes()[:5000]), "truncated"),
        (lambda file: file.write_bytes(b"\x80\x02garbage"), "refused|damaged"),
        (lambda file: file.write_bytes(pickle.dumps({"model": Payload()})), "can run code|damaged"),
        (lambda file: torch.save({"model": Payload()}, file), "can run code"),
        (lambda file: torch.save([torch.ones(1)], file), "holds a list"),
        (lambda file: torch.save({"epoch": 3}, file), "no tensors"),
        (
            lambda file: file.write_bytes((FIXTURES / "itm_outputs.safetensors").read_bytes()[:9999]),
            "truncated",
        ),
    ],
)
def test_unreadable_files(tmp_path, monkeypatch, make, words):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=words) as caught:
        read_checkpoint(tmp_path / "bad.pth")
    assert "bad.pth" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_missing_and_ambiguous_paths_and_what_tells_contents_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*other\.ckpt: give a weights file"):
        find_weights(tmp_path / "other.ckpt")
    with pytest.raises(FileNotFoundError, match=r"download it from https://drive\.google.* save it there"):
        find_weights(tmp_path / "chatir_weights.ckpt")
    with pytest.raises(FileNotFoundError, match="no weights file in"):
        find_weights(tmp_path)
    (tmp_path / "a.pth").write_bytes(b"one")
    first = content(tmp_path)
    assert first == content(tmp_path / "a.pth") and len(first) == 16
    (tmp_path / "a.pth").write_bytes(b"two")
    assert content(tmp_path) != first
    (tmp_path / "b.ckpt").touch()
    with pytest.raises(ValueError, match=r"a\.pth, b\.ckpt"):
        find_weights(tmp_path)


def change(state, name, tensor=None):
    return {
        **{key: value for key, value in state.items() if key != name},
        **({name: tensor} if tensor is not None else {}),
    }


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda state: change(state, "vision_proj.bias"), r"1 tensors missing: vision_proj\.bias"),
        (lambda state: change(state, "visual_encoder.pos_embed"), r"missing: visual_encoder\.pos_embed"),
        (
            lambda state: change(state, "visual_encoder.blocks.1.attn.qkv.bias", torch.zeros(53)),
            r"visual_encoder\.blocks\.1\.attn\.qkv\.bias \(got \(53,\), expected \(54,\)\)",
        ),
        (lambda state: change(state, "visual_encoder.pos_embed", torch.zeros(1, 9, 18)), "square grid"),
        (lambda state: change(state, "visual_encoder.pos_embed", torch.zeros(10, 18)), "expected 3 axes"),
        (lambda state: change(state, "new_head.weight", torch.zeros(2)), r"1 unknown: new_head\.weight"),
        (lambda state: change(state, "itm_head.bias", torch.zeros(2, dtype=torch.int64)), "floating point"),
        (lambda state: {f"encoder.{key}": value for key, value in state.items()}, "no BLIP checkpoint"),
    ],
)
def test_wrong_tensors_are_named(folder, flat, edit, words):
    torch.save({"model": edit(flat)}, folder / "edited.pth")
    with pytest.raises(ValueError, match=words):
        load_towers(folder / "edited.pth", TOKENIZER)


def test_a_model_of_the_other_kind_or_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match="looks like a captioner, and a retrieval model is needed"):
        load_towers(FIXTURES / "captioner.pth", TOKENIZER)
    with pytest.raises(ValueError, match="looks like a retrieval model, and a captioner is needed"):
        load_captioner(FIXTURES / "itm.pth", TOKENIZER)
    lines = (FIXTURES / "vocab.txt").read_text().splitlines()
    (tmp_path / "vocab.txt").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match="embeds 211 tokens, its vocabulary gives 210"):
        load_towers(FIXTURES / "itm.pth", Tokenizer.open(tmp_path))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_attention_heads": 2}, "head count of its vision transformer .width 18.*config.json"),
        ({"vision": {"heads": 3}}, "head count of its text transformer .width 32"),
        ({"num_attention_heads": 2, "vision": {"heads": 4}}, "4 heads do not divide the vision width 18"),
        ({"num_attention_heads": "2", "vision": {"heads": 3}}, "'2' heads"),
        ({**CONFIG, "num_hidden_layers": 3}, "num_hidden_layers 2, its configuration says 3"),
        ({**CONFIG, "hidden_act": "relu"}, "hidden_act: got 'relu', expected 'gelu'"),
        ({**CONFIG, "vision": [3]}, "must be JSON objects"),
        ("{", "not JSON"),
    ],
)
def test_head_counts_are_never_guessed(tmp_path, retrieval, config, words):
    shutil.copy(FIXTURES / "itm.pth", tmp_path)
    (tmp_path / "med_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(ValueError, match=words):
        load_towers(tmp_path, TOKENIZER)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))  # it comes first
    assert same(load_towers(tmp_path, TOKENIZER), retrieval)


# Checkpoints of the hub


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("Salesforce/blip-itm-base-coco", True),
        ("BLIP/chatir_weights.ckpt", False),
        ("BLIP/weights/demo", False),
        ("/a/b", False),
        ("", False),
    ],
)
def test_hub_ids_are_told_from_paths(name, is_one):
    assert is_hub_id(name) == is_one


@pytest.fixture
def offline_cache(tmp_path, monkeypatch):
    """The hub's cache in its own layout; the hub itself out of reach."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def add(hub_id, **files):
        folder = tmp_path / f"models--{hub_id.replace('/', '--')}"
        snapshot = folder / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
        for name, source in files.items():
            shutil.copy(source, snapshot / name)
        (snapshot / "config.json").write_text(json.dumps(CONFIG | {"model_type": "blip"}))
        return snapshot

    return add


def test_a_model_of_the_hub_opens(offline_cache):
    files = {"pytorch_model.bin": FIXTURES / "itm.pth", "vocab.txt": FIXTURES / "vocab.txt"}
    snapshot = offline_cache("some/blip", **files)
    path = fetch_checkpoint("some/blip")
    assert path == snapshot / "pytorch_model.bin"
    assert same(load_towers(path, TOKENIZER), load_towers(FIXTURES / "itm.pth", TOKENIZER))
    shutil.copy(FIXTURES / "itm.pth", snapshot / "model.safetensors")  # which comes first
    assert fetch_checkpoint("some/blip") == snapshot / "model.safetensors"


@pytest.mark.parametrize("files", [{}, {"vocab.txt": FIXTURES / "vocab.txt"}])
def test_what_cannot_be_fetched_is_said_in_one_line(offline_cache, files):
    offline_cache("some/blip", **files)
    with pytest.raises(
        ValueError, match="some/blip is no path here and cannot be fetched from the hub"
    ) as caught:
        fetch_checkpoint("some/blip")
    assert "\n" not in str(caught.value)
