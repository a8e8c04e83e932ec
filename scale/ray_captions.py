"""`caption_images.py --engine ray`: workers open and describe pictures; this process keeps the captions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from PIL import Image as PILImage
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from experiments.dataset_index import open_named_dataset
from experiments.models import caption_batch, open_captioner, open_residency
from files import file_sha256
from generation.caption_cache import CaptionCache
from generation.image_captions import Captioner, ImageCaptions
from generation.model_identity import model_identity
from index.decode import BrokenImage, open_image
from records import Image
from scale.ray_embedding import for_worker
from scale.ray_pool import map_parts
from settings import CaptioningSettings

log = logging.getLogger(__name__)

BATCHES_AT_ONCE = 8  # of a part: what a kill costs

Part = Sequence[tuple[str, Image]]  # SHA-256 of each picture's file, and where it is


@dataclass(frozen=True)
class Described:
    """What came of a part: captions, and reasons why there are none, by the picture's SHA-256."""

    captions: Mapping[str, str]
    broken: Mapping[str, str]


@dataclass
class CaptionCounts:
    """How many captions were made, how many images had one already, how many cannot be read."""

    made: int = 0
    reused: int = 0
    broken: int = 0

    def __str__(self) -> str:
        said = f"{self.made} captions made, {self.reused} reused"
        return f"{said}, {self.broken} pictures broken" if self.broken else said


def caption_on_ray(settings: CaptioningSettings) -> CaptionCounts:
    """Captions all images of a dataset that have no caption yet, with the workers of a Ray cluster.

    Equal files are described once. The captions of a part are kept as soon as they arrive.

    Args:
        settings: Dataset, captioner, cache, cluster.

    Raises:
        FileNotFoundError: If the dataset is missing.
        ModuleNotFoundError: If Ray is not installed.
        ValueError: If dataset, captioner or cache cannot be used, or the workers fail.
    """
    import torch

    settings = settings.resolved()
    if settings.caption_servers:
        raise ValueError(
            "caption_servers: got servers with engine ray, expected one of the two: servers are asked from"
            " one process, many requests at a time; leave --engine ray out"
        )
    if settings.caption_cache is None:
        raise ValueError("caption_cache: the settings are not resolved")
    images = open_named_dataset(settings).images
    cache = CaptionCache(settings.caption_cache)
    name = ImageCaptions(open_captioner(settings), (), cache, 1).captioner_name
    log.info("captions by %s in %s", name, cache.path)
    threads = torch.get_num_threads()
    with tqdm(total=len(images), desc="captioning", unit="image") as bar, logging_redirect_tqdm():
        context = _Desk(images, cache, name, caption_batch(settings) * BATCHES_AT_ONCE, bar)
        for described in map_parts(
            context.parts(),
            partial(open_captioning, settings, name, threads),
            address=settings.ray_address,
            workers=settings.ray_workers,
            threads=threads,
        ):
            context.keep(described)
    return context.counts


def open_captioning(settings: CaptioningSettings, name: str, threads: int) -> Callable[[Part], Described]:
    """Opens the captioner in a worker; returns what describes a part.

    Args:
        settings: Resolved.
        name: Of the captions that are expected: the model's content, precision and prompt.
        threads: Of a model on the CPU.

    Raises:
        ValueError: If this machine would make other captions.
    """
    import torch

    torch.set_num_threads(threads)
    captioner = open_captioner(settings, open_residency(settings))
    identity = model_identity(captioner.model_id, lambda paths: {path: file_sha256(path) for path in paths})
    ours = identity + captioner.name.removeprefix(captioner.model_id)
    if ours != name:
        raise ValueError(
            f"got the captioner {ours!r} on a worker's machine, expected {name!r} as here; copy the model to"
            " every machine, and name the precision with --quantization where GPUs and CPUs are mixed"
        )
    return lambda part: describe(part, captioner, caption_batch(settings))


def describe(part: Part, captioner: Captioner, batch_size: int) -> Described:
    """Opens and captions pictures, batch by batch."""
    captions: dict[str, str] = {}
    broken: dict[str, str] = {}
    for start in range(0, len(part), batch_size):
        opened: dict[str, PILImage.Image] = {}
        for picture, image in part[start : start + batch_size]:
            try:
                opened[picture] = open_image(image.path)
            except BrokenImage as error:
                broken[picture] = error.reason
        if opened:
            captions |= zip(opened, captioner.caption(list(opened.values())), strict=True)
    return Described(captions, broken)


@dataclass
class _Desk:
    """Hands out what has no caption, and keeps what comes back."""

    images: Sequence[Image]
    cache: CaptionCache
    captioner_name: str
    size: int
    bar: tqdm
    counts: CaptionCounts = field(default_factory=CaptionCounts)
    waiting: dict[str, list[Image]] = field(default_factory=dict)  # handed out, by content

    def parts(self) -> Iterator[Part]:
        """Yields the pictures to describe, each content once."""
        for first in range(0, len(self.images), self.size):
            some = self.images[first : first + self.size]
            hashes = self.cache.hashes_of([image.path for image in some])
            same: dict[str, list[Image]] = {}
            for image in some:
                if image.path in hashes:
                    same.setdefault(hashes[image.path], []).append(image)
                else:
                    self._note_broken([image], "the file cannot be read")
            for picture in self.cache.find(self.captioner_name, list(same)):
                self._count(reused=len(same.pop(picture)))
            part = []
            for picture, alike in same.items():
                if picture in self.waiting:
                    self.waiting[picture] += alike
                else:
                    self.waiting[picture] = alike
                    part.append((picture, for_worker(alike[0])))
            if part:
                yield part

    def keep(self, described: Described) -> None:
        """Writes captions into the cache, and counts."""
        self.cache.keep(self.captioner_name, described.captions)
        for picture in described.captions:
            self._count(made=1, reused=len(self.waiting.pop(picture)) - 1)
        for picture, reason in described.broken.items():
            self._note_broken(self.waiting.pop(picture), reason)

    def _note_broken(self, images: Sequence[Image], reason: str) -> None:
        for image in images:
            log.warning("%s cannot be captioned: %s", image.path, reason)
        self._count(broken=len(images))

    def _count(self, made: int = 0, reused: int = 0, broken: int = 0) -> None:
        self.counts.made += made
        self.counts.reused += reused
        self.counts.broken += broken
        self.bar.update(made + reused + broken)
        self.bar.set_postfix_str(str(self.counts), refresh=False)
