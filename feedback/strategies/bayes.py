"""Bayesian update over the collection: which image would make the person pick what they picked?

    log P(t | picks) = s(query, t) / PRIOR + sum over picks of log P(pick | left, t) + constant

    P(pick i | left, t) = (1 - NOISE) softmax over j in left of u(j, t), at i,  +  NOISE / |left|

    u(i, t) = PICTURES v(i) . v(t)  +  CAPTIONS m(c(i)) . m(c(t))     (the second only with captions)

The query's own similarities s are the prior, the user model says how likely a person with t in mind points at
i among the shown: v are the picture vectors, m the sentence vectors of the system's captions c. PRIOR,
PICTURES and CAPTIONS are fitted for each index (`feedback.calibration`). Several likes of one round are a
ranking, the first pick taken from all shown, the next from what is left (Plackett 1975, Applied Statistics
24); dislikes are one by the same model with -u. The unpicked images count by being in the denominator. The
mixture with an even draw keeps one wrong pick from ruling out any image: no pick costs an image more than
log(|shown| / NOISE). Without feedback the posterior keeps the order of the query's own similarities. Of equal
posteriors the lower row comes first.

Source: PicHunter (Cox, Miller, Minka, Papathomas and Yianilos 2000, IEEE Transactions on Image Processing 9).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from feedback.calibration import NOISE
from feedback.history import History, NextQuery, Strategy, Turn
from feedback.strategies.collection import Collection
from retriever import SearchQuery


class Bayes:
    """Ranks all images by their posterior probability of being the one in mind."""

    def __init__(self, inner: Strategy, collection: Collection, reads_captions: bool) -> None:
        """Takes the prior and the user model's parts.

        Args:
            inner: Its queries are the prior: the person's words, or what another strategy makes of them.
            collection: What is searched.
            reads_captions: Whether the user model compares the system's captions too.

        Raises:
            ValueError: If captions are to be read and the collection has none.
        """
        if reads_captions and collection.open_captions is None:
            raise ValueError("bayes with captions needs vectors of captions, got none; choose strategy bayes")
        self._inner = inner
        self._collection = collection
        self._reads_captions = reads_captions
        self.needs_captions = inner.needs_captions

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns the other strategy's texts, each with the log posterior of all images."""
        queries = self._inner.next(histories)
        vectors = self._collection.retriever.query_vectors([query.search for query in queries])
        return [
            NextQuery(SearchQuery(query.search.text, scores=self._posterior(row, history)), query.fallback)
            for query, row, history in zip(queries, vectors, histories, strict=True)
        ]

    def _posterior(self, query: np.ndarray, history: History) -> np.ndarray:
        logs = self._collection.similarities(query[None])[0] / self._collection.calibration.prior
        for turn in history.turns:
            if turn.liked or turn.disliked:
                logs += self._evidence(turn)
        return (logs - log_sum(logs, axis=0)).astype(np.float32)

    def _evidence(self, turn: Turn) -> np.ndarray:
        shown = list(dict.fromkeys((*turn.shown, *turn.liked, *turn.disliked)))
        affinity = self._affinity(shown)
        likes = [shown.index(image_id) for image_id in turn.liked]
        dislikes = [shown.index(image_id) for image_id in turn.disliked]
        return log_ranking(affinity, likes) + log_ranking(-affinity, dislikes)

    def _affinity(self, ids: Sequence[str]) -> np.ndarray:
        """Returns u of some images with all images, (m, n) float64."""
        collection, weights = self._collection, self._collection.calibration
        rows = collection.rows(ids)
        affinity = weights.pictures * collection.similarities(collection.vectors[rows])
        if self._reads_captions:
            affinity += weights.captions * collection.caption_similarities(rows)
        return affinity


def log_ranking(affinity: np.ndarray, picks: Sequence[int]) -> np.ndarray:
    """Computes log P(picks in this order | shown, t) for all images t.

    Args:
        affinity: (m, n) float64, u of the m shown images with all n images.
        picks: Of the m, each once.

    Returns:
        (n,) float64; zeros without a pick.
    """
    left = list(range(len(affinity)))
    logs = np.zeros(affinity.shape[1])
    for pick in picks:
        share = np.exp(affinity[pick] - log_sum(affinity[left], axis=0))
        logs += np.log((1 - NOISE) * share + NOISE / len(left))
        left.remove(pick)
    return logs


def log_sum(values: np.ndarray, axis: int) -> np.ndarray:
    """Returns log(sum(exp(values))) along an axis, without overflow."""
    top = values.max(axis=axis)
    return top + np.log(np.exp(values - np.expand_dims(top, axis)).sum(axis=axis))
