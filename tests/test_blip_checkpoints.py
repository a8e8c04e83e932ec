"""Checkpoints of every format open as the same model; everything else is refused with a reason."""

import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from blip_twins import twin_of
from safetensors.torch import load_file, save_file

from BLIP.checkpoints import POSITIONS, load_captioner, load_towers
from BLIP.tokenizer import Tokenizer
from BLIP.weight_files import (
    UnreadableFileError,
    fetch_checkpoint,
    find_weights,
    fingerprint,
    is_hub_id,
    read_checkpoint,
    to_hugging_face,
    to_salesforce,
)

FIXTURES = Path(__file__).parent / "fixtures" / "blip"
CONFIG = {"num_attention_heads": 2, "vision": {"heads": 3}}


@pytest.fixture(scope="module")
def flat():
    return torch.load(FIXTURES / "itm.pth", weights_only=True)["model"]


@pytest.fixture(scope="module")
def retrieval():
    return load_towers(FIXTURES / "itm.pth", config=CONFIG)


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_trainer_file_gives_main_weights_not_twins(retrieval, caplog):
    with caplog.at_level(logging.INFO):
        loaded = load_towers(FIXTURES / "retrieval_full.pth", config=CONFIG)
    assert same(loaded, retrieval)
    assert "momentum twins" in caplog.text and "4 queues" in caplog.text and "1 temperature" in caplog.text


@pytest.mark.parametrize("container", ["flat.pth", "nested.ckpt", "flat.safetensors", "module.pth"])
def test_containers_of_salesforce_names(tmp_path, flat, retrieval, container):
    file = tmp_path / container
    if container == "flat.safetensors":
        save_file({name: tensor.contiguous() for name, tensor in flat.items()}, file)
    elif container == "module.pth":
        torch.save({"model": {f"module.{name}": tensor for name, tensor in flat.items()}, "epoch": 3}, file)
    else:
        torch.save({"model": flat} if container == "nested.ckpt" else flat, file)
    assert same(load_towers(file, config=CONFIG), retrieval)


