"""The encoder, the captioner and their towers: transformers' numbers, whatever the batches."""

import copy
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from blip_twins import twin_of
from PIL import Image

from BLIP.captioner import BlipCaptioner
from BLIP.checkpoints import load_towers
from BLIP.model import BlipEncoder
from BLIP.packed import PackedLinear, can_pack, pack
from BLIP.tokenizer import Tokenizer

PROJECT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures" / "blip"
DEMO = PROJECT / "BLIP/weights/demo"
CLOSE = {"atol": 1e-5, "rtol": 0}
TEXTS = [
    "a man riding a brown horse on the beach",
    "cat",
    "two dogs in the park",
    "a red bus",
    "a big building",
]


@pytest.fixture(params=[FIXTURES / "itm.pth", DEMO], ids=["tiny", "demo"])
def both(request):
    ours = load_towers(request.param, Tokenizer.open(request.param))
    return ours, twin_of(ours)


@pytest.fixture(scope="module")
def encoder():
    return BlipEncoder.open(FIXTURES / "itm.pth", batch_size=2)


@pytest.fixture(scope="module")
def captioner():
    return BlipCaptioner.open(FIXTURES / "captioner.pth", batch_size=2)


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (40 + n, 60, 3), dtype=np.uint8)) for n in range(5)]


def tokens(*lengths):
    mask = torch.tensor([[1] * length + [0] * (max(lengths) - length) for length in lengths])
    return torch.randint(5, 200, mask.shape) * mask, mask


@torch.inference_mode()
def test_states_features_and_logits_are_those_of_transformers(both):
    ours, theirs = both
    torch.manual_seed(0)
    image = torch.randn(3, 3, ours.sizes.image_size, ours.sizes.image_size)
    states = theirs.vision_model(image).last_hidden_state
    torch.testing.assert_close(ours.vision_model(image), states, **CLOSE)
    torch.testing.assert_close(ours.vision_proj(states), theirs.vision_proj(states), **CLOSE)
    for lengths in ((7, 3, 5), (4, 4, 4)):
        ids, mask = tokens(*lengths)
        there = mask.bool()
        alone = theirs.text_encoder(ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(ours.text_encoder(ids, mask)[there], alone[there], **CLOSE)
        if mask.all():  # no mask is a mask without padding
            torch.testing.assert_close(ours.text_encoder(ids), alone, **CLOSE)
        torch.testing.assert_close(ours.text_proj(alone), theirs.text_proj(alone), **CLOSE)
        fused = theirs.text_encoder(ids, attention_mask=mask, encoder_hidden_states=states).last_hidden_state
        torch.testing.assert_close(ours.text_encoder(ids, mask, states)[there], fused[there], **CLOSE)
        torch.testing.assert_close(ours.itm_head(fused), theirs.itm_head(fused), **CLOSE)


@pytest.mark.skipif(not can_pack(), reason="this processor or torch cannot")
@torch.inference_mode()
def test_packed_layers_compute_the_same(both, encoder):
    ours = copy.deepcopy(both[0])
    pack(ours.text_encoder)
    pack(ours.vision_model)
    kinds = [type(module) for module in ours.modules()]
    assert kinds.count(PackedLinear) > 20
    assert kinds.count(torch.nn.Linear) == 3  # projections and matching head
    for count in (1, 3):
        image = torch.randn(count, 3, ours.sizes.image_size, ours.sizes.image_size)
        states = both[0].vision_model(image)
        torch.testing.assert_close(ours.vision_model(image), states, **CLOSE)
        ids, mask = tokens(*range(3, 3 + count))
        expected = both[0].text_encoder(ids, mask, states)
        torch.testing.assert_close(ours.text_encoder(ids, mask, states), expected, **CLOSE)
    assert PackedLinear in [type(module) for module in encoder.model.modules()]


def test_searching_imports_no_transformers():
    code = (
        "import sys; from BLIP.model import BlipEncoder;"
        f"BlipEncoder.open({str(DEMO)!r}).encode_texts(['a dog']);"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, timeout=120).returncode == 0


def test_rows_do_not_depend_on_the_batch(encoder, images):
    for encode, inputs in ((encoder.encode_images, images), (encoder.encode_texts, TEXTS)):
        rows = encode(inputs)
        assert rows.dtype == np.float32 and rows.shape == (5, encoder.dimension) == (5, 16)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(rows, np.concatenate([encode([one]) for one in inputs]), atol=1e-5)
        assert encode([]).shape == (0, 16)


def test_image_size_is_asked_for(images):
    larger = BlipEncoder.open(FIXTURES / "itm.pth", image_size=64)
    assert larger.image_size == 64 and larger.encode_images(images[:1]).shape == (1, 16)
    with pytest.raises(ValueError, match="image size 8 is below one patch of 16 pixels"):
        BlipEncoder.open(FIXTURES / "itm.pth", image_size=8)


def test_long_texts_are_cut_and_misuse_is_told(encoder, caplog):
    with caplog.at_level(logging.WARNING):
        encoder.encode_texts(["a dog", "a dog and " * 100])
    assert "1 texts were cut to 200 tokens" in caplog.text
    with pytest.raises(ValueError, match="put it in a list"):
        encoder.encode_texts("a dog")
    with pytest.raises(ValueError, match="batch_size=0"):
        BlipEncoder.open(FIXTURES / "itm.pth", batch_size=0)


def test_captions_keep_their_order_over_batches(captioner, images):
    assert captioner.caption(images) == [captioner.caption([image])[0] for image in images]
    assert captioner.caption([]) == []


def test_prompts(captioner, images, tmp_path):
    assert captioner.prompt == "a picture of " and captioner.prompt_ids().tolist() == [[209, 18, 46, 48]]
    assert captioner.prompt_ids("").tolist() == [[209]]
    for name in ("captioner.pth", "vocab.txt"):
        shutil.copy(FIXTURES / name, tmp_path)
    config = json.loads((FIXTURES / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"prompt": ""}))
    unprompted = BlipCaptioner.open(tmp_path)
    assert unprompted.prompt == ""
    assert unprompted.caption(images[:1]) == captioner.caption(images[:1], "")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_length": 4}, "max_length 4 is out of range.*5 to 208"),
        ({"max_length": 209}, "max_length 209 is out of range"),
        ({"min_length": 21}, "min_length=21"),
    ],
)
def test_lengths_out_of_range(captioner, images, settings, words):
    with pytest.raises(ValueError, match=words):
        captioner.caption(images[:1], **settings)


