"""One file a strategy; the names by which the settings know them."""

from __future__ import annotations

from typing import Protocol, get_args

from refinement.history import Strategy
from settings import StrategyName

STRATEGIES: tuple[str, ...] = get_args(StrategyName)


class Rewriter(Protocol):
    """A language model that merges a caption into a query."""

    def rewrite(self, queries: list[str], captions: list[str]) -> list[str]:
        """Returns one line a pair, in order; empty where it failed."""
        ...


def make_strategy(name: str, rewriter: Rewriter | None) -> Strategy:
    """Makes a strategy by name.

    Args:
        name: One of `STRATEGIES`.
        rewriter: Needed by the rewriting ones.

    Raises:
        ValueError: If the name is not known, or the rewriter is missing.
    """
    if name == "original":
        from refinement.strategies.original import Original

        return Original()
    if name == "append":
        from refinement.strategies.append import Append

        return Append()
    if name in ("rewrite", "rewrite-original"):
        from refinement.strategies.rewrite import Rewrite

        if rewriter is None:
            raise ValueError(f"strategy {name} needs a rewriter, got none")
        return Rewrite(rewriter, keeps_original=name == "rewrite-original")
    raise ValueError(f"strategy: got {name!r}, expected one of {', '.join(STRATEGIES)}")
