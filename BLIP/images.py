"""Pictures to pixel values: right way up, RGB, resized straight to a square, normalised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def to_rgb(image: Image.Image) -> Image.Image:
    """Turns a picture the right way up and into 8-bit RGB.

    Args:
        image: Of any mode. More than 8 bits a value are scaled down, not clipped; what is transparent becomes
            white; of an animation the frame it stands at is taken.

    Raises:
        ValueError: If it is no PIL image.
    """
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"got a {type(image).__name__}, expected a PIL image: open the file with PIL.Image.open"
        )
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def resize(image: Image.Image, size: int) -> Image.Image:
    """Resizes to ``size`` x ``size`` (bicubic, antialiased); proportions are not kept, nothing is cropped."""
    return to_rgb(image).resize((size, size), Image.Resampling.BICUBIC)


def to_pixels(images: Sequence[Image.Image], size: int) -> torch.Tensor:
    """Prepares pictures for the vision transformer.

    Args:
        images: PIL images of any mode and size.
        size: Side of the square, in pixels.

    Returns:
        (n, 3, size, size) float32.

    Source: the preprocessing of salesforce/BLIP and ChatIR.
    """
    values = torch.empty((len(images), 3, size, size))
    for number, image in enumerate(images):
        values[number] = torch.from_numpy(np.array(resize(image, size))).permute(2, 0, 1)
    mean = torch.tensor(IMAGE_MEAN).view(3, 1, 1)
    std = torch.tensor(IMAGE_STD).view(3, 1, 1)
    return values.div_(255).sub_(mean).div_(std)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scales deep greys to 8 bits: values up to 1 (floats), up to 255, or up to 65535, whichever fits."""
    values = np.asarray(image).astype(np.float64)
    if image.mode.startswith("I;16"):
        top = 65535.0
    else:
        highest = values.max(initial=0.0)
        top = (
            1.0 if image.mode == "F" and highest <= 1 else 255.0 if highest <= 255 else max(65535.0, highest)
        )
    return Image.fromarray(np.clip(np.rint(values * (255 / top)), 0, 255).astype(np.uint8))
