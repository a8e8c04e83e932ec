"""Pictures and their captions searched together, as one index: late fusion of two scores.

    score(query, image) = (1 - share) e(query) . v(image)  +  share s(query) . c(image)

e and v are the picture encoder's vectors of words and pictures, s and c a sentence encoder's of words and of
the system's captions. Rows [sqrt(1 - share) v; sqrt(share) c], and queries alike, make it a single product of
unit rows, so that whatever searches vectors searches these. A picture without a caption is [v; 0], and so is
a query by picture.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from PIL import Image

from index.encoder import Encoder


class Sentences(Protocol):
    """Texts to vectors."""

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Encodes n texts, (n, e) float32 unit rows."""
        ...


def fused_rows(pictures: np.ndarray, captions: np.ndarray, share: float) -> np.ndarray:
    """Joins the vectors of pictures and of their captions.

    Args:
        pictures: (n, d) float32 unit rows.
        captions: (n, e) float32, rows of unit length, or zeros where there is no caption.
        share: Of the captions in the score, from 0 to 1.

    Returns:
        (n, d + e) float32 unit rows.
    """
    joined = np.concatenate([np.sqrt(1 - share) * pictures, np.sqrt(share) * captions], axis=1)
    bare = ~captions.any(axis=1)
    joined[bare, : pictures.shape[1]] = pictures[bare]
    return joined.astype(np.float32)


class FusedEncoder:
    """Words and pictures to rows that `fused_rows` can be searched with.

    Attributes:
        pictures: The picture encoder.
        dimension: Of both encoders together.
        fingerprint: Differs when a model, the captions or the share do.
    """

    def __init__(
        self, pictures: Encoder, sentences: Sentences, width: int, share: float, captions: str
    ) -> None:
        """Joins two encoders.

        Args:
            pictures: The index's.
            sentences: That of the captions.
            width: e, of its vectors.
            share: As for `fused_rows`.
            captions: Identifies captions and sentence encoder.
        """
        self.pictures = pictures
        self._sentences = sentences
        self._width = width
        self._share = share
        self.dimension = pictures.dimension + width
        self.fingerprint = f"{pictures.fingerprint} with captions {captions} at {share}"

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Encodes n texts, (n, d + e) float32 unit rows."""
        return fused_rows(self.pictures.encode_texts(texts), self._sentences.encode_texts(texts), self._share)

    def encode_images(self, images: list[Image.Image]) -> np.ndarray:
        """Encodes n RGB pictures, (n, d + e) float32 unit rows."""
        vectors = self.pictures.encode_images(images)
        return fused_rows(vectors, np.zeros((len(vectors), self._width), np.float32), self._share)
