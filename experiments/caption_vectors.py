"""The system's captions as vectors beside an index, and the calibration that goes with them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from pathlib import Path

from tqdm import tqdm

from experiments.captions import GivenCaptions, open_captions
from experiments.costs import Costs
from experiments.identity import weights_identity
from experiments.open_index import embed_images, index_folder, open_named_dataset, open_retriever
from experiments.own_models import OwnModels, name_of
from feedback.calibration import calibrate
from feedback.sentence_encoder import (
    PACKAGED,
    SentenceEncoder,
    encode_captions,
    open_sentence_encoder,
)
from generation.captions import ImageCaptions
from index.caption_vectors import CaptionVectors, open_caption_vectors, write_caption_vectors
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
    return embed_captions(retriever, index_folder(settings, encoder), captions, by, identity)


def embed_captions(
    retriever: Retriever,
    folder: Path,
    captions: ImageCaptions | GivenCaptions,
    encoder: str | SentenceEncoder,
    encoder_identity: str,
) -> CaptionVectors:
    """As `embed_dataset_captions`, with the parts opened.

    Args:
        retriever: Of the index.
        folder: The index's.
        captions: Of its images; what is missing is made.
        encoder: Of the captions: an object, or the name of one.
        encoder_identity: Differs when its weights do.
    """
    try:
        there = open_caption_vectors(folder, captions.captioner_name, encoder_identity)
    except (FileNotFoundError, ValueError) as error:
        log.info("%s", error)
    else:
        log.info("%s: reusing the vectors of %d captions", folder, len(there.vectors))
        return there
    ids = retriever.index.ids
    texts: list[str] = []
    with tqdm(total=len(ids), desc="captioning", unit="image") as bar:
        for start in range(0, len(ids), BATCH_SIZE):
            batch = ids[start : start + BATCH_SIZE]
            texts += captions.captions_of(batch)
            bar.update(len(batch))
    log.info("%s", captions.counts())
    if isinstance(encoder, str):
        encoder = open_sentence_encoder(encoder)
    vectors = encode_captions(texts, encoder)
    calibration = calibrate(retriever.vectors_of(ids), vectors, texts, retriever.encode_texts)
    log.info("calibrated: %s", calibration)
    made = CaptionVectors(
        vectors,
        captioner=captions.captioner_name,
        sentence_encoder=encoder_identity,
        captions_sha256=hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        calibration=dataclasses.asdict(calibration),
    )
    write_caption_vectors(folder, made)
    return made
