"""Operations counted from a configuration are those that torch counts in the model itself."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertModel,
    BlipVisionConfig,
    BlipVisionModel,
    LlamaConfig,
    LlamaModel,
)

from benchmarks.model_work import Machine, Work, reads_image, reads_text, step_bytes, writes_tokens
from generation.footprint import configuration


def counted(model, **inputs):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops()


def test_an_image_as_torch_counts_it():
    config = BlipVisionConfig(
        hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, image_size=32,
        patch_size=8,
    )  # fmt: skip
    with torch.device("meta"):
        model, pixels = BlipVisionModel(config), torch.empty(1, 3, 32, 32)
    assert reads_image(config).operations == counted(model, pixel_values=pixels)


def test_a_text_encoder_as_torch_counts_it():
    config = BertConfig(
        hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, vocab_size=50
    )
    with torch.device("meta"):
        model = BertModel(config, add_pooling_layer=False)
        ids = torch.zeros(1, 7, dtype=torch.long)
    assert reads_text(config, 7, causal=False).operations == counted(model, input_ids=ids)


@pytest.mark.parametrize("tokens", [1, 9])
def test_a_language_model_as_torch_counts_it(tokens):
    config = LlamaConfig(
        hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, vocab_size=50,
    )  # fmt: skip
    with torch.device("meta"):
        model, ids = LlamaModel(config), torch.zeros(1, tokens, dtype=torch.long)
    whole = reads_text(config, tokens, causal=False).operations
    assert whole == pytest.approx(
        counted(model, input_ids=ids), rel=2e-3
    )  # rotary angles are one more product
    spared = 2 * 4 * 48 * (tokens * tokens - tokens * (tokens + 1) / 2)  # what a causal mask makes needless
    assert reads_text(config, tokens).operations == whole - spared


def test_blip_base_at_384_pixels_is_the_published_size():
    config = configuration("Salesforce/blip-itm-base-coco").vision_config
    assert reads_image(config).operations == pytest.approx(2 * 55.5e9, rel=0.01)  # ViT-B/16: 55.5 GMACs


def test_reading_in_two_parts_costs_what_reading_at_once_does():
    config = configuration("meta-llama/Llama-3.1-8B-Instruct")
    parts = reads_text(config, 40) + reads_text(config, 60, before=40)
    assert parts.operations == pytest.approx(reads_text(config, 100).operations)


def test_a_batch_shares_the_weights_and_not_the_cache():
    config = configuration("meta-llama/Llama-3.1-8B-Instruct")
    alone, together = (writes_tokens(config, 10, 100, batch, 16e9, 2) for batch in (1, 16))
    assert alone.operations == together.operations
    cache = 10 * 105 * 131_072  # 32 layers, 8 heads of 128, keys and values, 2 bytes
    assert alone.read_bytes == pytest.approx(10 * 16e9 + cache)
    assert together.read_bytes == pytest.approx(10e9 + cache)


def test_the_slower_of_computing_and_reading_decides():
    machine = Machine(100.0, 10.0)
    assert machine.seconds(Work(200.0, 10.0)) == 2
    assert machine.seconds(Work(200.0, 50.0)) == 5


def test_a_step_reads_all_weights_but_the_table_of_tokens():
    config = configuration("meta-llama/Llama-3.1-8B-Instruct")
    read = step_bytes(config, 2)
    assert read == pytest.approx(
        2 * (8.03e9 - 128256 * 4096), rel=2e-3
    )  # 8.03 billion, embeddings among them
