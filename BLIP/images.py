"""Pictures to pixel values: right way up, RGB, resized straight to a square, normalised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from index.decode import squared, to_rgb

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def resize(image: Image.Image, size: int) -> Image.Image:
    """Resizes a picture of any mode to RGB of ``size`` x ``size``; see `index.decode.squared`."""
    if image.mode == "RGB" and image.size == (size, size) and not image.info:  # as `open_image` gives it
        return image
    return squared(to_rgb(image), size)


def to_pixels(images: Sequence[Image.Image], size: int) -> torch.Tensor:
    """Prepares PIL images of any mode and size: (n, 3, size, size) float32.

    Source: the preprocessing of salesforce/BLIP and ChatIR.
    """
    squares = np.empty((len(images), size, size, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        squares[number] = np.asarray(resize(image, size))
    return normalise(squares)


def normalise(squares: np.ndarray) -> torch.Tensor:
    """(n, size, size, 3) uint8 to (n, 3, size, size) float32."""
    values = torch.empty((len(squares), 3, *squares.shape[1:3]))
    values.copy_(torch.from_numpy(np.array(squares)).permute(0, 3, 1, 2))
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (IMAGE_MEAN, IMAGE_STD))
    return values.div_(255).sub_(mean).div_(std)
