"""Opens what an experiment needs, from its settings: dataset, encoder, index, captions, rewriter, users."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from embedding.build import build_index
from evaluation.runs import append_rounds, read_rounds
from generation.caption_cache import CaptionCache
from generation.image_captions import ImageCaptions
from indexes.faiss_index import FaissIndex
from playground import open_dataset
from records import Dataset, Query, Round
from refinement.history import Strategy
from refinement.protocols import PROTOCOLS
from refinement.rounds import play_rounds
from refinement.strategies import Rewriter, make_strategy
from refinement.strategies.collection import Collection
from refinement.users import FirstUser, NearestUser, RandomUser, User, caption_vectors
from retriever import Retriever
from settings import (
    PROJECT,
    CaptionSettings,
    DatasetSettings,
    ExperimentSettings,
    IndexSettings,
    SessionSettings,
    UserName,
)

log = logging.getLogger(__name__)


def embed_dataset(settings: IndexSettings) -> FaissIndex:
    """Embeds a dataset's images, or opens the index that is there.

    Args:
        settings: Dataset, model, folder.

    Raises:
        FileNotFoundError: If dataset or checkpoint are missing.
        ValueError: If they cannot be used.
    """
    settings = settings.resolved()
    return _open_index(settings, _open_dataset(settings), _open_encoder(settings))


def caption_dataset(settings: CaptionSettings) -> ImageCaptions:
    """Captions all images of a dataset that have no caption yet.

    Each batch is kept as soon as it is made, and the batches come in random order, so that several processes
    share the work.

    Args:
        settings: Dataset, captioner, cache.

    Returns:
        The captions, with the counts of images reused, made and broken.

    Raises:
        FileNotFoundError: If the dataset is missing.
        ValueError: If it, the captioner or the cache cannot be used.
    """
    settings = settings.resolved()
    dataset = _open_dataset(settings)
    captions = _open_captions(settings, dataset)
    image_ids = [image.id for image in dataset.images]
    size = settings.caption_batch or len(image_ids)
    starts = list(range(0, len(image_ids), size))
    random.shuffle(starts)
    log.info("captions by %s in %s", captions.captioner_name, settings.caption_cache)
    with tqdm(total=len(image_ids), desc="captioning", unit="image") as bar, logging_redirect_tqdm():
        for start in starts:
            batch = image_ids[start : start + size]
            captions.captions_of(batch)
            bar.update(len(batch))
            bar.set_postfix_str(captions.counts(), refresh=False)
    return captions


@dataclass(frozen=True)
class Parts:
    """The parts of an experiment; the models among them are loaded when first used, and once.

    Attributes:
        settings: Resolved.
        dataset: The collection.
        retriever: Searches its index.
        queries: Those to play.
    """

    settings: SessionSettings
    dataset: Dataset
    retriever: Retriever
    queries: tuple[Query, ...]

    @classmethod
    def open(cls, settings: SessionSettings, needs_queries: bool = True) -> Parts:
        """Opens the parts; builds the index if it is not there.

        Args:
            settings: Resolved.
            needs_queries: False where a person brings the queries; the parts then have none.

        Raises:
            FileNotFoundError: If dataset or checkpoint are missing.
            ValueError: If they cannot be used, or no query is left.
        """
        dataset = _open_dataset(settings)
        encoder = _open_encoder(settings)
        retriever = Retriever(encoder, _open_index(settings, dataset, encoder))
        queries = choose_queries(dataset, settings, retriever.index.ids) if needs_queries else ()
        return cls(settings, dataset, retriever, queries)

    @property
    def model_names(self) -> dict[str, str]:
        """What names the weights that a run depends on, for its settings.json."""
        without = isinstance(self.settings, ExperimentSettings) and self.settings.strategy == "original"
        return {
            "blip_fingerprint": self.retriever.encoder.fingerprint,
            "captioner": "" if without else self.captions.captioner_name,
        }

    @cached_property
    def captions(self) -> ImageCaptions:
        """Captions of the dataset's images, each made once ever."""
        return _open_captions(self.settings, self.dataset)

    @cached_property
    def rewriter(self) -> Rewriter:
        """The language model that rewrites."""
        from query_editing import QueryEditing

        settings = self.settings
        return QueryEditing(
            settings.rewrite_model or "", _quantization(settings), settings.rewrite_batch or 8
        )

    @cached_property
    def independent_user(self) -> User:
        """Judges by people's captions, with a sentence encoder of its own."""
        from refinement.sentence_encoder import open_sentence_encoder

        indexed = frozenset(self.retriever.index.ids)
        images = [image for image in self.dataset.images if image.id in indexed]
        return NearestUser(
            caption_vectors(images, open_sentence_encoder(self.settings.user_model).encode_texts)
        )

    def user(self, name: str) -> User:
        """Returns a simulated user by name.

        Raises:
            ValueError: If the name is not known, or the user cannot judge this dataset.
        """
        if name == "independent":
            return self.independent_user
        if name == "reference":
            return NearestUser(self.retriever.vectors_of)
        if name == "random":
            return RandomUser(self.settings.seed)
        if name == "first":
            return FirstUser()
        raise ValueError(f"user: got {name!r}, expected one of {', '.join(get_args(UserName))}")

    @cached_property
    def collection(self) -> Collection:
        """What strategies may use of the images."""
        from BLIP.model import BlipEncoder
        from refinement.matching import Matcher

        encoder = self.retriever.encoder
        paths = {image.id: image.path for image in self.dataset.images}
        return Collection(
            self.retriever,
            lambda image_ids: self.captions.captions_of(image_ids),  # the captioner opens when first asked
            Matcher(encoder, paths) if isinstance(encoder, BlipEncoder) else None,
        )

    def strategy(self, name: str) -> Strategy:
        """Returns a strategy by name, with the models that it needs.

        Raises:
            ValueError: If the name is not known.
        """
        rewriter = self.rewriter if name.startswith("rewrite") else None
        return make_strategy(name, rewriter, self.collection)

    def play(self, strategy: str, user: str, path: Path) -> list[Round]:
        """Plays the rounds of all queries, or what the file does not hold yet.

        Args:
            strategy: Name of a strategy.
            user: Name of a user; without meaning for "original", which takes no feedback.
            path: A ``rounds.jsonl``; grows batch by batch.

        Returns:
            All records.
        """
        played = read_rounds(path) if path.is_file() else []
        if played:
            log.info("%s: going on after %d records", path, len(played))
        return play_rounds(
            self.queries,
            retriever=self.retriever,
            user=self.user("first" if strategy == "original" else user),
            strategy=self.strategy(strategy),
            protocol=PROTOCOLS[self.settings.protocol],
            captions=self.captions,
            round_count=self.settings.rounds,
            played=played,
            batch_size=self.settings.query_batch,
            keep=lambda rounds: append_rounds(path, rounds),
        )


