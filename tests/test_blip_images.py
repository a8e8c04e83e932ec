"""Pictures of every kind reach the model the right way up and in the right colours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from BLIP.images import resize, to_pixels

RECORDED = load_file(Path(__file__).parent / "fixtures" / "blip" / "preprocess.safetensors")


def test_preprocessing_is_exact():
    image = Image.fromarray(RECORDED["image_uint8_hwc"].numpy())
    for size in (48, 80):
        assert np.array_equal(
            np.asarray(resize(image, size)).transpose(2, 0, 1), RECORDED[f"resized_uint8_chw_{size}"]
        )
    assert torch.equal(to_pixels([image, image], 48)[1], RECORDED["pixel_values_48"])
    assert to_pixels([], 48).shape == (0, 3, 48, 48)


def test_a_path_is_not_a_picture():
    with pytest.raises(ValueError, match="got a str, expected a PIL image"):
        to_pixels(["dog.jpg"], 48)  # pyright: ignore[reportArgumentType]
