"""Every image is captioned once ever: captions by image id, kept in a file beside the index."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image as PILImage
from tqdm import tqdm

from embedding.decode import open_image
from records import Image

log = logging.getLogger(__name__)

BATCH_SIZE = 64  # pictures decoded at a time


class Captioner(Protocol):
    """Pictures to sentences."""

    def caption(self, images: list[PILImage.Image]) -> list[str]:
        """Describes each picture in one line."""
        ...


class CaptionStore:
    """Captions of a dataset's images by one captioner, made when first asked for.

    The file holds one JSON line an image, after a first line that names the captioner.

    Attributes:
        captioner_name: Model, precision and prompt.
        made: How many captions were made, not read from the file.
    """

    def __init__(
        self, captioner: Captioner, captioner_name: str, images: Sequence[Image], path: Path | None
    ) -> None:
        """Opens the store.

        Args:
            captioner: Makes the captions.
            captioner_name: Model, precision and prompt; a file of another captioner is refused.
            images: The collection.
            path: The file; None keeps the captions in memory only.

        Raises:
            ValueError: If the file is another captioner's or damaged.
        """
        self.captioner_name = captioner_name
        self._captioner = captioner
        self._paths = {image.id: image.path for image in images}
        self._path = path
        self._captions: dict[str, str] = {}
        self.made = 0
        if path is None:
            return
        if path.is_file() and _cut_torn_line(path):
            self._captions = _read(path, captioner_name)
            log.info("reusing %d captions from %s", len(self._captions), path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"captioner": captioner_name}) + "\n", encoding="utf-8")

    def captions_of(self, image_ids: Sequence[str]) -> list[str]:
        """Returns the captions of images, making those that are missing.

        Raises:
            ValueError: If an image cannot be read, or is not in the collection.
        """
        missing = [image_id for image_id in dict.fromkeys(image_ids) if image_id not in self._captions]
        unknown = [image_id for image_id in missing if image_id not in self._paths]
        if unknown:
            raise ValueError(
                f"got image id {unknown[0]!r}, expected one of the collection's {len(self._paths)} images"
            )
        starts = range(0, len(missing), BATCH_SIZE)
        for start in tqdm(starts, desc="captioning", unit="batch", disable=len(starts) < 2, leave=False):
            batch = missing[start : start + BATCH_SIZE]
            made = self._captioner.caption([open_image(self._paths[image_id]) for image_id in batch])
            new = dict(zip(batch, made, strict=True))
            self._append(new)
            self._captions |= new
            self.made += len(new)
        return [self._captions[image_id] for image_id in image_ids]

    def known(self, image_id: str) -> str | None:
        """Returns the caption of an image if it is made already."""
        return self._captions.get(image_id)

    def describe(self, picture: PILImage.Image) -> str:
        """Captions a picture that is not of the collection; nothing of it is kept."""
        return self._captioner.caption([picture])[0]

    def _append(self, captions: dict[str, str]) -> None:
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            for image_id, caption in captions.items():
                file.write(json.dumps({"image": image_id, "caption": caption}, ensure_ascii=False) + "\n")


def _cut_torn_line(path: Path) -> int:
    """Cuts off the half line that a killed process leaves: its caption is made again.

    Returns:
        How many bytes are left.
    """
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        log.warning("%s: cut off a torn last line of %d bytes", path, len(data) - whole)
        os.truncate(path, whole)
    return whole


def _read(path: Path, captioner_name: str) -> dict[str, str]:
    try:
        head, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        made_by = json.loads(head)["captioner"]
        captions = {entry["image"]: entry["caption"] for entry in map(json.loads, lines)}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error}); remove it, the captions are made again") from error
    if made_by != captioner_name:
        raise ValueError(
            f"{path}: captions by {made_by!r}, expected {captioner_name!r}; remove it to make them anew"
        )
    return captions
