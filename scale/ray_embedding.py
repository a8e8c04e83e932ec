"""`embed_image_as_faiss.py --engine ray`: the same parts, batches and index as in one process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from experiments.dataset_index import open_index, open_named_dataset
from experiments.models import open_encoder
from index.build import Done
from index.image_index import ImageIndex
from index.pipeline import embed
from index.shards import Shard
from records import Image, Skip
from scale.places import is_remote
from scale.ray_pool import map_parts
from scale.tar_members import learn_places, stored_places
from settings import EmbeddingSettings

# Images, and where in their tars those in an object store are.
Part = tuple[Sequence[Image], Mapping[Path, dict[str, tuple[int, int]]]]


def embed_on_ray(settings: EmbeddingSettings) -> ImageIndex:
    """Embeds a dataset's images with the workers of a Ray cluster, or opens the index that is there.

    This process lists the images, cuts them into parts, writes what the workers send back, and makes the
    index: as a build without workers does, which may go on where this one was stopped, and the other way
    round.

    Args:
        settings: Dataset, model, index, cluster.

    Raises:
        FileNotFoundError: If dataset or checkpoint are missing.
        ModuleNotFoundError: If Ray is not installed.
        ValueError: If they cannot be used, or the workers fail.
    """
    import torch

    settings = settings.resolved()
    dataset = open_named_dataset(settings)
    encoder = open_encoder(settings)
    threads = torch.get_num_threads()

    def embed_parts(parts: Sequence[Sequence[Image]]) -> Done:
        return map_parts(
            map(_for_worker, parts),
            partial(open_embedding, settings, encoder.fingerprint, threads),
            address=settings.ray_address,
            workers=settings.ray_workers,
            threads=threads,
        )

    return open_index(settings, dataset, encoder, settings.blip or "", embed_parts)


def open_embedding(
    settings: EmbeddingSettings, fingerprint: str, threads: int
) -> Callable[[Part], tuple[Shard, list[Skip]]]:
    """Opens the encoder in a worker; returns what embeds a part.

    Args:
        settings: Resolved.
        fingerprint: Of the encoder that is expected.
        threads: Of a model on the CPU: with others, sums are rounded otherwise.

    Raises:
        ValueError: If this machine's checkpoint holds other weights.
    """
    import torch

    torch.set_num_threads(threads)
    encoder = open_encoder(settings)
    if encoder.fingerprint != fingerprint:
        raise ValueError(
            f"{settings.blip}: got other weights or another image size on a worker's machine than here"
            f" ({encoder.fingerprint}, expected {fingerprint}); copy the checkpoint to every machine"
        )
    bar = tqdm(disable=True)

    def embed_part(part: Part) -> tuple[Shard, list[Skip]]:
        images, places = part
        learn_places(places)
        return embed(images, encoder, settings.image_batch or 32, settings.workers, bar)

    return embed_part


def _for_worker(images: Sequence[Image]) -> Part:
    return [for_worker(image) for image in images], stored_places(image.path for image in images)


def for_worker(image: Image) -> Image:
    """Returns an image with what a worker needs, found from any working directory."""
    path = image.path if is_remote(image.path) else image.path.absolute()
    return dataclasses.replace(image, path=path, captions=())
