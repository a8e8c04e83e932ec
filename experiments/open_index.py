"""A dataset's index: `embed_dataset` makes it or brings it up to date, all others open it as it stands."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path

from experiments.models import open_encoder
from index.build import EmbedParts, build_index, read_failed
from index.encoder import Encoder
from index.faiss_index import FaissIndex, ImageIndex
from playground import open_dataset
from records import Dataset, Image
from retriever import Retriever
from settings import DatasetSettings, EmbeddingSettings, IndexSettings, SessionSettings

log = logging.getLogger(__name__)


def embed_dataset(
    settings: EmbeddingSettings, encoder: Encoder | None = None, embed_parts: EmbedParts | None = None
) -> FaissIndex:
    """Embeds a dataset's images that have no vector yet, and writes the index.

    Args:
        settings: Dataset, model, folder.
        encoder: The settings' one when not given.
        embed_parts: As for `index.build.build_index`.

    Raises:
        FileNotFoundError: If dataset or checkpoint are missing.
        ValueError: If they cannot be used.
    """
    settings = settings.resolved()
    return embed_images(open_named_dataset(settings), settings, encoder, embed_parts)


def embed_images(
    dataset: Dataset,
    settings: IndexSettings,
    encoder: Encoder | None = None,
    embed_parts: EmbedParts | None = None,
) -> FaissIndex:
    """As `embed_dataset`, of a dataset that is there already; settings are resolved."""
    folder = index_folder(settings, encoder)
    model = encoder or open_encoder(settings)
    embedding = settings if isinstance(settings, EmbeddingSettings) else EmbeddingSettings()
    return build_index(
        dataset.images,
        model,
        folder,
        model_name=encoder.fingerprint if encoder else settings.encoder or "",
        dataset=dataset.name,
        image_folder=dataset.folder,
        batch_size=settings.image_batch or 32,
        workers=embedding.workers,
        kind=embedding.index_kind,
        max_failed_share=embedding.max_failed_share,
        rebuild=embedding.rebuild,
        embed_parts=embed_parts,
    )


def open_retriever(
    settings: IndexSettings, encoder: Encoder | None = None, index: ImageIndex | None = None
) -> Retriever:
    """Opens an index as it stands, with its encoder.

    Args:
        settings: Resolved.
        encoder: The settings' one when not given.
        index: Opened, where it is no folder that the settings name.

    Raises:
        FileNotFoundError: If index or checkpoint are missing; names the command that makes the index.
        ValueError: If one is damaged, or they do not belong together.
    """
    if index is None and isinstance(settings.index, str):
        raise ValueError(
            f"index: got {settings.index}, expected a folder: experiments rank all images in every round,"
            " which a Milvus collection does not; interactive_search.py takes one"
        )
    model = encoder or open_encoder(settings)
    if index is not None:
        return Retriever(model, index)
    try:
        return Retriever.open(model, index_folder(settings, encoder))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}, that is {embedding_command(settings)}") from error


def check_same_images(
    dataset: Dataset, index: ImageIndex, settings: IndexSettings, encoder: Encoder | None = None
) -> None:
    """Refuses an index, opened with these settings, that is not of a dataset's images, broken ones aside.

    Raises:
        ValueError: If it lacks some of them, or holds others.
    """
    images, indexed = {image.id for image in dataset.images}, frozenset(index.ids)
    folder = settings.index if isinstance(settings.index, str) else index_folder(settings, encoder)
    failed = read_failed(folder) if isinstance(folder, Path) else frozenset()
    missing, others = images - indexed - failed, indexed - images
    if missing or others:
        raise ValueError(
            f"{folder}: {len(missing)} of the dataset's {len(images)} images are not in the index, and "
            f"it holds {len(others)} others (first {min(missing or others)!r}); bring it up to date with: "
            f"{embedding_command(settings)}"
        )


def dataset_of_index(index: ImageIndex, name: str) -> Dataset:
    """Returns an index's images as a dataset without captions and queries: nothing is read for it."""
    folder = image_folder(index)
    return Dataset(name, folder, tuple(Image(image_id, folder / image_id) for image_id in index.ids), ())


def image_folder(index: ImageIndex) -> Path:
    """Returns the folder that an index's ids are relative to."""
    return Path(index.manifest.image_folder) if index.manifest else Path()


def open_named_dataset(settings: DatasetSettings) -> Dataset:
    """Reads the dataset that resolved settings name."""
    return open_dataset(settings.dataset, settings.root, settings.split or "all")


def index_folder(settings: IndexSettings, encoder: Encoder | None) -> Path:
    """Returns the index's folder; one that was given lies beside it, its fingerprint in the name."""
    if not isinstance(settings.index, Path):
        raise ValueError(
            f"index: got {settings.index!r}, expected a folder: vectors are embedded into a folder"
        )
    if encoder is None:
        return settings.index
    short = hashlib.sha256(encoder.fingerprint.encode()).hexdigest()[:8]
    return settings.index.with_name(f"{settings.index.name}-{short}")


def embedding_command(settings: IndexSettings, captions: bool = False) -> str:
    """Returns the command that makes the index these settings name."""
    given = {field.name: getattr(settings, field.name) for field in dataclasses.fields(IndexSettings)}
    standard = IndexSettings(settings.dataset, preset=settings.preset).resolved()
    words = [f"--dataset {settings.dataset}"]
    for name in ("root", "split", "encoder", "image_size", "index"):
        if given[name] != getattr(standard, name) and not (name == "index" and settings.root):
            words.append(f"--{name.replace('_', '-')} {given[name]}")
    if settings.preset != IndexSettings(settings.dataset).resolved().preset:
        words.append(f"--preset {settings.preset}")
    if captions:
        words.append("--captions")
        standard = SessionSettings(settings.dataset, preset=settings.preset).resolved()
        for name in ("caption_model", "quantization", "int8_threshold", "caption_pixels", "caption_encoder"):
            if getattr(settings, name) != getattr(standard, name):
                words.append(f"--{name.replace('_', '-')} {getattr(settings, name)}")
    return " ".join(["python embed_image_as_faiss.py", *words])