def choose_queries(dataset: Dataset, settings: SessionSettings, indexed: Sequence[str]) -> tuple[Query, ...]:
    """Takes the queries that the settings ask for.

    Queries whose target picture could not be embedded cannot be answered by anyone: they are left out, and
    counted in the log.

    Raises:
        ValueError: If none is left.
    """
    wanted = settings.caption_numbers
    queries = [q for q in dataset.queries if wanted is None or q.id.rsplit("#", 1)[-1] in wanted]
    there = frozenset(indexed)
    usable = [
        dataclasses.replace(query, relevant=query.relevant & there)
        for query in queries
        if (query.target is None or query.target in there) and query.relevant & there
    ]
    if len(usable) < len(queries):
        log.warning(
            "left out %d queries: their target pictures are not in the index", len(queries) - len(usable)
        )
    if not usable:
        raise ValueError(f"dataset {dataset.name} has no queries for caption numbers {wanted or 'all'}")
    count = min(settings.queries or len(usable), len(usable))
    return tuple(usable[number * len(usable) // count] for number in range(count))


def _open_dataset(settings: DatasetSettings) -> Dataset:
    return open_dataset(settings.dataset, settings.root, settings.split or "all")


def _open_encoder(settings: IndexSettings) -> Any:
    import torch

    from BLIP.model import BlipEncoder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = PROJECT / (settings.blip or "")
    return BlipEncoder.open(path, settings.image_size, device, batch_size=settings.image_batch or 32)


def _open_index(settings: IndexSettings, dataset: Dataset, encoder: Any) -> FaissIndex:
    if settings.index is None:
        raise ValueError("index: the settings are not resolved")
    return build_index(
        dataset.images,
        encoder,
        settings.index,
        model_name=settings.blip or "",
        dataset=dataset.name,
        image_folder=dataset.folder,
        batch_size=settings.image_batch or 32,
        workers=settings.workers,
        rebuild=settings.rebuild,
    )


def _open_captions(settings: CaptionSettings, dataset: Dataset) -> ImageCaptions:
    from captioning import Captioning

    if settings.caption_cache is None:
        raise ValueError("caption_cache: the settings are not resolved")
    model_id = settings.caption_model or ""
    local = PROJECT / model_id
    size = settings.caption_batch or 8
    captioner = Captioning(str(local) if local.exists() else model_id, _quantization(settings), size)
    return ImageCaptions(captioner, dataset.images, CaptionCache(settings.caption_cache), size)


def _quantization(settings: CaptionSettings) -> str | bool:
    from generation.precision import fastest_precision

    return fastest_precision() if settings.quantization in ("auto", None) else settings.quantization
