"""The strategies by name: what each one needs, and how it is made. One idea a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from feedback.history import Strategy
from feedback.strategies.anchored import Anchored, Chosen
from feedback.strategies.bayes import Bayes
from feedback.strategies.collection import Collection
from feedback.strategies.fusion import Fusion, ListFusion, Slerp, rank_credit, score_credit
from feedback.strategies.rerank import COSINE_ODDS, POSTERIOR_ODDS, Rerank
from feedback.strategies.rewrite import Rewrite, Rewriter
from feedback.strategies.rocchio import Rocchio
from feedback.strategies.words import Append, Original


@dataclass(frozen=True)
class StrategyEntry:
    """What a strategy needs, known before anything is opened.

    Attributes:
        make: Makes it of a rewriter and the collection, in this order; gets None for what it does not need.
        needs_captions: Whether picked images are captioned for it.
        captions_collection: Whether it compares the captions of all images.
        needs_rewriter: Whether a language model rewrites queries for it.
        needs_collection: Whether it reads more than words: vectors, captions, the encoder.
        needs_matching: Whether it judges words and picture together with BLIP's matching head.
        calibrated: Whether it reads picks by the index's calibration.
        moves_query: Whether the next query is words or a vector, which a person can see and edit; otherwise
            it is scores of all images.
    """

    make: Callable[[Any, Any], Strategy]
    needs_captions: bool = False
    captions_collection: bool = False
    needs_rewriter: bool = False
    needs_collection: bool = True
    needs_matching: bool = False
    calibrated: bool = False
    moves_query: bool = True

    @property
    def needs_captioner(self) -> bool:
        """Whether it needs captions of any image."""
        return self.needs_captions or self.captions_collection


def _anchored(words: Strategy, collection: Collection) -> Anchored:
    return Anchored(words, collection.encode)


def _chosen(rewriter: Rewriter, collection: Collection) -> Strategy:
    candidates = (Rewrite(rewriter, from_original=True), Append(), Original())
    return _anchored(Chosen(candidates, collection), collection)


def _rewrite_bayes(rewriter: Rewriter, collection: Collection) -> Strategy:
    prior = _anchored(Rewrite(rewriter, from_original=True), collection)
    return Bayes(prior, collection, reads_captions=True)  # minus bayes-captions: what rewriting is worth


def _bayes(collection: Collection, reads_captions: bool = False) -> Bayes:
    return Bayes(Original(), collection, reads_captions)


# The names are those of `settings.StrategyName` (and of `MovingStrategyName`, where `moves_query`).
STRATEGIES: dict[str, StrategyEntry] = {
    "original": StrategyEntry(lambda _, __: Original(), needs_collection=False),
    "append": StrategyEntry(lambda _, __: Append(), needs_captions=True, needs_collection=False),
    "append-anchored": StrategyEntry(lambda _, images: _anchored(Append(), images), needs_captions=True),
    "rewrite": StrategyEntry(
        lambda rewriter, _: Rewrite(rewriter, from_original=False),
        needs_captions=True, needs_rewriter=True, needs_collection=False,
    ),
    "rewrite-original": StrategyEntry(
        lambda rewriter, _: Rewrite(rewriter, from_original=True),
        needs_captions=True, needs_rewriter=True, needs_collection=False,
    ),
    "rewrite-anchored": StrategyEntry(
        lambda rewriter, images: _anchored(Rewrite(rewriter, from_original=True), images),
        needs_captions=True, needs_rewriter=True,
    ),
    "rewrite-chosen": StrategyEntry(_chosen, needs_captions=True, needs_rewriter=True),
    "rocchio": StrategyEntry(lambda _, images: Rocchio(images)),
    "fusion": StrategyEntry(lambda _, images: Fusion(images), needs_captions=True),
    "slerp": StrategyEntry(lambda _, images: Slerp(images), needs_captions=True),
    "score-fusion": StrategyEntry(
        lambda _, images: ListFusion(images, score_credit), needs_captions=True, moves_query=False
    ),
    "rrf": StrategyEntry(
        lambda _, images: ListFusion(images, rank_credit), needs_captions=True, moves_query=False
    ),
    "bayes": StrategyEntry(lambda _, images: _bayes(images), calibrated=True, moves_query=False),
    "bayes-captions": StrategyEntry(
        lambda _, images: _bayes(images, reads_captions=True), captions_collection=True,
        calibrated=True, moves_query=False,
    ),
    "itm": StrategyEntry(
        lambda _, images: Rerank(Original(), images, COSINE_ODDS), needs_matching=True, moves_query=False
    ),
    "bayes-itm": StrategyEntry(
        lambda _, images: Rerank(_bayes(images), images, POSTERIOR_ODDS),
        needs_matching=True, calibrated=True, moves_query=False,
    ),
    "bayes-captions-itm": StrategyEntry(
        lambda _, images: Rerank(_bayes(images, reads_captions=True), images, POSTERIOR_ODDS),
        needs_matching=True, captions_collection=True, calibrated=True, moves_query=False,
    ),
    "rewrite-bayes": StrategyEntry(
        _rewrite_bayes, needs_captions=True, captions_collection=True, needs_rewriter=True,
        calibrated=True, moves_query=False,
    ),
}  # fmt: skip


def entry_of(name: str) -> StrategyEntry:
    """Looks a strategy up.

    Raises:
        ValueError: If there is none of this name.
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy: got {name!r}, expected one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def make_strategy(
    name: str, rewriter: Rewriter | None = None, collection: Collection | None = None
) -> Strategy:
    """Makes a strategy by name.

    Args:
        name: One of `STRATEGIES`.
        rewriter: For those that need one.
        collection: For those that need it: all but those that only move words.

    Raises:
        ValueError: If the name is unknown, or something it needs is missing.
    """
    entry = entry_of(name)
    if entry.needs_rewriter and rewriter is None:
        raise ValueError(f"strategy {name} needs a rewriter, got none")
    if entry.needs_collection and collection is None:
        raise ValueError(f"strategy {name} needs the collection, got none")
    return entry.make(rewriter, collection)
