"""Rocchio on embeddings: towards the liked images, away from those passed over.

    q = e(words) + LIKED mean v(liked) - PASSED mean v(passed over)

with e the text embedding and v the image embedding; a mean over no image is 0.

Source: Rocchio 1971; Manning, Raghavan and Schuetze 2008, equation 9.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from feedback.history import History, NextQuery
from feedback.strategies.collection import Collection
from retriever import SearchQuery

LIKED = 0.1  # the weights were chosen on the demo's dev split, see docs/feedback.md
PASSED = 0.1


class Rocchio:
    """Moves the query vector by the vectors of the images that were judged."""

    needs_captions = False

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns the words with the moved vector; without feedback it is the words' own."""
        words = self._collection.encode([history.words for history in histories])
        return [
            NextQuery(SearchQuery(history.words, self._moved(row, history)))
            for row, history in zip(words, histories, strict=True)
        ]

    def _moved(self, words: np.ndarray, history: History) -> np.ndarray:
        moved = words + LIKED * self._mean(history.liked) - PASSED * self._mean(passed_over(history))
        return moved if moved.any() else words

    def _mean(self, ids: Sequence[str]) -> np.ndarray:
        vectors = self._collection.vectors_of(ids)
        return vectors.mean(axis=0) if len(vectors) else np.zeros(vectors.shape[1], dtype=np.float32)


def passed_over(history: History) -> list[str]:
    """Lists the images that speak against the query: those turned down, and those left beside a pick.

    A round without any like says nothing about the images that were merely shown.
    """
    against: list[str] = []
    for turn in history.turns:
        left = turn.shown if turn.liked else ()
        against += dict.fromkeys((*turn.disliked, *(i for i in left if i not in turn.liked)))
    return against
