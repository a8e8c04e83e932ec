"""Rows of length 1 in the order given, whatever the batches."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from BLIP.model import BlipEncoder
from BLIP.weight_files import fingerprint

FIXTURES = Path(__file__).parent / "fixtures" / "blip"
CONFIG = {"num_attention_heads": 2, "vision": {"heads": 3}}
TEXTS = [
    "a man riding a brown horse on the beach",
    "cat",
    "two dogs in the park",
    "a red bus",
    "a big building",
]


def opened(**options):
    return BlipEncoder.open(FIXTURES / "itm.pth", config=CONFIG, **options)


@pytest.fixture(scope="module")
def encoder():
    return opened(batch_size=2)


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (40 + n, 60, 3), dtype=np.uint8)) for n in range(5)]


def test_rows_do_not_depend_on_the_batch(encoder, images):
    for encode, inputs in ((encoder.encode_images, images), (encoder.encode_texts, TEXTS)):
        rows = encode(inputs)
        assert rows.dtype == np.float32 and rows.shape == (5, encoder.dimension) == (5, 16)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(rows, np.concatenate([encode([one]) for one in inputs]), atol=1e-5)
        assert encode([]).shape == (0, 16)


def test_facts(encoder):
    assert encoder.fingerprint == fingerprint(FIXTURES / "itm.pth")
    assert (encoder.image_size, encoder.text_limit) == (48, 200)


def test_image_size_is_asked_for(images):
    encoder = opened(image_size=64)
    assert encoder.image_size == 64 and encoder.encode_images(images[:1]).shape == (1, 16)


def test_half_precision_gives_float32_rows_nearby(encoder, images):
    half = opened(dtype=torch.float16)
    rows = half.encode_images(images)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, encoder.encode_images(images), atol=5e-3)


def test_long_texts_are_cut_counted_and_logged(caplog):
    encoder = opened()
    with caplog.at_level(logging.WARNING):
        encoder.encode_texts(["a dog", "a dog and " * 100])
    assert encoder.truncated == 1 and "1 texts were cut to 200 tokens" in caplog.text


def test_misuse_is_told(encoder):
    with pytest.raises(ValueError, match="put it in a list"):
        encoder.encode_texts("a dog")
    with pytest.raises(ValueError, match="batch_size=0"):
        opened(batch_size=0)
