"""Pictures of every kind reach the model the right way up and in the right colours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from BLIP.images import resize, to_pixels, to_rgb

RECORDED = load_file(Path(__file__).parent / "fixtures" / "blip" / "preprocess.safetensors")


def test_preprocessing_is_exact():
    image = Image.fromarray(RECORDED["image_uint8_hwc"].numpy())
    for size in (48, 80):
        assert np.array_equal(
            np.asarray(resize(image, size)).transpose(2, 0, 1), RECORDED[f"resized_uint8_chw_{size}"]
        )
    assert torch.equal(to_pixels([image, image], 48)[1], RECORDED["pixel_values_48"])
    assert to_pixels([], 48).shape == (0, 3, 48, 48)


def test_exif_orientation_is_honoured():
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), (255, 0, 0))
    image.getexif()[0x0112] = 6  # to be shown turned right by 90 degrees
    upright = to_rgb(image)
    assert upright.size == (1, 2) and upright.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("L", (1, 1), 100), (100, 100, 100)),
        (Image.new("1", (1, 1), 1), (255, 255, 255)),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("RGBA", (1, 1), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (1, 1), (10, 20, 30, 255)), (10, 20, 30)),
        (Image.new("LA", (1, 1), (7, 255)), (7, 7, 7)),
        (Image.fromarray(np.full((1, 1), 25700, np.uint16)), (100, 100, 100)),
        (Image.fromarray(np.full((1, 1), 25700, np.int32)), (100, 100, 100)),
        (Image.fromarray(np.full((1, 1), 100, np.int32)), (100, 100, 100)),
        (Image.fromarray(np.full((1, 1), 0.4, np.float32)), (102, 102, 102)),
    ],
)
def test_modes(image, colour):
    assert to_rgb(image).getpixel((0, 0)) == colour


def test_palette_with_a_transparent_entry():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 9, 8, 7])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 0
    assert [to_rgb(image).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (9, 8, 7)]


def test_a_path_is_not_a_picture():
    with pytest.raises(ValueError, match="got a str, expected a PIL image"):
        to_pixels(["dog.jpg"], 48)  # pyright: ignore[reportArgumentType]
