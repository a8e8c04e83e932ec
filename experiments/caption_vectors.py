"""The system's captions as vectors beside an index, and the calibration that goes with them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments.captions import GivenCaptions, open_captions
from experiments.costs import Costs
from experiments.identity import weights_identity
from experiments.open_index import (
    embed_images,
    embedding_command,
    index_folder,
    open_named_dataset,
    open_retriever,
)
from experiments.own_models import OwnModels, name_of
from feedback.calibration import calibrate, calibrate_on_people
from feedback.sentence_encoder import (
    PACKAGED,
    SentenceEncoder,
    encode_captions,
    open_sentence_encoder,
)
from generation.captions import ImageCaptions
from index.caption_vectors import CaptionVectors, open_caption_vectors, write_caption_vectors
from index.encoder import Encoder
from retriever import Retriever
from settings import EmbeddingSettings

log = logging.getLogger(__name__)

BATCH_SIZE = 256  # images captioned between two steps of the bar


def embed_dataset_captions(settings: EmbeddingSettings, own: OwnModels | None = None) -> CaptionVectors:
    """Captions a dataset whose index is there, encodes the captions and calibrates, unless that is done.

    Args:
        settings: Dataset, models, folder.
        own: Models given as objects; with an encoder among them, pictures without a vector are embedded.

    Raises:
        FileNotFoundError: If dataset or index are missing.
        ValueError: If they, the captioner or the sentence encoder cannot be used.
    """
    settings, own = settings.resolved(), own or OwnModels()
    dataset, encoder = open_named_dataset(settings), own.given_encoder()
    if encoder is not None:
        embed_images(dataset, settings, encoder, encoder.embed_parts)
    retriever, costs = open_retriever(settings, encoder), Costs()
    captions = (
        GivenCaptions(own.captioner, dataset.images, costs)
        if own.captioner
        else open_captions(settings, dataset, costs)
    )
    by = own.caption_encoder or settings.caption_encoder
    identity = weights_identity(by, PACKAGED) if isinstance(by, str) else name_of(by)
    people = None
    if settings.calibration_split is not None:
        people = _people(settings, encoder, captions.captioner_name, identity)
    return embed_captions(retriever, index_folder(settings, encoder), captions, by, identity, people)


@dataclass(frozen=True, eq=False)
class People:
    """Development pictures with captions by people, to calibrate on.

    Attributes:
        split: Of the dataset.
        vectors: (n, d) float32 unit rows of the pictures.
        system_captions: (n, e) float32 rows, the vectors of the system's captions.
        captions: People's, for each picture.
    """

    split: str
    vectors: np.ndarray
    system_captions: np.ndarray
    captions: list[tuple[str, ...]]


def _people(
    settings: EmbeddingSettings, encoder: Encoder | None, captioner: str, sentence_encoder: str
) -> People:
    split = settings.calibration_split or ""
    if settings.root is None or split == settings.split:
        raise ValueError(f"calibration_split: got {split!r}, the split itself; expected another one")
    settings = dataclasses.replace(settings, split=split, index=settings.root / f"index-{split}")
    index = open_retriever(settings, encoder).index
    try:
        system = open_caption_vectors(index_folder(settings, encoder), captioner, sentence_encoder)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{error}, with: {embedding_command(settings, captions=True)}") from error
    said = {image.id: image.captions for image in open_named_dataset(settings).images}
    captions = [said[image_id] for image_id in index.ids]
    return People(split, index.vectors_of(index.ids), np.array(system.vectors), captions)


def embed_captions(
    retriever: Retriever,
    folder: Path,
    captions: ImageCaptions | GivenCaptions,
    encoder: str | SentenceEncoder,
    encoder_identity: str,
    people: People | None = None,
) -> CaptionVectors:
    """As `embed_dataset_captions`, with the parts opened.

    Args:
        retriever: Of the index.
        folder: The index's.
        captions: Of its images; what is missing is made.
        encoder: Of the captions: an object, or the name of one.
        encoder_identity: Differs when its weights do.
        people: To calibrate on; without them it is done without labels, unless it is done already.
    """
    calibrated_on = f"people's captions of split {people.split}" if people else "the system's captions"
    try:
        there = open_caption_vectors(folder, captions.captioner_name, encoder_identity)
    except (FileNotFoundError, ValueError) as error:
        log.info("%s", error)
        there = None
    if there is not None and (people is None or there.calibrated_on == calibrated_on):
        log.info("%s: %d captions, calibrated on %s", folder, len(there.vectors), there.calibrated_on)
        return there
    ids = retriever.index.ids
    texts: list[str] = []
    with tqdm(total=len(ids), desc="captioning", unit="image") as bar:
        for start in range(0, len(ids), BATCH_SIZE):
            batch = ids[start : start + BATCH_SIZE]
            texts += captions.captions_of(batch)
            bar.update(len(batch))
    log.info("%s", captions.counts())
    opened = open_sentence_encoder(encoder) if isinstance(encoder, str) else encoder
    vectors = encode_captions(texts, opened) if there is None else np.array(there.vectors)
    if people is None:
        calibration = calibrate(retriever.vectors_of(ids), vectors, texts, retriever.encode_texts)
    else:
        calibration = calibrate_on_people(
            people.vectors,
            people.system_captions,
            people.captions,
            retriever.encode_texts,
            lambda said: encode_captions(said, opened),
        )
    log.info("calibrated on %s: %s", calibrated_on, calibration)
    made = CaptionVectors(
        vectors,
        captioner=captions.captioner_name,
        sentence_encoder=encoder_identity,
        captions_sha256=hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        calibration=dataclasses.asdict(calibration),
        calibrated_on=calibrated_on,
    )
    write_caption_vectors(folder, made)
    return made
