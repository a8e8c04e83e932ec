"""Captions as the reference decodes them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from BLIP.captioner import BlipCaptioner

FIXTURES = Path(__file__).parent / "fixtures" / "blip"
CONFIG = {"num_attention_heads": 2, "vision": {"heads": 3}}


@pytest.fixture(scope="module")
def captioner():
    return BlipCaptioner.open(FIXTURES / "captioner.pth", config=CONFIG, batch_size=2)


def test_captions_keep_their_order_over_batches(captioner):
    random = np.random.default_rng(1)
    images = [Image.fromarray(random.integers(0, 256, (50, 50, 3), dtype=np.uint8)) for _ in range(5)]
    together = captioner.caption(images)
    assert together == [captioner.caption([image])[0] for image in images]
    assert captioner.caption([]) == []


def test_prompts(captioner, tmp_path):
    assert captioner.prompt == "a picture of " and captioner.prompt_ids().tolist() == [[209, 18, 46, 48]]
    assert captioner.prompt_ids("").tolist() == [[209]]
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG | {"prompt": ""}))
    unprompted = BlipCaptioner.open(FIXTURES / "captioner.pth", config=config)
    assert unprompted.prompt == ""
    image = Image.new("RGB", (48, 48), "green")
    assert unprompted.caption([image]) == captioner.caption([image], "")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_length": 4}, "max_length 4 is out of range.*5 to 208"),
        ({"max_length": 209}, "max_length 209 is out of range"),
        ({"min_length": 21}, "min_length=21"),
    ],
)
def test_settings_out_of_range(captioner, settings, words):
    with pytest.raises(ValueError, match=words):
        captioner.caption([Image.new("RGB", (48, 48))], **settings)
