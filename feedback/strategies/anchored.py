"""Anchoring: the person's own words stay the larger part of the vector that another strategy's text makes.

The vector searched is  unit(e(words) + WEIGHT e(text)),  with e the retriever's text embedding and ``text``
the other strategy's query: Rocchio's formula (Rocchio 1971; Manning et al. 2008, equation 9.3) with the
words as query (alpha 1), the text as the one relevant document (beta WEIGHT) and no other (gamma 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from feedback.history import History, NextQuery, Strategy
from retriever import SearchQuery

WEIGHT = 0.1  # chosen on the demo's dev split, see docs/refinement.md


class Anchored:
    """Adds the person's own words to the query vector of another strategy."""

    def __init__(self, inner: Strategy, encode: Callable[[Sequence[str]], np.ndarray]) -> None:
        """Wraps a strategy that moves the text.

        Args:
            inner: The strategy.
            encode: The retriever's text encoder: n texts to (n, d) float32 unit rows.
        """
        self._inner = inner
        self._encode = encode
        self.needs_captions = inner.needs_captions

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns the other strategy's texts, each with its anchored vector."""
        moved = self._inner.next(histories)
        anchors = self._encode([history.words for history in histories])
        texts = self._encode([query.search.text or "" for query in moved])
        return [
            NextQuery(SearchQuery(query.search.text, anchor + WEIGHT * text), query.fallback)
            for query, anchor, text in zip(moved, anchors, texts, strict=True)
        ]