def test_legacy_torch_file(tmp_path, flat, retrieval):
    torch.save(flat, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(load_towers(tmp_path / "old.pth", config=CONFIG), retrieval)


@pytest.mark.parametrize("nested", [False, True])
def test_hugging_face_names_whatever_the_nesting(tmp_path, retrieval, nested):
    state = dict(retrieval.state_dict())
    state["text_encoder.embeddings.position_ids"] = torch.arange(208)[None]
    torch.save({"model": state} if nested else state, tmp_path / "pytorch_model.bin")
    assert same(load_towers(tmp_path, config=CONFIG), retrieval)


def test_saved_folder_brings_its_own_head_counts(tmp_path, retrieval):
    twin_of(retrieval).save_pretrained(tmp_path)
    assert same(load_towers(tmp_path), retrieval)


def test_own_format_holds_both_models_in_half_precision(tmp_path, retrieval):
    captioner = load_captioner(FIXTURES / "captioner.pth", config=CONFIG)
    tied = ("text_decoder.cls.predictions.decoder.weight", "text_decoder.cls.predictions.decoder.bias")
    union = dict(retrieval.state_dict()) | {
        name: tensor
        for name, tensor in captioner.state_dict().items()
        if name.startswith("text_decoder.") and name not in tied
    }
    save_file({name: tensor.half() for name, tensor in union.items()}, tmp_path / "model.safetensors")
    retrieval.sizes.configuration().save_pretrained(tmp_path)
    for model, opened in ((retrieval, load_towers(tmp_path)), (captioner, load_captioner(tmp_path))):
        for name, tensor in opened.state_dict().items():
            assert tensor.dtype == torch.float32
            if not name.startswith("vision_model.") or model is retrieval:
                assert torch.equal(tensor, model.state_dict()[name].half().float()), name
    assert load_towers(tmp_path, dtype=torch.float16).dtype == torch.float16


def test_tied_tensors_and_which_wins(tmp_path):
    state = torch.load(FIXTURES / "captioner.pth", weights_only=True)["model"]
    words, output = (
        "text_decoder.bert.embeddings.word_embeddings.weight",
        "text_decoder.cls.predictions.decoder.weight",
    )
    for dropped in (words, output):
        torch.save({name: tensor for name, tensor in state.items() if name != dropped}, tmp_path / "one.pth")
        model = load_captioner(tmp_path / "one.pth", config=CONFIG)
        assert torch.equal(model.state_dict()[dropped], state[dropped])
        embedding = model.text_decoder.bert.embeddings.word_embeddings
        assert model.text_decoder.cls.predictions.decoder.weight is embedding.weight
    state[output] = state[output] + 1
    torch.save(state, tmp_path / "two.pth")
    model = load_captioner(tmp_path / "two.pth", config=CONFIG)
    assert torch.equal(model.state_dict()[words], state[output])


def test_every_transformers_default_that_is_wrong_is_overridden():
    tokenizer = Tokenizer.open(FIXTURES)
    sizes = load_captioner(FIXTURES / "captioner.pth", config=CONFIG, tokenizer=tokenizer).sizes
    config = sizes.configuration(tokenizer)
    text, vision = config.text_config, config.vision_config
    assert (text.num_attention_heads, text.layer_norm_eps, text.label_smoothing) == (2, 1e-12, 0.1)
    assert (text.bos_token_id, text.sep_token_id, text.pad_token_id, text.is_decoder) == (209, 3, 0, True)
    assert (vision.num_attention_heads, vision.layer_norm_eps, vision.image_size) == (3, 1e-6, 48)


@pytest.mark.parametrize("size", [32, 64])
def test_positions_are_interpolated_at_load(size):
    recorded = load_file(FIXTURES / "itm_outputs.safetensors")[f"pos_embed_{size}"]
    model = load_towers(FIXTURES / "itm.pth", image_size=size, config=CONFIG)
    torch.testing.assert_close(model.get_parameter(POSITIONS).data, recorded, atol=1e-6, rtol=0)
    assert model.sizes.image_size == size


def test_translation_has_an_inverse(flat):
    assert all(to_salesforce(to_hugging_face(name)) == name for name in flat)
    assert len({to_hugging_face(name) for name in flat}) == len(flat)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda file: file.write_bytes(b""), "is empty"),
        (lambda file: file.write_bytes(b"<!DOCTYPE html><html>"), "no checkpoint"),
        (lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git-lfs"),
        (lambda file: file.write_bytes((FIXTURES / "itm.pth").read_bytes()[:5000]), "truncated"),
        (lambda file: file.write_bytes(b"PK\x03\x04 but nothing else"), "truncated"),
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
    with pytest.raises(UnreadableFileError, match=words) as caught:
        read_checkpoint(tmp_path / "bad.pth")
    assert "bad.pth" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_missing_and_ambiguous_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        find_weights(tmp_path / "nothing.pth")
    with pytest.raises(FileNotFoundError, match="no weights file in"):
        find_weights(tmp_path)
    (tmp_path / "a.pth").touch()
    assert find_weights(tmp_path) == tmp_path / "a.pth"
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
def test_wrong_tensors_are_named(tmp_path, flat, edit, words):
    torch.save({"model": edit(flat)}, tmp_path / "edited.pth")
    with pytest.raises(ValueError, match=words):
        load_towers(tmp_path / "edited.pth", config=CONFIG)


def test_a_model_of_the_other_kind_is_named():
    with pytest.raises(ValueError, match=r"looks like a captioner, needed a retrieval model.*BlipCaptioner"):
        load_towers(FIXTURES / "captioner.pth", config=CONFIG)
    with pytest.raises(ValueError, match=r"looks like a retrieval model, needed a captioner.*BlipEncoder"):
        load_captioner(FIXTURES / "itm.pth", config=CONFIG)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_attention_heads": 2}, "head count of its vision transformer .width 18.*config="),
        ({"vision": {"heads": 3}}, "head count of its text transformer .width 32"),
        ({"num_attention_heads": 2, "vision": {"heads": 4}}, "4 heads do not divide the vision width 18"),
        ({"num_attention_heads": "2", "vision": {"heads": 3}}, "'2' heads"),
        ({**CONFIG, "num_hidden_layers": 3}, "num_hidden_layers 2, its configuration says 3"),
        ({**CONFIG, "hidden_size": 64}, "hidden_size 32, its configuration says 64"),
    ],
)
def test_head_counts_are_never_guessed(config, words):
    with pytest.raises(ValueError, match=words):
        load_towers(FIXTURES / "itm.pth", config=config)


