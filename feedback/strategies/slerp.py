"""Slerp: each caption turns the query vector towards itself, along the great circle between the two.

    q <- sin((1 - STEP) a) / sin(a) q + sin(STEP a) / sin(a) e(caption),    a the angle between them

caption by caption, beginning with q = e(words). Where the two are equal or opposite there is no one great
circle, and q stays.

Source: Shoemake 1985 for the formula; MERLIN (Han et al. 2024, arXiv 2407.12508) for its use on queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from feedback.history import History, NextQuery
from feedback.strategies.append import appended
from feedback.strategies.collection import Collection
from retriever import SearchQuery

STEP = 0.05  # chosen on the demo's dev split, see docs/refinement.md


class Slerp:
    """Turns the query vector towards the captions of the picked images."""

    needs_captions = True

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns words and captions as text, with the turned vector."""
        turned = []
        for history in histories:
            captions = dict.fromkeys(caption for turn in history.turns for caption in turn.captions)
            query, *rows = self._collection.encode([history.words, *captions])
            for row in rows:
                query = slerp(query, row, STEP)
            turned.append(NextQuery(SearchQuery(appended(history), query)))
        return turned


def slerp(start: np.ndarray, end: np.ndarray, step: float) -> np.ndarray:
    """Goes a part of the way from one unit vector to another.

    Args:
        start: (d,) float32.
        end: (d,) float32.
        step: 0 stays, 1 arrives.

    Returns:
        (d,) float32, of unit length; ``start`` where the two are equal or opposite.
    """
    angle = np.arccos(np.clip(start.astype(np.float64) @ end.astype(np.float64), -1, 1))
    if np.sin(angle) < 1e-6:
        return start
    mixed = np.sin((1 - step) * angle) * start + np.sin(step * angle) * end
    return (mixed / np.sin(angle)).astype(np.float32)
