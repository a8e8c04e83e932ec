"""Models of your own, given as objects in place of those that the settings name; see docs/own_models.md."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from PIL import Image as PILImage

from feedback.sentence_encoder import SentenceEncoder
from feedback.strategies.rewrite import Rewriter
from index.build import Done, EmbedParts
from index.encoder import checked_rows
from index.shards import Shard
from records import Image

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
    # Image id to (d,) numbers in the encoder's space; the encoder then reads no picture of the collection.
    image_vectors: Mapping[str, Any] | None = None

    def given_encoder(self) -> GivenEncoder | None:
        """Returns the encoder as the index wants it, None if none is given; errors as `GivenEncoder`."""
        if self.encoder is not None:
            return GivenEncoder(self.encoder, self.image_vectors)
        if self.image_vectors is not None:
            raise ValueError(
                "image_vectors: got vectors without an encoder, expected one whose encode_texts gives "
                "queries in their space; for BLIP's: encoder=BlipEncoder.open(CHECKPOINT)"
            )
        return None


class GivenEncoder:
    """An encoder from outside, as the index and the retriever want it: float32, unit rows, named.

    Attributes:
        dimension: Width of a vector.
        fingerprint: The object's own, if it has one. Else its class's name and a hash of the signs of what
            it answers to three texts and a picture: other weights answer otherwise. With vectors of the
            pictures, a hash of these comes after it.
        embed_parts: Takes the place of embedding for `index.build.build_index` where the vectors are given.
    """

    embed_parts: EmbedParts | None = None

    def __init__(self, encoder: TextImageEncoder, image_vectors: Mapping[str, Any] | None = None) -> None:
        """Asks the encoder for some vectors, to learn their width.

        Args:
            encoder: Of texts and pictures; with vectors of the pictures, of texts alone.
            image_vectors: Image id to (d,) numbers of any length.

        Raises:
            ValueError: If what it answers is no rows of numbers, or texts and pictures differ in width.
        """
        self._encoder = encoder
        texts = answers = _unit_rows(encoder.encode_texts(list(_PROBES)), len(_PROBES), "encode_texts")
        if image_vectors is None:
            shades = np.linspace(0, 255, 224 * 224 * 3).astype(np.uint8).reshape(224, 224, 3)
            picture = _unit_rows(encoder.encode_images([PILImage.fromarray(shades)]), 1, "encode_images")
            if texts.shape[1] != picture.shape[1]:
                raise ValueError(
                    f"encoder: got texts of {texts.shape[1]} and pictures of {picture.shape[1]} dimensions, "
                    "expected vectors of one space"
                )
            answers = np.concatenate([texts, picture])
        self.dimension = texts.shape[1]
        signs = hashlib.sha256(np.packbits(answers > 0).tobytes()).hexdigest()[:16]
        self.fingerprint = getattr(encoder, "fingerprint", None) or f"{name_of(encoder)} {signs}"
        if image_vectors is not None:
            self.embed_parts = partial(self._given, image_vectors)
            self.fingerprint += f" {_checksum(image_vectors)[:16]}"

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Encodes n texts as (n, dimension) float32, rows of unit length."""
        return _unit_rows(self._encoder.encode_texts(texts), len(texts), "encode_texts")

    def encode_images(self, images: list[PILImage.Image]) -> np.ndarray:
        """Encodes n RGB pictures as (n, dimension) float32, rows of unit length."""
        if not hasattr(self._encoder, "encode_images"):
            raise ValueError(
                f"encoder: got {name_of(self._encoder)} without encode_images, which a picture needs that is "
                "not in image_vectors; search with words, or give the encoder this method"
            )
        return _unit_rows(self._encoder.encode_images(images), len(images), "encode_images")

    def _given(self, vectors: Mapping[str, Any], parts: Sequence[Sequence[Image]]) -> Done:
        """Yields the given vectors of each part; ValueError if an image has none, or one of another width."""
        ids = [image.id for part in parts for image in part]
        missing = [image_id for image_id in ids if image_id not in vectors]
        if missing:
            raise ValueError(
                f"image_vectors: {len(missing)} of the {len(ids)} images to embed have no vector (first "
                f"{missing[0]!r}), expected one for each, by the image's path below "
                "the image folder"
            )
        for part in parts:
            rows = [np.asarray(vectors[image.id], dtype=np.float32) for image in part]
            for image, row in zip(part, rows, strict=True):
                if row.shape != (self.dimension,):
                    raise ValueError(
                        f"image_vectors: got shape {row.shape} for {image.id!r}, expected "
                        f"({self.dimension},), the width of what encode_texts gives"
                    )
            unit = _unit_rows(rows, len(rows), "image_vectors")
            yield (
                Shard([image.id for image in part], checked_rows(unit, len(rows), self, "image vectors")),
                [],
            )


def name_of(model: object) -> str:
    """Returns a model's own ``name``, or that of its class: objects from outside need not have one."""
    kind = type(model)
    return str(getattr(model, "name", f"{kind.__module__}.{kind.__qualname__}"))


def _checksum(vectors: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for image_id in sorted(vectors):
        row = np.asarray(vectors[image_id], dtype="<f4")
        digest.update(f"{image_id!r} {row.shape} ".encode() + row.tobytes())
    return digest.hexdigest()


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
