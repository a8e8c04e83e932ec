"""Opens what an experiment needs, from its settings: dataset, encoder, index, captions, rewriter, users."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from evaluation.runs import append_rounds, stream_rounds
from experiments.caption_vectors import embed_captions
from experiments.captions import GivenCaptions, open_captions
from experiments.costs import Costs, CountedRewriter
from experiments.identity import image_set_identity, query_set_identity, weights_identity
from experiments.models import (
    check_language_model,
    is_published,
    open_captioner,
    open_rewriter,
    quantization_of,
    rewrite_servers,
)
from experiments.open_index import (
    check_same_images,
    dataset_of_index,
    embed_images,
    embedding_command,
    index_folder,
    open_named_dataset,
    open_retriever,
)
from experiments.own_models import GivenEncoder, OwnModels, name_of
from feedback.calibration import Calibration
from feedback.history import Strategy
from feedback.protocols import PROTOCOLS
from feedback.rounds import run_rounds
from feedback.sentence_encoder import PACKAGED as SENTENCE_ENCODERS
from feedback.sentence_encoder import open_sentence_encoder
from feedback.simulated_users import CAPTION_READERS, SimulatedUsers
from feedback.strategies import STRATEGIES, make_strategy
from feedback.strategies.collection import Collection
from feedback.strategies.rewrite import Rewriter
from feedback.users import User, check_captioned
from generation.captions import ImageCaptions
from generation.gpu_memory import GpuMemory
from generation.openvino_engine import NAME as OPENVINO
from generation.servers import SERVED
from generation.text_model import PACKAGED as LANGUAGE_MODELS
from generation.text_model import engine_of
from index.caption_vectors import CaptionVectors, open_caption_vectors
from index.encoder import Encoder
from index.faiss_index import FaissIndex, ImageIndex
from index.fingerprint import fingerprint
from index.fused import FusedEncoder, fused_rows
from query_editing import PROMPTS
from records import Dataset, Query, Skip
from retriever import Retriever
from settings import ComparisonSettings, ExperimentSettings, InteractiveSettings, LoopSettings

log = logging.getLogger(__name__)

AnySettings = ExperimentSettings | ComparisonSettings | InteractiveSettings


@dataclass(frozen=True)
class Setup:
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

    settings: AnySettings
    dataset: Dataset
    retriever: Retriever
    queries: tuple[Query, ...]
    left_out: tuple[Skip, ...] = ()
    own: OwnModels = field(default_factory=OwnModels)
    costs: Costs = field(default_factory=Costs)

    @classmethod
    def open(
        cls, settings: AnySettings, own: OwnModels | None = None, index: ImageIndex | None = None
    ) -> Setup:
        """Opens the parts; the index as it stands, unless the encoder is given as an object.

        Args:
            settings: Resolved; a person brings the queries where they are not `LoopSettings`.
            own: Models given as objects.
            index: Opened, where it is no folder that the settings name; without queries only.

        Raises:
            FileNotFoundError: If dataset or checkpoint are missing.
            ValueError: If they cannot be used, or no query is left.
        """
        own = own or OwnModels()
        encoder = own.given_encoder()
        is_for_people = isinstance(settings, InteractiveSettings)
        needs = is_for_people or any(STRATEGIES[name].needs_captioner for name in _strategies_of(settings))
        if needs and own.captioner is None:
            open_captioner(settings)  # loads nothing, and refuses a precision that it cannot have
        if not isinstance(settings, LoopSettings):
            retriever = open_retriever(settings, encoder, index)
            images = dataset_of_index(retriever.index, settings.dataset)
            setup = cls(settings, images, retriever, (), (), own)
            setup.check_matching()
            return setup._searching_captions() if settings.search_captions else setup
        dataset = open_named_dataset(settings)
        if encoder is not None:  # no command can embed with an object
            if CAPTION_READERS.intersection(_users_of(settings)):  # else hours later
                check_captioned(dataset.images)
            embed_images(dataset, settings, encoder, encoder.embed_parts)
        retriever = open_retriever(settings, encoder)
        check_same_images(dataset, retriever.index, settings, encoder)
        queries, left_out = choose_queries(dataset, settings, retriever.index.ids)
        setup = cls(settings, dataset, retriever, queries, left_out, own)
        setup.check_matching()
        setup.check_judges()
        if setup.compares_captions and any((own.encoder, own.captioner, own.caption_encoder)):
            embed_captions(
                retriever,
                setup._index_folder,
                setup.captions,
                own.caption_encoder or settings.caption_encoder,
                setup._caption_encoder_identity(),
            )
        return setup._searching_captions() if settings.search_captions else setup

    def _searching_captions(self) -> Setup:
        """Returns the same with a retriever that searches pictures and captions together."""
        captions = self.caption_vectors
        sentences = self.own.caption_encoder or open_sentence_encoder(self.settings.caption_encoder)
        share = Calibration(**captions.calibration).share
        encoder = FusedEncoder(
            self.retriever.encoder, sentences, captions.vectors.shape[1], share, captions.captions_sha256
        )
        ids = self.retriever.index.ids
        rows = fused_rows(self.retriever.vectors_of(ids), captions.vectors, share)
        return dataclasses.replace(self, retriever=Retriever(encoder, FaissIndex.build(ids, rows)))

    @property
    def strategies(self) -> tuple[str, ...]:
        """The strategies that the settings name."""
        return _strategies_of(self.settings)

    @property
    def needs_rewriter(self) -> bool:
        """Whether one of the strategies has a language model rewrite queries."""
        return any(STRATEGIES[name].needs_rewriter for name in self.strategies)

    def identity(self) -> dict[str, str | int | None]:
        """Returns what the results depend on besides the settings, for the run's settings.json.

        Reads a part of every picture file. None stands for a model that the run does not use.
        """
        needs_captioner = any(STRATEGIES[name].needs_captioner for name in self.strategies)
        needs_captioner = needs_captioner or self.compares_captions
        models = {
            "encoder_fingerprint": self._picture_encoder.fingerprint,
            "captioner": self.captions.captioner_name if needs_captioner else None,
            "rewriter": self._rewriter_identity() if self.needs_rewriter else None,
            "sentence_encoder": self._sentence_encoder_identity(),
            "calibration": None,
            "captions_sha256": None,
        }
        if any(STRATEGIES[name].calibrated for name in self.strategies):
            models["calibration"] = json.dumps(dataclasses.asdict(self.calibration))
        if self.compares_captions:
            models["captions_sha256"] = self.caption_vectors.captions_sha256
        return image_set_identity(self.dataset.images) | query_set_identity(self.queries) | models

    @property
    def compares_captions(self) -> bool:
        """Whether the search, or one of the strategies, compares the captions of all images."""
        return self.settings.search_captions or any(
            STRATEGIES[name].captions_collection for name in self.strategies
        )

    @cached_property
    def caption_vectors(self) -> CaptionVectors:
        """The vectors of the system's captions, as embedding left them.

        Raises:
            ValueError: If there are none, or of other pictures or models; names the command that makes them.
        """
        try:
            return open_caption_vectors(
                self._index_folder, self.captions.captioner_name, self._caption_encoder_identity()
            )
        except (FileNotFoundError, ValueError) as error:
            command = embedding_command(self.settings, captions=True)
            without = "without --search-captions, " if self.settings.search_captions else ""
            raise ValueError(f"{error}, with: {command}; or {without}choose --strategy bayes") from error

    @cached_property
    def calibration(self) -> Calibration:
        """How much queries and picks tell: as embedding found with captions, or the demo's defaults.

        Raises:
            ValueError: If it is of other pictures.
        """
        if self.compares_captions:
            calibration = Calibration(**self.caption_vectors.calibration)
            return calibration.fused() if self.settings.search_captions else calibration
        if isinstance(self.settings.index, str):
            return Calibration()
        try:
            return Calibration(**open_caption_vectors(self._index_folder).calibration)
        except FileNotFoundError:
            log.info("the index is not calibrated: picks are read as on the demo's drawings")
            return Calibration()
        except ValueError as error:
            command = embedding_command(self.settings, captions=True)
            raise ValueError(f"{error}, with: {command}") from error

    @property
    def _picture_encoder(self) -> Encoder:
        encoder = self.retriever.encoder
        return encoder.pictures if isinstance(encoder, FusedEncoder) else encoder

    @property
    def _index_folder(self) -> Path:
        encoder = self._picture_encoder
        return index_folder(self.settings, encoder if isinstance(encoder, GivenEncoder) else None)

    def _caption_encoder_identity(self) -> str:
        own = self.own.caption_encoder
        return name_of(own) if own else weights_identity(self.settings.caption_encoder, SENTENCE_ENCODERS)

    def check_matching(self) -> None:
        """Refuses strategies that need BLIP's matching head where another model embeds.

        Raises:
            ValueError: If one of the strategies does.
        """
        matching = [name for name in self.strategies if STRATEGIES[name].needs_matching]
        if matching and self.collection.match is None:
            raise ValueError(
                f"strategy: got {matching[0]}, which re-ranks with BLIP's matching head (ITM), but the "
                "encoder is no BLIP; choose another strategy, or name a BLIP with --encoder"
            )

    def check_judges(self) -> None:
        """Refuses a simulated user who judges with the very encoder by which the system compares captions.

        Raises:
            ValueError: If it does: the system would know its judge.
        """
        if not self.compares_captions or self._sentence_encoder_identity() is None:
            return
        own = self.own
        if own.sentence_encoder is None and own.caption_encoder is None:
            same = self._sentence_encoder_identity() == self._caption_encoder_identity()
        else:
            same = own.sentence_encoder is own.caption_encoder
        if same:
            raise ValueError(
                f"user_model: got {self.loop.user_model}, by which the system compares captions too: it "
                "would know its judge; choose another --user-model, or another --caption-encoder and embed "
                "with --captions again"
            )

    def _rewriter_identity(self) -> str:
        settings, model = self.settings, self.settings.rewrite_model or ""
        if self.own.rewriter is not None:
            return name_of(self.own.rewriter)
        if settings.rewrite_servers is not None:
            return f"{SERVED}{model}, prompts {PROMPTS}"
        engine = engine_of(model, quantization_of(settings))
        library = "openvino-genai" if engine == OPENVINO else "transformers"
        made_with = f"{weights_identity(model, LANGUAGE_MODELS)} {engine}", f"prompts {PROMPTS}"
        return fingerprint(*made_with, library=library, sees_pictures=False)

    def _sentence_encoder_identity(self) -> str | None:
        settings, own = self.settings, self.own.sentence_encoder
        if isinstance(settings, InteractiveSettings):
            return None
        if not CAPTION_READERS.intersection(_users_of(settings)):
            return None
        return name_of(own) if own else weights_identity(settings.user_model, SENTENCE_ENCODERS)

    def check_rewriter(self) -> None:
        """Looks whether there is a language model, if a strategy needs one, before anything is played.

        Errors as `experiments.models.check_language_model`.
        """
        if not self.needs_rewriter or self.own.rewriter is not None:
            return
        if servers := rewrite_servers(self.settings):
            servers.check()
        else:
            check_language_model(self.settings.rewrite_model or "")

    @cached_property
    def captions(self) -> ImageCaptions | GivenCaptions:
        """Captions of the dataset's images, each made once."""
        if self.own.captioner is not None:
            return GivenCaptions(self.own.captioner, self.dataset.images, self.costs)
        return open_captions(self.settings, self.dataset, self.costs, self.memory)

    @property
    def loop(self) -> LoopSettings:
        """The settings of simulated sessions."""
        if not isinstance(self.settings, LoopSettings):
            raise TypeError(f"got {type(self.settings).__name__}, expected settings of simulated sessions")
        return self.settings

    @cached_property
    def memory(self) -> GpuMemory:
        """Shared by captioner and rewriter, which take turns where a GPU cannot hold both."""
        return GpuMemory(self.settings.take_turns)

    @cached_property
    def rewriter(self) -> Rewriter:
        """The language model that rewrites."""
        rewriter = self.own.rewriter or open_rewriter(self.settings, self.memory)
        return CountedRewriter(rewriter, self.costs, guarded=not is_published(self.settings))

    @cached_property
    def users(self) -> SimulatedUsers:
        """Those who can give feedback."""
        encoder = self.own.sentence_encoder or self.loop.user_model
        protocol = PROTOCOLS[self.loop.protocol]
        return SimulatedUsers(self.retriever, self.dataset.images, self.queries, protocol, encoder)

    def user(self, name: str, noise: float = 0.0, seed: int | None = None) -> User:
        """Returns a simulated user, with the settings' habits.

        Args:
            name: One of `settings.UserName`.
            noise: Share of wrong picks.
            seed: Of what is random; the settings' when None.

        Raises:
            ValueError: If the user cannot judge this dataset.
        """
        settings = self.loop
        return self.users.named(
            name, noise=noise, likes=settings.user_likes, dislikes=settings.user_dislikes,
            patience=settings.user_patience,
            seed=settings.seed if seed is None else seed,
        )  # fmt: skip

    @cached_property
    def collection(self) -> Collection:
        """What strategies may use of the images."""
        from BLIP.model import BlipEncoder
        from feedback.itm_scorer import ItmScorer

        encoder = self._picture_encoder
        paths = {image.id: image.path for image in self.dataset.images}
        return Collection(
            self.retriever,
            ItmScorer(encoder, paths) if isinstance(encoder, BlipEncoder) else None,
            lambda: self.caption_vectors.vectors,
            lambda: self.calibration,
        )

    def strategy(self, name: str) -> Strategy:
        """Returns a strategy by name, with the models that it needs."""
        rewriter = self.rewriter if STRATEGIES[name].needs_rewriter else None
        return make_strategy(name, rewriter, self.collection)

    def play(self, strategy: str, user: User, path: Path) -> None:
        """Runs the feedback loop over all queries, or over what the file does not hold yet.

        Args:
            strategy: Its name.
            user: Gives the feedback.
            path: A ``rounds.jsonl``; grows batch by batch.
        """
        if path.is_file():
            log.info("%s: going on after the records that it holds", path)
        try:
            run_rounds(
                self.queries,
                retriever=self.retriever,
                user=user,
                strategy=self.strategy(strategy),
                protocol=PROTOCOLS[self.loop.protocol],
                captions=self.captions if STRATEGIES[strategy].needs_captions else None,
                round_count=self.loop.rounds,
                played=stream_rounds(path) if path.is_file() else (),
                batch_size=self.loop.query_batch,
                keep=lambda rounds: append_rounds(path, rounds),
                costs=self.costs,
            )
        finally:  # what a run that stops has spent is spent
            self.costs.save()


def _users_of(settings: ExperimentSettings | ComparisonSettings) -> tuple[str, ...]:
    return settings.users if isinstance(settings, ComparisonSettings) else (settings.user,)


def _strategies_of(settings: AnySettings) -> tuple[str, ...]:
    if isinstance(settings, ComparisonSettings):
        return settings.strategies
    return (settings.strategy, *getattr(settings, "conditions", ()))


def choose_queries(
    dataset: Dataset, settings: LoopSettings, indexed: Sequence[str]
) -> tuple[tuple[Query, ...], tuple[Skip, ...]]:
    """Takes the queries that the settings ask for, as the protocol asks them.

    Returns:
        The queries; and those left out, with the reason: whose target picture could not be embedded.

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
