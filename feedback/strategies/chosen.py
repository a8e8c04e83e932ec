"""Choosing among candidates: of several strategies' queries, the one that the liked images agree with.

    argmax over texts c of  e(c) . (mean v(liked) + OWN e(words))

Without a like the first strategy's query is taken; of equal candidates the earlier strategy's. The language
model cannot see the picture, so this is the one place where a rewrite is held against it.

Source: best-of-n selection with image-text similarity as the judge, as CLIP ranks samples in DALL-E (Ramesh
et al. 2021, arXiv 2102.12092).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from feedback.history import History, NextQuery, Strategy
from feedback.strategies.collection import Collection

OWN = 0.5  # see docs/refinement.md


class Chosen:
    """Takes for each session the candidate nearest to its liked images and its words."""

    def __init__(self, candidates: Sequence[Strategy], collection: Collection) -> None:
        """Takes the strategies that write.

        Args:
            candidates: At least one; each moves the words.
            collection: What is searched.
        """
        self._candidates = candidates
        self._collection = collection
        self.needs_captions = any(candidate.needs_captions for candidate in candidates)

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns the chosen query of each session."""
        offered = zip(*(candidate.next(histories) for candidate in self._candidates), strict=True)
        return [self._best(queries, history) for queries, history in zip(offered, histories, strict=True)]

    def _best(self, queries: Sequence[NextQuery], history: History) -> NextQuery:
        liked = [image_id for turn in history.turns for image_id in turn.liked]
        if not liked:
            return queries[0]
        words, *rows = self._collection.encode(
            [history.words, *(query.search.text or "" for query in queries)]
        )
        goal = self._collection.vectors[self._collection.rows(liked)].mean(axis=0) + OWN * words
        return queries[int(np.argmax(np.stack(rows) @ goal))]