def test_whatever_changes_a_vector_changes_the_fingerprint(tmp_path, monkeypatch):
    for name in ("itm.pth", "config.json", "vocab.txt", "tiny_med_config.json"):
        shutil.copy(FIXTURES / name, tmp_path)
    named = {BlipEncoder.open(tmp_path / "itm.pth").fingerprint}

    def is_another(image_size=None):
        before = len(named)
        named.add(BlipEncoder.open(tmp_path / "itm.pth", image_size).fingerprint)
        return len(named) > before

    assert not is_another()
    assert is_another(image_size=64)
    words = (tmp_path / "vocab.txt").read_text().split("\n")
    words[-2], words[-3] = words[-3], words[-2]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    assert is_another()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"another": 1}))
    assert is_another()
    monkeypatch.setattr("index.fingerprint.version", lambda library: "99.1")
    assert is_another()
    monkeypatch.setattr("index.fingerprint.VERSION", 99)
    assert is_another()


def test_a_small_captioner_computes_with_one_thread_and_leaves_the_others_theirs(monkeypatch):
    captioner = BlipCaptioner.open(FIXTURES / "captioner.pth", batch_size=2)
    before, threads, generate = torch.get_num_threads(), [], captioner.generate

    def counted(*given, **more):
        threads.append(torch.get_num_threads())
        return generate(*given, **more)

    monkeypatch.setattr(captioner, "generate", counted)
    torch.set_num_threads(2)
    try:
        captioner.caption([Image.new("RGB", (8, 8))])
        monkeypatch.setattr("BLIP.captioner.SMALL", 0)
        captioner.caption([Image.new("RGB", (8, 8))])
        assert threads == [1, 2] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
