"""The towers give transformers' numbers, and need no transformers."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from blip_twins import twin_of

from BLIP.checkpoints import load_captioner, load_towers
from BLIP.model import BlipEncoder
from BLIP.packed import PackedLinear, can_pack, pack
from BLIP.towers import Towers

PROJECT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures" / "blip"
CONFIG = {"num_attention_heads": 2, "vision": {"heads": 3}}
CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(
    params=[(FIXTURES / "itm.pth", CONFIG), (PROJECT / "BLIP/weights/demo", None)], ids=["tiny", "demo"]
)
def both(request):
    path, config = request.param
    ours = load_towers(path, config=config)
    return ours, twin_of(ours)


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
        torch.testing.assert_close(ours.text_proj(alone), theirs.text_proj(alone), **CLOSE)
        fused = theirs.text_encoder(ids, attention_mask=mask, encoder_hidden_states=states).last_hidden_state
        torch.testing.assert_close(ours.text_encoder(ids, mask, states)[there], fused[there], **CLOSE)
        torch.testing.assert_close(ours.itm_head(fused), theirs.itm_head(fused), **CLOSE)


@torch.inference_mode()
def test_no_mask_is_a_mask_without_padding(both):
    ids, mask = tokens(6, 6)
    torch.testing.assert_close(both[0].text_encoder(ids), both[0].text_encoder(ids, mask), **CLOSE)


@pytest.mark.skipif(not can_pack(), reason="this processor or torch cannot")
@torch.inference_mode()
def test_packed_layers_compute_the_same(both):
    ours = copy.deepcopy(both[0])
    pack(ours.text_encoder)
    pack(ours.vision_model)
    kinds = [type(module) for module in ours.modules()]
    assert (
        kinds.count(PackedLinear) > 20 and kinds.count(torch.nn.Linear) == 3
    )  # projections and matching head
    for count in (1, 3):
        image = torch.randn(count, 3, ours.sizes.image_size, ours.sizes.image_size)
        states = both[0].vision_model(image)
        torch.testing.assert_close(ours.vision_model(image), states, **CLOSE)
        ids, mask = tokens(*range(3, 3 + count))
        expected = both[0].text_encoder(ids, mask, states)
        torch.testing.assert_close(ours.text_encoder(ids, mask, states), expected, **CLOSE)


def test_the_encoder_packs_what_it_can():
    kinds = [
        [type(module) for module in opened(dtype).model.modules()] for dtype in (torch.float32, torch.float16)
    ]
    assert [PackedLinear in found for found in kinds] == [can_pack(), False]


def opened(dtype):
    return BlipEncoder.open(FIXTURES / "itm.pth", config=CONFIG, dtype=dtype)


@torch.inference_mode()
def test_a_captioner_reads_and_writes_as_transformers_does():
    ours = load_captioner(FIXTURES / "captioner.pth", config=CONFIG)
    theirs, image = twin_of(ours), torch.randn(2, 3, ours.sizes.image_size, ours.sizes.image_size)
    states = theirs.vision_model(image).last_hidden_state
    torch.testing.assert_close(ours.vision_model(image), states, **CLOSE)
    ids, mask = tokens(5, 3)
    written = [model.text_decoder(ids, mask, encoder_hidden_states=states).logits for model in (ours, theirs)]
    torch.testing.assert_close(*written, **CLOSE)


def test_the_norms_read_their_epsilon():
    text = json.loads((FIXTURES / "tiny_med_config.json").read_text()) | {"layer_norm_eps": 0.5}
    ours = load_towers(FIXTURES / "itm.pth", config=text | {"vision": {"heads": 3}})
    ids, mask = tokens(4, 4)
    expected = twin_of(ours).text_encoder(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours.text_encoder(ids, mask), expected, **CLOSE)


def test_what_is_no_retrieval_model_is_refused():
    with pytest.raises(ValueError, match="hidden_act: got 'relu', expected 'gelu'"):
        load_towers(FIXTURES / "itm.pth", config=CONFIG | {"hidden_act": "relu"})
    sizes = load_captioner(FIXTURES / "captioner.pth", config=CONFIG).sizes
    with pytest.raises(ValueError, match="expected those of a retrieval model"):
        Towers(sizes)


def test_searching_imports_no_transformers():
    code = (
        "import sys; from BLIP.model import BlipEncoder;"
        f"BlipEncoder.open({str(PROJECT / 'BLIP/weights/demo')!r}).encode_texts(['a dog']);"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, timeout=120).returncode == 0
