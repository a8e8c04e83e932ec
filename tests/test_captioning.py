"""Captions by the tiny BLIP captioner, and by a tiny random LLaVA-NeXT in the hub's layout."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer
from PIL import Image

from BLIP.model import BlipCaptioner
from captioning import MOST_TOKENS, MOST_WORDS, Captioning
from generation.parsing import one_line
from generation.prompts import CAPTION

FIXTURES = Path(__file__).parent / "fixtures" / "blip"


def pictures():
    """Of unlike shapes, so that LLaVA's prompts are of unlike lengths."""
    random = np.random.default_rng(1)
    sides = [(40, 30), (20, 60), (100, 30), (28, 28), (30, 90)]
    return [Image.fromarray(random.integers(0, 256, (*side, 3), dtype=np.uint8)) for side in sides]


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioner")
    shutil.copy(FIXTURES / "captioner.pth", folder)
    shutil.copy(FIXTURES / "vocab.txt", folder)
    config = {"model_type": "blip", "num_attention_heads": 2, "vision": {"heads": 3}}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory):
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextProcessor,
    )
    from transformers.models.llava_next import LlavaNextImageProcessorPil

    folder = tmp_path_factory.mktemp("llava")
    tokenizer = tiny_tokenizer(["<image>"])
    grid = [[28, 56], [56, 28]]
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grid
    )
    LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template="{% for m in messages %}[INST] {% for c in m['content'] %}{% if c['type'] == 'image' %}"
        "<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %} [/INST]{% endfor %}",
    ).save_pretrained(folder)
    small = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    text = LlamaConfig(
        **small,
        vocab_size=len(tokenizer),
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    vision = CLIPVisionConfig(**small, image_size=28, patch_size=14, projection_dim=32)
    config = LlavaNextConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
        initializer_range=0.4,
    )
    model = LlavaNextForConditionalGeneration(config)
    model.lm_head.weight.data[1] *= 2  # so that some captions end
    model.save_pretrained(folder)
    return str(folder)


def test_blip_describes_as_its_captioner_does(blip_folder):
    images = pictures()
    captioning = Captioning(blip_folder, "fp32", batch_size=2)
    captioner = BlipCaptioner.open(blip_folder)
    longest = min(MOST_TOKENS, captioner.model.config.text_config.max_position_embeddings)
    plain = [captioner.caption([image], num_beams=1, max_length=longest)[0] for image in images]
    captions = captioning.caption(images)
    assert captions == [one_line(text, MOST_WORDS) or "an image" for text in plain]
    assert len(set(captions)) > 1
    assert captioning.caption([]) == []


def test_blip_by_its_file(blip_folder):
    by_file = Captioning(f"{blip_folder}/captioner.pth", "fp32").caption(pictures()[:2])
    assert by_file == Captioning(blip_folder, "fp32").caption(pictures()[:2])


def test_blip_takes_no_bitsandbytes(blip_folder, monkeypatch):
    import captioning

    monkeypatch.setattr(captioning, "loading_options", lambda _: {"quantization_config": "8 bits"})
    with pytest.raises(ValueError, match="got int8 for a BLIP captioner, expected fp16, bf16 or fp32"):
        Captioning(blip_folder, "int8").caption(pictures())


def test_empty_captions_are_counted(blip_folder, monkeypatch):
    captioning = Captioning(blip_folder, "fp32", batch_size=2)
    said = iter([["...", "a dog\nand more"], ["", "a cat"], ["a dog " * 200]])
    monkeypatch.setattr(captioning._blip, "caption", lambda *_, **__: next(said))
    assert captioning.caption(pictures()) == ["an image", "a dog", "an image", "a cat", "a dog"]
    assert captioning.empty == 2


def test_a_vision_language_model_describes_in_batches_as_alone(llava_folder):
    images = pictures()
    captions = Captioning(llava_folder, "fp32", batch_size=5).caption(images)
    assert len(set(captions)) > 2
    alone = Captioning(llava_folder, "fp32", batch_size=1)
    assert [alone.caption([image])[0] for image in images] == captions
    assert Captioning(llava_folder, "fp32", batch_size=2).caption(images[::-1]) == captions[::-1]
    for caption in captions:
        assert "\n" not in caption and len(caption.split()) <= MOST_WORDS
        assert CAPTION not in caption and "[/INST]" not in caption


def test_the_name_is_what_makes_captions_differ():
    assert Captioning("some/model", True).name == f"some/model int8: {CAPTION}"
    assert Captioning("some/model", "bf16").name == f"some/model bf16: {CAPTION}"
    with pytest.raises(ValueError, match="quantization: got 'int2'"):
        Captioning("some/model", "int2")


def test_a_missing_model_is_named_in_one_line():
    with pytest.raises(ValueError, match="the model /no/such cannot be opened, expected a folder") as caught:
        Captioning("/no/such", "fp32").caption(pictures())
    assert "\n" not in str(caught.value)
