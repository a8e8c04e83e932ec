"""Captions of a dataset's images: made ahead, opened for a run, or by a captioner given as an object."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

from PIL import Image as PILImage
from tqdm import tqdm

from experiments.costs import Costs, CountedCaptioner
from experiments.models import caption_batch, open_captioner
from experiments.open_index import open_named_dataset
from experiments.own_models import PictureCaptioner, name_of
from generation.captions import CaptionCache, ImageCaptions
from generation.gpu_memory import GpuMemory
from index.decode import open_image
from records import Dataset, Image
from settings import CaptionSettings

log = logging.getLogger(__name__)

BATCH_SIZE = 32  # pictures opened at a time for a captioner given as an object


def caption_dataset(settings: CaptionSettings) -> ImageCaptions:
    """Captions all images of a dataset that have no caption yet.

    Each batch is kept as soon as it is made, and the batches come in random order, so that several processes
    share the work.

    Raises:
        FileNotFoundError: If the dataset is missing.
        ValueError: If it, the captioner or the cache cannot be used.
    """
    settings = settings.resolved()
    dataset = open_named_dataset(settings)
    costs = Costs()
    captions = open_captions(settings, dataset, costs)
    image_ids = [image.id for image in dataset.images]
    size = caption_batch(settings)
    starts = list(range(0, len(image_ids), size))
    random.shuffle(starts)
    log.info("captions by %s in %s", captions.captioner_name, settings.caption_cache)
    with tqdm(total=len(image_ids), desc="captioning", unit="image") as bar:
        for start in starts:
            batch = image_ids[start : start + size]
            captions.captions_of(batch)
            bar.update(len(batch))
            bar.set_postfix_str(captions.counts(), refresh=False)
    spent = costs.spent.get("", {}).get("caption")
    if spent and settings.caption_servers:
        log.info("the servers wrote %d tokens; at the prices given: %.4f", spent.tokens, spent.money)
    return captions


def open_captions(
    settings: CaptionSettings, dataset: Dataset, costs: Costs, memory: GpuMemory | None = None
) -> ImageCaptions:
    """Opens the captions that resolved settings name; the captioner is loaded when one is missing."""
    assert settings.caption_cache is not None  # resolved
    captioner = CountedCaptioner(open_captioner(settings, memory), costs)
    cache = CaptionCache(settings.caption_cache)
    return ImageCaptions(captioner, dataset.images, cache, caption_batch(settings))


class GivenCaptions:
    """Captions by a captioner from outside, each made once in this process; no file keeps them."""

    def __init__(self, captioner: PictureCaptioner, images: Sequence[Image], costs: Costs) -> None:
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
