"""`embed_image_as_faiss.py --engine ray`: the same parts, batches and index as in one process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from cluster.pool import map_parts
from embedding.build import SHARD_SIZE, Done, build_index
from embedding.pipeline import embed
from embedding.shards import Shard
from indexes.faiss_index import FaissIndex
from records import Image, Skip
from refinement.dataset_index import open_named_dataset
from refinement.models import open_encoder
from settings import EmbeddingSettings


def embed_on_ray(settings: EmbeddingSettings, shard_size: int = SHARD_SIZE) -> FaissIndex:
    """Embeds a dataset's images with the workers of a Ray cluster, or opens the index that is there.

    This process lists the images, cuts them into parts, writes what the workers send back, and makes the
    index: as a build without workers does, which may go on where this one was stopped, and the other way
    round.

    Args:
        settings: Dataset, model, folder, cluster.
        shard_size: Images of a part.

    Raises:
        FileNotFoundError: If dataset or checkpoint are missing.
        ModuleNotFoundError: If Ray is not installed.
        ValueError: If they cannot be used, or the workers fail.
    """
    import torch

    settings = settings.resolved()
    folder = settings.index
    if not isinstance(folder, Path):
        raise ValueError(
            f"index: got {folder} with engine ray, expected a folder; embed into ROOT/index-COLLECTION, then"
            " give the collection without --engine ray: it is filled from there"
        )
    dataset = open_named_dataset(settings)
    encoder = open_encoder(settings)
    threads = torch.get_num_threads()

    def embed_parts(parts: Sequence[Sequence[Image]]) -> Done:
        return map_parts(
            [[for_worker(image) for image in part] for part in parts],
            partial(open_embedding, settings, encoder.fingerprint, threads),
            address=settings.ray_address,
            workers=settings.ray_workers,
            threads=threads,
        )

    return build_index(
        dataset.images,
        encoder,
        folder,
        model_name=settings.blip or "",
        dataset=dataset.name,
        image_folder=dataset.folder,
        batch_size=settings.image_batch or 32,
        workers=settings.workers,
        kind=settings.index_kind,
        maximum_failed_share=settings.maximum_failed_share,
        rebuild=settings.rebuild,
        shard_size=shard_size,
        embed_parts=embed_parts,
    )


def open_embedding(
    settings: EmbeddingSettings, fingerprint: str, threads: int
) -> Callable[[Sequence[Image]], tuple[Shard, list[Skip]]]:
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
    return lambda part: embed(part, encoder, settings.image_batch or 32, settings.workers, bar)


def for_worker(image: Image) -> Image:
    """Returns an image with what a worker needs, found from any working directory."""
    return dataclasses.replace(image, path=image.path.absolute(), captions=())
