"""Fusion over rounds: the words and every piece of feedback search by themselves; the lists are joined.

The lists are those of the words, of each caption and of each liked image. Two ways to join them:

- ``RRF``: score(t) = sum over lists of weight / (60 + rank of t in the list)
- ``ScoreFusion`` (CombSUM): score(t) = sum over lists of weight (s(t) - min s) / (max s - min s)

The words weigh 1, every other list FEEDBACK. Ranks are those of a search: of equal scores the lower row comes
first. A list in which all scores are equal says nothing and counts as 0 in CombSUM.

Source: Cormack, Clarke and Buettcher 2009 for RRF; Fox and Shaw 1994 and Lee 1997 for CombSUM with its
normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from feedback.history import History, NextQuery
from feedback.strategies.append import appended
from feedback.strategies.collection import Collection
from retriever import SearchQuery

FEEDBACK = 0.05  # chosen on the demo's dev split, see docs/refinement.md
RANK_CONSTANT = 60  # Cormack et al.'s


class RankFusion:
    """Joins the lists of words, captions and liked images."""

    needs_captions = True

    def __init__(self, collection: Collection, credit: Callable[[np.ndarray], np.ndarray]) -> None:
        """Takes the way to join.

        Args:
            collection: What is searched.
            credit: `rank_credit` or `score_credit`: (n,) scores of a list to what each image gets for it.
        """
        self._collection = collection
        self._credit = credit

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns words and captions as text, with the joined scores."""
        return [
            NextQuery(SearchQuery(appended(history), scores=self._joined(history))) for history in histories
        ]

    def _joined(self, history: History) -> np.ndarray:
        captions = dict.fromkeys(caption for turn in history.turns for caption in turn.captions)
        liked = dict.fromkeys(image_id for turn in history.turns for image_id in turn.liked)
        texts = self._collection.encode([history.words, *captions])
        images = self._collection.vectors[self._collection.rows(list(liked))]
        lists = self._collection.similarities(np.concatenate([texts, images]))
        joined = self._credit(lists[0])
        for scores in lists[1:]:
            joined = joined + FEEDBACK * self._credit(scores)
        return joined.astype(np.float32)


def rank_credit(scores: np.ndarray) -> np.ndarray:
    """Returns 1 / (60 + rank) of each image; ranks count from 1."""
    credit = np.empty(len(scores))
    credit[np.argsort(-scores, kind="stable")] = 1 / (RANK_CONSTANT + 1 + np.arange(len(scores)))
    return credit


def score_credit(scores: np.ndarray) -> np.ndarray:
    """Stretches the scores to 0 ... 1; zeros where all are equal."""
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low) if high > low else np.zeros(len(scores))
