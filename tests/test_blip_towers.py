"""The towers give transformers' numbers, and need no transformers."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from BLIP.checkpoints import load_captioner, load_retrieval, load_towers, share_towers, share_vision
from BLIP.model import BlipEncoder
from BLIP.packed import PackedLinear, can_pack, pack
from BLIP.sizes import read_sizes
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
    return load_towers(path, config=config), load_retrieval(path, config=config)


def tokens(*lengths):
    mask = torch.tensor([[1] * length + [0] * (max(lengths) - length) for length in lengths])
    return torch.randint(5, 200, mask.shape) * mask, mask


@torch.inference_mode()
def test_states_features_and_logits_are_those_of_transformers(both):
    ours, theirs = both
    torch.manual_seed(0)
    image = torch.randn(3, 3, ours.image_size, ours.image_size)
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
        image = torch.randn(count, 3, ours.image_size, ours.image_size)
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


def test_shared_towers_follow_the_training():
    model = load_retrieval(FIXTURES / "itm.pth", config=CONFIG)
    towers = share_towers(model)
    with torch.no_grad():
        model.text_proj.weight.add_(1)
    assert towers.text_proj.weight is model.text_proj.weight
    assert {name for name, _ in towers.named_parameters()} == {name for name, _ in model.named_parameters()}


@torch.inference_mode()
def test_a_captioners_images_are_read_as_transformers_reads_them():
    model = load_captioner(FIXTURES / "captioner.pth", config=CONFIG)
    size = model.config.vision_config.image_size
    image = torch.randn(2, 3, size, size)
    expected = model.vision_model(image).last_hidden_state
    torch.testing.assert_close(share_vision(model)(image), expected, **CLOSE)


def test_a_model_of_another_epsilon_is_not_shared():
    model = load_retrieval(FIXTURES / "itm.pth", config=CONFIG)
    model.config.vision_config.layer_norm_eps = 1e-5
    with pytest.raises(ValueError, match="vision layer_norm_eps: got 1e-05, expected 1e-06"):
        share_towers(model)


def test_the_norms_read_their_epsilon(tmp_path):
    text = json.loads((FIXTURES / "tiny_med_config.json").read_text()) | {"layer_norm_eps": 0.5}
    config = text | {"vision": {"heads": 3}}
    ours, theirs = (load(FIXTURES / "itm.pth", config=config) for load in (load_towers, load_retrieval))
    ids, mask = tokens(4, 4)
    expected = theirs.text_encoder(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours.text_encoder(ids, mask), expected, **CLOSE)


def test_what_is_no_retrieval_model_is_refused():
    with pytest.raises(ValueError, match="hidden_act: got 'relu', expected 'gelu'"):
        load_towers(FIXTURES / "itm.pth", config=CONFIG | {"hidden_act": "relu"})
    state = load_captioner(FIXTURES / "captioner.pth", config=CONFIG).state_dict()
    sizes = read_sizes({name: tuple(tensor.shape) for name, tensor in state.items()}, "text_decoder.bert.")
    with pytest.raises(ValueError, match="expected those of a retrieval model"):
        Towers(sizes, (3, 2), 48)


def test_searching_imports_no_transformers():
    code = (
        "import sys; from BLIP.model import BlipEncoder;"
        f"BlipEncoder.open({str(PROJECT / 'BLIP/weights/demo')!r}).encode_texts(['a dog']);"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, timeout=120).returncode == 0
