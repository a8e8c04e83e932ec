"""Text-image fusion: words, captions and liked images in one query vector, each kind with its weight.

    q = e(words) + CAPTION mean e(captions) + IMAGE mean v(liked)

A mean over nothing is 0. The two encoders share one space, so that adding them is late fusion of the three
similarities: q . v = e(words) . v + CAPTION mean e(captions) . v + IMAGE mean v(liked) . v.

Source: linear late fusion, Kludas, Bruno and Marchand-Maillet 2007; weights as in Rocchio's formula.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from feedback.history import History, NextQuery
from feedback.strategies.append import appended
from feedback.strategies.collection import Collection
from retriever import SearchQuery

CAPTION = 0.1  # the weights were chosen on the demo's dev split, see docs/refinement.md
IMAGE = 0.1


class Fusion:
    """Adds the captions' and the liked images' vectors to that of the words."""

    needs_captions = True

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns words and captions as text, with the fused vector."""
        return [NextQuery(SearchQuery(appended(history), self._fused(history))) for history in histories]

    def _fused(self, history: History) -> np.ndarray:
        captions = list(dict.fromkeys(caption for turn in history.turns for caption in turn.captions))
        liked = [image_id for turn in history.turns for image_id in turn.liked]
        words, *said = self._collection.encode([history.words, *captions])
        fused = words.copy()
        if said:
            fused += CAPTION * np.mean(said, axis=0)
        if liked:
            fused += IMAGE * self._collection.vectors[self._collection.rows(liked)].mean(axis=0)
        return fused if fused.any() else words
