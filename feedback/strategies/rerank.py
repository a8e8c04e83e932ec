"""ITM re-ranking: a matching head reads words and picture together and reorders the best candidates.

    score(t) = s(t) + WEIGHT log(p / (1 - p)),   p = P(the words are true of t),   for the best t

with s the cosine similarity, or what another strategy scores. The best are DEPTH images more than have been
shown so far; all others keep their order behind them. Of equal scores the lower row comes first, when the
candidates are taken and afterwards.

Source: BLIP (Li et al. 2022, arXiv 2201.12086), whose retrieval adds the matching head's logit to the
similarity of its 128 or 256 best candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from feedback.history import History, NextQuery, Strategy
from feedback.strategies.collection import Collection
from index.scores import best_rows
from retriever import SearchQuery

DEPTH = 50
COSINE_ODDS = 0.03  # weight over cosines: the prior temperature of `bayes`
POSTERIOR_ODDS = 1.0  # weight over log posteriors: two log odds of one question
SURE = 1e-6  # probabilities are kept this far from 0 and 1


class Rerank:
    """Re-ranks another strategy's best candidates by how well the person's words match them."""

    def __init__(self, inner: Strategy, collection: Collection, weight: float) -> None:
        """Wraps a strategy.

        Args:
            inner: The strategy.
            collection: What is searched.
            weight: Of the matching head's log odds, in units of the strategy's scores.

        Raises:
            ValueError: If the model has no matching head.
        """
        if collection.match is None:
            raise ValueError("itm re-ranking needs a model with a matching head, got none")
        self._inner = inner
        self._collection = collection
        self._match = collection.match
        self._weight = weight
        self.needs_captions = inner.needs_captions

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns the other strategy's texts, each with the re-ranked scores of all images."""
        queries = self._inner.next(histories)
        return [
            NextQuery(SearchQuery(query.search.text, scores=self._reranked(scores, history)), query.fallback)
            for query, scores, history in zip(queries, self._scores(queries), histories, strict=True)
        ]

    def _scores(self, queries: Sequence[NextQuery]) -> Iterator[np.ndarray]:
        """Yields each query's own scores of all images, (n,) float64."""
        for asked in self._collection.retriever.prepared([query.search for query in queries]):
            if asked.scores is not None:
                yield asked.scores.astype(np.float64)
            elif asked.vector is not None:
                yield self._collection.similarities(asked.vector[None])[0]

    def _reranked(self, scores: np.ndarray, history: History) -> np.ndarray:
        seen = {image_id for turn in history.turns for image_id in turn.shown}
        best = best_rows(scores, DEPTH + len(seen))
        ids = [self._collection.ids[row] for row in best]
        chances = np.clip(self._match([history.words] * len(ids), ids), SURE, 1 - SURE)
        judged = scores[best] + self._weight * np.log(chances / (1 - chances))
        # Whatever was not judged comes behind the judged, in its own order.
        rest = scores - max(0.0, scores.max() - judged.min()) - 1
        rest[best] = judged
        return rest.astype(np.float32)
