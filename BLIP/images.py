"""Pictures to pixel values: right way up, RGB, resized straight to a square, normalised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from index.decode import to_rgb

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


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
