"""Models of your own, given as objects in place of those that the settings name; see docs/own_models.md."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image as PILImage
from tqdm import tqdm

from feedback.costs import Costs
from feedback.strategies.rewrite import Rewriter
from index.decode import open_image
from records import Image

log = logging.getLogger(__name__)

BATCH_SIZE = 32  # pictures opened at a time
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
    """What stands in for the models that the settings name; None where the settings' model is meant.

    Attributes:
        encoder: Embeds queries and pictures, instead of BLIP.
        captioner: Describes picked images.
        rewriter: Rewrites queries with captions.
    """

    encoder: TextImageEncoder | None = None
    captioner: PictureCaptioner | None = None
    rewriter: Rewriter | None = None


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


class GivenCaptions:
    """Captions by a captioner from outside, each made once in this process; no file keeps them.

    Attributes:
        captioner_name: The captioner's ``name``, if it has one, else its class's.
        made: How many captions were made.
    """

    def __init__(self, captioner: PictureCaptioner, images: Sequence[Image], costs: Costs) -> None:
        """Opens nothing yet.

        Args:
            captioner: Makes the captions.
            images: The collection.
            costs: Charged for captions.
        """
        self.captioner_name = name_of(captioner)
        self.made = 0
        self._captioner = captioner
        self._costs = costs
        self._paths = {image.id: image.path for image in images}
        self._captions: dict[str, str] = {}

    def captions_of(self, image_ids: Sequence[str]) -> list[str]:
        """Returns the captions of images, making those that are missing.

        Raises:
            ValueError: If an image cannot be read or is not in the collection, or the captioner does not give
                one text a picture.
        """
        missing = [image_id for image_id in dict.fromkeys(image_ids) if image_id not in self._captions]
        starts = range(0, len(missing), BATCH_SIZE)
        for start in tqdm(starts, desc="captioning", unit="batch", disable=len(starts) < 2, leave=False):
            batch = missing[start : start + BATCH_SIZE]
            pictures = [open_image(self._paths[image_id]) for image_id in batch]
            with self._costs.measure("caption", len(batch), self._captioner):
                made = list(self._captioner.caption(pictures))
            if len(made) != len(batch) or not all(isinstance(caption, str) for caption in made):
                raise ValueError(
                    f"captioner: got {made!r:.80} for {len(batch)} pictures, expected one text each"
                )
            self._captions.update(zip(batch, (" ".join(caption.split()) for caption in made), strict=True))
            self.made += len(batch)
        return [self._captions[image_id] for image_id in image_ids]

    def describe(self, picture: PILImage.Image) -> str:
        """Captions a picture that is not of the collection; nothing of it is kept."""
        return self._captioner.caption([picture])[0]

    def counts(self) -> str:
        """Says how many captions were made, for the log."""
        return f"{self.made} captions made"


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
