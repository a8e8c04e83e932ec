"""One file a strategy; the names by which the settings know them."""

from __future__ import annotations

from typing import get_args

from feedback.history import Strategy
from feedback.strategies.anchored import Anchored
from feedback.strategies.append import Append
from feedback.strategies.bayes import Bayes
from feedback.strategies.chosen import Chosen
from feedback.strategies.collection import Collection
from feedback.strategies.fusion import Fusion
from feedback.strategies.original import Original
from feedback.strategies.rank_fusion import RankFusion, rank_credit, score_credit
from feedback.strategies.rerank import COSINE_ODDS, POSTERIOR_ODDS, Rerank
from feedback.strategies.rewrite import Rewrite, Rewriter
from feedback.strategies.rocchio import Rocchio
from feedback.strategies.slerp import Slerp
from settings import StrategyName

__all__ = ["STRATEGIES", "Rewriter", "make_strategy", "reads_every_caption", "rewrites"]

STRATEGIES: tuple[str, ...] = get_args(StrategyName)


def rewrites(name: str) -> bool:
    """Says whether a strategy has a language model rewrite queries."""
    return name.startswith("rewrite")


def reads_every_caption(name: str) -> bool:
    """Says whether a strategy has all images captioned, not only those that were picked."""
    return "captions" in name


def make_strategy(
    name: str, rewriter: Rewriter | None = None, collection: Collection | None = None
) -> Strategy:
    """Makes a strategy by name.

    Args:
        name: One of `STRATEGIES`.
        rewriter: Needed by the rewriting ones.
        collection: Needed by all but those that move only words.

    Raises:
        ValueError: If the name is not known, or a part is missing.
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy: got {name!r}, expected one of {', '.join(STRATEGIES)}")
    if name == "original":
        return Original()
    if name == "append":
        return Append()
    if rewrites(name):
        if rewriter is None:
            raise ValueError(f"strategy {name} needs a rewriter, got none")
        words: Strategy = Rewrite(rewriter, from_original=name != "rewrite")
        if name in ("rewrite", "rewrite-original"):
            return words
    else:
        words = Append()
    if collection is None:
        raise ValueError(f"strategy {name} needs the collection, got none")
    if name in ("append-anchored", "rewrite-anchored"):
        return Anchored(words, collection.encode)
    if name == "rewrite-chosen":
        candidates = (words, Append(), Original())
        return Anchored(Chosen(candidates, collection), collection.encode)
    if name == "rocchio":
        return Rocchio(collection)
    if name == "fusion":
        return Fusion(collection)
    if name == "slerp":
        return Slerp(collection)
    if name == "score-fusion":
        return RankFusion(collection, score_credit)
    if name == "rrf":
        return RankFusion(collection, rank_credit)
    if name == "itm":
        return Rerank(Original(), collection, COSINE_ODDS)
    if name == "rewrite-bayes":
        return Bayes(Anchored(words, collection.encode), collection, reads_captions=False)
    bayes = Bayes(Original(), collection, reads_captions=reads_every_caption(name))
    return Rerank(bayes, collection, POSTERIOR_ODDS) if name.endswith("-itm") else bayes
