"""Captions of a collection's images: found in the cache, or made when first asked for."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

from PIL import Image as PILImage
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from generation.caption_cache import CaptionCache
from generation.model_identity import model_identity
from generation.servers import ServersFailed
from index.decode import BrokenImage, check_still_there, open_image
from records import Image

log = logging.getLogger(__name__)


class Captioner(Protocol):
    """Pictures to sentences.

    Attributes:
        model_id: A file, a folder, or a model of the hub.
        name: What makes captions differ, beginning with the model's id: model, precision and prompt.
    """

    model_id: str
    name: str

    def caption(self, images: list[PILImage.Image]) -> list[str]:
        """Describes each picture in one line."""
        ...


class ImageCaptions:
    """Captions of a collection's images by one captioner.

    Every image asked for is one of reused, made and broken. A picture that cannot be read any more has the
    empty caption, which moves no query; that is not kept, so that a mended file is described.

    Attributes:
        reused: How many images had a caption already, their own or that of an equal file.
        made: How many captions were made.
        broken: Why images could not be described, by image id.
    """

    def __init__(
        self, captioner: Captioner, images: Sequence[Image], cache: CaptionCache, batch_size: int
    ) -> None:
        """Opens no model and no picture yet.

        Args:
            captioner: Makes the captions.
            images: The collection.
            cache: Holds the captions made so far, and those that other processes make meanwhile.
            batch_size: Pictures captioned, and then kept, at a time.
        """
        self.reused = 0
        self.made = 0
        self.broken: dict[str, str] = {}
        self._captioner = captioner
        self._images = {image.id: image for image in images}
        self._cache = cache
        self._batch_size = batch_size
        self._captions: dict[str, str] = {}

    @cached_property
    def captioner_name(self) -> str:
        """What makes captions differ: the model's content, precision and prompt.

        Raises:
            ValueError: If there is no such model.
        """
        identity = model_identity(self._captioner.model_id, self._cache.hashes_of)
        return identity + self._captioner.name.removeprefix(self._captioner.model_id)

    def captions_of(self, image_ids: Sequence[str]) -> list[str]:
        """Returns the captions of images, making those that are missing.

        Args:
            image_ids: Of the collection.

        Returns:
            One line each, in order; empty for a picture that cannot be read.

        Raises:
            ValueError: If an image is not in the collection, or the captioner cannot be opened.
        """
        missing = [image_id for image_id in dict.fromkeys(image_ids) if image_id not in self._captions]
        unknown = [image_id for image_id in missing if image_id not in self._images]
        if unknown:
            raise ValueError(
                f"got image id {unknown[0]!r}, expected one of the collection's {len(self._images)} images"
            )
        if missing:
            self._look_up(missing)
        return [self._captions[image_id] for image_id in image_ids]

    def describe(self, picture: PILImage.Image) -> str:
        """Captions a picture that is not of the collection; nothing of it is kept."""
        return self._captioner.caption([picture])[0]

    def counts(self) -> str:
        """Says how many images were reused, made and broken, for the log."""
        said = f"{self.made} captions made, {self.reused} reused"
        return f"{said}, {len(self.broken)} pictures broken" if self.broken else said

    def _look_up(self, image_ids: Sequence[str]) -> None:
        hashes = self._cache.hashes_of([self._images[image_id].path for image_id in image_ids])
        same: dict[str, list[str]] = defaultdict(list)  # images by content
        for image_id in image_ids:
            path = self._images[image_id].path
            if path in hashes:
                same[hashes[path]].append(image_id)
            else:
                self._note_broken([image_id], _reason(path))
        self._take(same, self._cache.find(self.captioner_name, list(same)), made=False)
        wanting = list(same)
        starts = range(0, len(wanting), self._batch_size)
        bar = tqdm(total=len(wanting), desc="captioning", unit="image", disable=len(starts) < 2, leave=False)
        with bar, logging_redirect_tqdm():
            for start in starts:
                batch = wanting[start : start + self._batch_size]
                if start:  # another process may have been faster
                    self._take(same, self._cache.find(self.captioner_name, batch), made=False)
                self._take(
                    same, self._make([picture for picture in batch if picture in same], same), made=True
                )
                bar.update(len(batch))

    def _take(self, same: dict[str, list[str]], captions: Mapping[str, str], made: bool) -> None:
        """Gives captions to all images of their content, and strikes those off the list."""
        for picture, caption in captions.items():
            image_ids = same.pop(picture)
            self._captions |= dict.fromkeys(image_ids, caption)
            self.made += made
            self.reused += len(image_ids) - made

    def _make(self, pictures: Sequence[str], same: dict[str, list[str]]) -> dict[str, str]:
        """Captions pictures; those that cannot be opened are noted, and struck off the list."""
        opened: dict[str, PILImage.Image] = {}
        for picture in pictures:
            try:
                opened[picture] = open_image(self._images[same[picture][0]].path)
            except BrokenImage as error:
                self._note_broken(same.pop(picture), error.reason)
        if not opened:
            return {}
        try:
            captions = self._captioner.caption(list(opened.values()))
        except ServersFailed as error:
            made = zip(opened, error.answers, strict=True)
            kept = {picture: caption for picture, caption in made if caption is not None}
            self._cache.keep(self.captioner_name, kept)
            raise
        return self._cache.keep(self.captioner_name, dict(zip(opened, captions, strict=True)))

    def _note_broken(self, image_ids: Sequence[str], reason: str) -> None:
        check_still_there(image.path for image in self._images.values())
        for image_id in image_ids:
            log.warning("%s cannot be captioned: %s", self._images[image_id].path, reason)
            self.broken[image_id] = reason
            self._captions[image_id] = ""


def _reason(path: Path) -> str:
    try:
        open_image(path)
    except BrokenImage as error:
        return error.reason
    return "it came and went while it was read"
