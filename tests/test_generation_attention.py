"""The attention kernel follows from machine, precision and model; models of every support are real ones."""

import pytest
import torch
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from generation.attention import choose_attention, flash_attention_installed

AMPERE, TURING = (8, 6), (7, 5)


def llama(**settings):
    config = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, **settings)
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def blip():
    with torch.device("meta"):
        return BlipForConditionalGeneration(BlipConfig())


def llava():
    with torch.device("meta"):
        return LlavaForConditionalGeneration(LlavaConfig())


@pytest.mark.parametrize("build", [llama, llava])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_flash_attention_where_all_agree(build, dtype):
    attention, reason = choose_attention(build(), dtype, AMPERE, True)
    assert attention == "flash_attention_2"
    assert "supported by GPU, precision and model" in reason


@pytest.mark.parametrize(
    ("dtype", "capability", "installed", "reason"),
    [
        (torch.float16, None, True, "it needs a GPU"),
        (torch.float16, AMPERE, False, "flash-attn is not installed"),
        (torch.float16, TURING, True, "the GPU's compute capability 7.5 is below 8.0"),
        (torch.float32, AMPERE, True, "it computes in 16 bits, not in float32"),
    ],
)
def test_else_sdpa_with_the_reason(dtype, capability, installed, reason):
    assert choose_attention(llama(), dtype, capability, installed) == (
        "sdpa",
        f"no flash-attention 2: {reason}",
    )


def test_heads_too_wide_for_flash_attention():
    model = llama(num_attention_heads=1, num_key_value_heads=1, head_dim=512)
    assert choose_attention(model, torch.float16, AMPERE, True) == (
        "sdpa",
        "no flash-attention 2: heads of 512 are wider than 256",
    )


@pytest.mark.parametrize("capability", [None, AMPERE])
def test_blip_knows_the_plain_one_only(capability):
    attention, reason = choose_attention(blip(), torch.float16, capability, True)
    assert attention == "eager"
    assert reason.startswith("Blip") and reason.endswith("supports no other")


def test_a_model_made_of_several_gets_what_all_support():
    model = llava()
    model.model.vision_tower.__class__._supports_flash_attn = False
    try:
        attention, reason = choose_attention(model, torch.float16, AMPERE, True)
    finally:
        model.model.vision_tower.__class__._supports_flash_attn = True
    assert attention == "sdpa" and "CLIPVisionModel does not support it" in reason


def test_whether_it_is_installed_is_what_transformers_says():
    from transformers.utils import is_flash_attn_2_available

    assert flash_attention_installed() == is_flash_attn_2_available()
