"""One file a strategy; the names by which the settings know them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, get_args

import numpy as np

from refinement.history import Strategy
from settings import StrategyName

STRATEGIES: tuple[str, ...] = get_args(StrategyName)


class Rewriter(Protocol):
    """A language model that merges a caption into a query."""

    def rewrite(self, queries: list[str], captions: list[str]) -> list[str]:
        """Returns one line a pair, in order; empty where it failed."""
        ...


def make_strategy(
    name: str,
    rewriter: Rewriter | None = None,
    encode: Callable[[Sequence[str]], np.ndarray] | None = None,
) -> Strategy:
    """Makes a strategy by name.

    Args:
        name: One of `STRATEGIES`.
        rewriter: Needed by the rewriting ones.
        encode: The retriever's text encoder, needed by the anchored one.

    Raises:
        ValueError: If the name is not known, or a part is missing.
    """
    if name == "original":
        from refinement.strategies.original import Original

        return Original()
    if name == "append":
        from refinement.strategies.append import Append

        return Append()
    if name not in STRATEGIES:
        raise ValueError(f"strategy: got {name!r}, expected one of {', '.join(STRATEGIES)}")
    if rewriter is None:
        raise ValueError(f"strategy {name} needs a rewriter, got none")
    from refinement.strategies.rewrite import Rewrite

    rewrite = Rewrite(rewriter, from_original=name != "rewrite")
    if name != "rewrite-anchored":
        return rewrite
    if encode is None:
        raise ValueError(f"strategy {name} needs the retriever's text encoder, got none")
    from refinement.strategies.anchored import Anchored

    return Anchored(rewrite, encode)