def test_settings_beside_the_weights(tmp_path, retrieval):
    shutil.copy(FIXTURES / "itm.pth", tmp_path)
    med = json.loads((FIXTURES / "tiny_med_config.json").read_text())
    (tmp_path / "med_config.json").write_text(json.dumps(med | {"vision": {"heads": 3}}))
    assert same(load_towers(tmp_path / "itm.pth"), retrieval)
    (tmp_path / "med_config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load_towers(tmp_path / "itm.pth")
    with pytest.raises(FileNotFoundError, match="no model configuration"):
        load_towers(tmp_path / "itm.pth", config=tmp_path / "other.json")


def test_vocabulary_of_another_model_is_refused(tmp_path):
    lines = (FIXTURES / "vocab.txt").read_text().splitlines()
    (tmp_path / "vocab.txt").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match="embeds 211 tokens, its vocabulary gives 210"):
        load_towers(FIXTURES / "itm.pth", config=CONFIG, tokenizer=Tokenizer.open(tmp_path))


def test_the_model_outlives_its_file(tmp_path, retrieval):
    shutil.copy(FIXTURES / "itm.pth", tmp_path)
    model = load_towers(tmp_path / "itm.pth", config=CONFIG)
    (tmp_path / "itm.pth").write_bytes(b"")
    assert same(model, retrieval)


def test_the_missing_weights_of_chatir_are_said_to_lie_in_the_drive(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"download it from https://drive\.google.* save it there"):
        find_weights(tmp_path / "chatir_weights.ckpt")
    with pytest.raises(FileNotFoundError, match=r"other\.ckpt: give a weights file, or a folder"):
        find_weights(tmp_path / "other.ckpt")


def test_fingerprint_follows_the_content(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = fingerprint(tmp_path)
    assert first == fingerprint(tmp_path / "model.safetensors") and len(first) == 16
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert fingerprint(tmp_path) != first


# Checkpoints of the hub


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("Salesforce/blip-itm-base-coco", True),
        ("me/my_blip.v2", True),
        ("BLIP/chatir_weights.ckpt", False),
        ("BLIP/weights/demo", False),
        ("weights", False),
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
    assert same(load_towers(path), load_towers(FIXTURES / "itm.pth", config=CONFIG))


def test_safetensors_come_first(offline_cache):
    files = dict.fromkeys(("model.safetensors", "pytorch_model.bin", "vocab.txt"), FIXTURES / "vocab.txt")
    snapshot = offline_cache("some/blip", **files)
    assert fetch_checkpoint("some/blip") == snapshot / "model.safetensors"


@pytest.mark.parametrize("files", [{}, {"vocab.txt": FIXTURES / "vocab.txt"}])
def test_what_cannot_be_fetched_is_said_in_one_line(offline_cache, files):
    offline_cache("some/blip", **files)
    with pytest.raises(
        ValueError, match="some/blip is no path here and cannot be fetched from the hub"
    ) as caught:
        fetch_checkpoint("some/blip")
    assert "\n" not in str(caught.value)
