"""How well a picture matches, on one scale for all strategies, and in a word."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from retriever import Retriever, SearchQuery

SAMPLE = 2000  # pictures that stand for the collection
# The least match of each word. On the demo the wanted picture mostly has 3 to 5, and the best one for words
# without sense about 3.
WORDS = ((4.0, "very close"), (3.0, "close"), (2.0, "fair"), (-math.inf, "far"))


class MatchScale:
    """Scores as standard deviations above the collection's average, for cosines and other scores alike."""

    def __init__(self, retriever: Retriever) -> None:
        """Reads the vectors of `SAMPLE` pictures, spread evenly over the index."""
        ids = retriever.index.ids
        self._retriever = retriever
        self._rows = np.linspace(0, len(ids) - 1, min(SAMPLE, len(ids)), dtype=int)
        self._vectors = retriever.vectors_of([ids[row] for row in self._rows])

    def of(self, search: SearchQuery, scores: Sequence[float]) -> tuple[float, ...]:
        """Returns the matches behind these scores of a prepared query."""
        if search.scores is not None:
            usual = search.scores[self._rows]
        else:
            usual = self._vectors @ self._retriever.query_vectors([search])[0]
        spread = float(usual.std()) or 1.0
        return tuple(round((score - float(usual.mean())) / spread, 3) for score in scores)


def match_word(match: float) -> str:
    """Returns what a match is called."""
    return next(word for least, word in WORDS if match >= least)
