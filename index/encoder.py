"""What an encoder must offer, and the check of what it hands back."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from PIL import Image

from index.scores import unit_rows


class ImageEncoder(Protocol):
    """Pictures to vectors.

    It may also have a method ``prepare_image`` from one picture to another, such as the resized one: threads
    that decode then call it, so that `encode_images` finds less to do.
    """

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """Differs when the weights or the preprocessing differ."""
        ...

    def encode_images(self, images: list[Image.Image]) -> np.ndarray:
        """Encodes n RGB pictures as (n, dimension) float32, rows of unit length."""
        ...


class Encoder(ImageEncoder, Protocol):
    """Pictures and texts to vectors of one space."""

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Encodes n texts as (n, dimension) float32, rows of unit length."""
        ...


def checked_rows(vectors: np.ndarray, count: int, encoder: ImageEncoder, what: str) -> np.ndarray:
    """Checks that an encoder gave one unit row for each input.

    Args:
        vectors: What the encoder gave.
        count: How many inputs it got.
        encoder: Says the dimension.
        what: Names the inputs in errors, such as "image vectors".

    Returns:
        (count, dimension) float32, rounded to the index's grid.

    Raises:
        ValueError: If the shape, a value or a row's length is wrong.
    """
    rows = unit_rows(vectors, encoder.dimension, what)
    if len(rows) != count:
        raise ValueError(f"{what}: got {len(rows)} rows from the encoder, expected {count}, one an input")
    return rows
