"""Models of your own, given as objects in place of those that the settings name; see docs/own_models.md."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image as PILImage

from feedback.sentence_encoder import SentenceEncoder
from feedback.strategies.rewrite import Rewriter

_PROBES = ("a photo of a dog", "two red buses in a street", "nothing")


class TextImageEncoder(Protocol):
    """Texts and pictures to vectors of one space.

    It may also have a ``fingerprint``, a string that changes with its weights; see `GivenEncoder`.
    """

    def encode_texts(self, texts: list[str]) -> Any:
        """Encodes n texts: (n, d) numbers, as an array or a tensor on the CPU, rows of any length."""
        ...

    def encode_images(self, images: list[PILImage.Image]) -> Any:
        """Encodes n RGB pictures, likewise."""
        ...


class PictureCaptioner(Protocol):
    """Pictures to sentences."""

    def caption(self, images: list[PILImage.Image]) -> list[str]:
        """Describes each picture in one line."""
        ...


@dataclass(frozen=True)
class OwnModels:
    """What stands in for the models that the settings name; None where the settings' model is meant."""

    encoder: TextImageEncoder | None = None  # of queries and pictures, instead of BLIP
    captioner: PictureCaptioner | None = None  # of pictures: the picked ones, or all
    rewriter: Rewriter | None = None  # of queries, with captions
    # Sentence encoders, whose encode_texts gives (n, d) rows of length 1: by one the system compares its
    # captions, by another the simulated users judge.
    caption_encoder: SentenceEncoder | None = None
    sentence_encoder: SentenceEncoder | None = None


class GivenEncoder:
    """An encoder from outside, as the index and the retriever want it: float32, unit rows, named.

    Attributes:
        dimension: Width of a vector.
        fingerprint: The object's own, if it has one. Else its class's name and a hash of the signs of what
            it answers to three texts and a picture: other weights answer otherwise.
    """

    def __init__(self, encoder: TextImageEncoder) -> None:
        """Asks the encoder for some vectors, to learn their width.

        Raises:
            ValueError: If what it answers is no rows of numbers, or texts and pictures differ in width.
        """
        self._encoder = encoder
        texts = _unit_rows(encoder.encode_texts(list(_PROBES)), len(_PROBES), "encode_texts")
        shades = np.linspace(0, 255, 224 * 224 * 3).astype(np.uint8).reshape(224, 224, 3)
        picture = _unit_rows(encoder.encode_images([PILImage.fromarray(shades)]), 1, "encode_images")
        if texts.shape[1] != picture.shape[1]:
            raise ValueError(
                f"encoder: got texts of {texts.shape[1]} and pictures of {picture.shape[1]} dimensions, "
                "expected vectors of one space"
            )
        self.dimension = texts.shape[1]
        signs = np.packbits(np.concatenate([texts, picture]) > 0).tobytes()
        own = getattr(encoder, "fingerprint", None)
        self.fingerprint = own or f"{name_of(encoder)} {hashlib.sha256(signs).hexdigest()[:16]}"

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Encodes n texts as (n, dimension) float32, rows of unit length."""
        return _unit_rows(self._encoder.encode_texts(texts), len(texts), "encode_texts")

    def encode_images(self, images: list[PILImage.Image]) -> np.ndarray:
        """Encodes n RGB pictures as (n, dimension) float32, rows of unit length."""
        return _unit_rows(self._encoder.encode_images(images), len(images), "encode_images")


def name_of(model: object) -> str:
    """Returns a model's own ``name``, or that of its class: objects from outside need not have one."""
    kind = type(model)
    return str(getattr(model, "name", f"{kind.__module__}.{kind.__qualname__}"))


def _unit_rows(vectors: Any, count: int, method: str) -> np.ndarray:
    rows = np.asarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or len(rows) != count:
        raise ValueError(
            f"{method}: got shape {rows.shape} for {count} inputs, expected ({count}, dimension)"
        )
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(rows).all() or not lengths.all():
        raise ValueError(f"{method}: got a row of zeros, or with NaN or infinity, expected a direction")
    return rows / lengths
