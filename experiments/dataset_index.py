"""A dataset and its index: opened where they are there, embedded where not."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path

from experiments.models import open_encoder
from index.build import EmbedParts, build_index
from index.encoder import Encoder
from index.faiss_index import FaissIndex, ImageIndex
from playground import open_dataset
from records import Dataset
from retriever import Retriever
from settings import DatasetSettings, IndexSettings, SearchSettings

log = logging.getLogger(__name__)


def embed_dataset(settings: IndexSettings) -> ImageIndex:
    """Embeds a dataset's images, or opens the index that is there.

    Args:
        settings: Dataset, model, folder.

    Raises:
        FileNotFoundError: If dataset or checkpoint are missing.
        ValueError: If they cannot be used.
    """
    settings = settings.resolved()
    return open_retriever(settings, open_named_dataset(settings)).index


def search_dataset(settings: SearchSettings) -> list[tuple[Path, float]]:
    """Searches a dataset with words; embeds it first if it has no index.

    Args:
        settings: Dataset, model, index, words.

    Returns:
        Files and cosine similarities of the best images, the best first.

    Raises:
        FileNotFoundError: If dataset or checkpoint are missing.
        ValueError: If they cannot be used, or there are no words.
    """
    settings = settings.resolved()
    dataset = open_named_dataset(settings)
    (ranking,) = open_retriever(settings, dataset).search([settings.text or ""], settings.shown)
    paths = {image.id: image.path for image in dataset.images}
    return [(paths[image_id], score) for image_id, score in zip(ranking.ids, ranking.scores, strict=True)]


def open_retriever(settings: IndexSettings, dataset: Dataset, encoder: Encoder | None = None) -> Retriever:
    """Opens a dataset's index with its encoder; embeds the dataset if it is not there.

    Args:
        settings: Resolved.
        dataset: The collection.
        encoder: BLIP's, from the settings, when not given. Another's index goes beside BLIP's, into a folder
            or a collection that its fingerprint names.
    """
    if encoder is None:
        blip = open_encoder(settings)
        return Retriever(blip, open_index(settings, dataset, blip, settings.blip or ""))
    if settings.index is not None:
        short = hashlib.sha256(encoder.fingerprint.encode()).hexdigest()[:8]
        index = settings.index
        settings = dataclasses.replace(
            settings,
            index=index.with_name(f"{index.name}-{short}") if isinstance(index, Path) else f"{index}_{short}",
        )
    return Retriever(encoder, open_index(settings, dataset, encoder, encoder.fingerprint))


def open_named_dataset(settings: DatasetSettings) -> Dataset:
    """Reads the dataset that resolved settings name."""
    return open_dataset(settings.dataset, settings.root, settings.split or "all")


def open_index(
    settings: IndexSettings,
    dataset: Dataset,
    encoder: Encoder,
    model_name: str,
    embed_parts: EmbedParts | None = None,
) -> ImageIndex:
    """Opens a dataset's index, a folder or a collection; embeds what it lacks.

    Args:
        settings: Resolved.
        dataset: The collection.
        encoder: Made or makes the vectors.
        model_name: For people; the fingerprint is the encoder's.
        embed_parts: As for `index.build.build_index`.
    """
    if settings.index is None:
        raise ValueError("index: the settings are not resolved")
    if isinstance(settings.index, str):
        return _open_collection(settings.index, settings, dataset, encoder, model_name, embed_parts)
    return _open_folder(settings.index, settings, dataset, encoder, model_name, embed_parts)


def _open_folder(
    folder: Path,
    settings: IndexSettings,
    dataset: Dataset,
    encoder: Encoder,
    model_name: str,
    embed_parts: EmbedParts | None,
) -> FaissIndex:
    return build_index(
        dataset.images,
        encoder,
        folder,
        model_name=model_name,
        dataset=dataset.name,
        image_folder=dataset.folder,
        batch_size=settings.image_batch or 32,
        workers=settings.workers,
        kind=settings.index_kind,
        max_failed_share=settings.max_failed_share,
        rebuild=settings.rebuild,
        embed_parts=embed_parts,
    )


def _open_collection(
    address: str,
    settings: IndexSettings,
    dataset: Dataset,
    encoder: Encoder,
    model_name: str,
    embed_parts: EmbedParts | None,
) -> ImageIndex:
    """Opens a Milvus collection of just these images; else embeds into a folder, and fills it from there."""
    from scale.milvus_address import MilvusAddress
    from scale.milvus_index import MilvusIndex

    if not settings.rebuild and MilvusIndex.exists(address):
        index = MilvusIndex.open(address, encoder.fingerprint, encoder.dimension)
        if index.ids == tuple(image.id for image in dataset.images):
            log.info("%s: reusing the collection of %d images", address, len(index))
            return index
        index.close()
    if settings.root is None:
        raise ValueError("root: the settings are not resolved")
    folder = settings.root / f"index-{MilvusAddress.parse(address).collection}"
    source = _open_folder(
        folder, dataclasses.replace(settings, index_kind="flat"), dataset, encoder, model_name, embed_parts
    )
    return MilvusIndex.filled_from(source, address, settings.index_kind, settings.rebuild)
