"""Bayesian update over the collection: which image would make the person pick what they picked?

    log P(t | picks) = s(query, t) / PRIOR + sum over picks of log P(pick | shown, t) + constant

    P(pick i | shown, t) = (1 - NOISE) softmax over j in shown of u(j, t), at i,  +  NOISE / |shown|

    u(i, t) = v(i) . v(t) / VECTORS  +  overlap(c(i), c(t)) / WORDS     (the second only with captions)

The query's own similarities s are the prior, the user model says how likely a person with t in mind points at
i among the shown. The unpicked images count by being in its denominator. Its mixture with an even draw keeps
one wrong pick from ruling out any image: no pick costs an image more than log(|shown| / NOISE). A disliked
image is picked by the same model with -u. Without feedback the posterior keeps the order of the query's own
similarities. Of equal posteriors the lower row comes first.

Source: PicHunter (Cox, Miller, Minka, Papathomas and Yianilos 2000, IEEE Transactions on Image Processing 9).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from feedback.history import History, NextQuery, Strategy, Turn
from feedback.strategies.collection import Collection
from feedback.strategies.rewrite import content_words
from retriever import SearchQuery

PRIOR = 0.03  # by maximum likelihood on the demo's dev split
VECTORS = 0.6
WORDS = 0.2
NOISE = 0.05


class Bayes:
    """Ranks all images by their posterior probability of being the one in mind."""

    def __init__(self, inner: Strategy, collection: Collection, reads_captions: bool) -> None:
        """Takes the prior and the user model's parts.

        Args:
            inner: Its queries are the prior: the person's words, or what another strategy makes of them.
            collection: What is searched.
            reads_captions: Whether the user model compares the system's captions too; all images are
                captioned for it, once ever.

        Raises:
            ValueError: If captions are to be read and there is no captioner.
        """
        if reads_captions and collection.captions_of is None:
            raise ValueError("bayes with captions needs a captioner, got none; choose strategy bayes")
        self._inner = inner
        self._collection = collection
        self._captions_of = collection.captions_of if reads_captions else None
        self.needs_captions = inner.needs_captions

    @cached_property
    def _overlap(self) -> WordOverlap | None:
        return WordOverlap(self._captions_of(self._collection.ids)) if self._captions_of else None

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns the other strategy's texts, each with the log posterior of all images."""
        queries = self._inner.next(histories)
        vectors = self._collection.retriever.query_vectors([query.search for query in queries])
        return [
            NextQuery(SearchQuery(query.search.text, scores=self._posterior(row, history)), query.fallback)
            for query, row, history in zip(queries, vectors, histories, strict=True)
        ]

    def _posterior(self, query: np.ndarray, history: History) -> np.ndarray:
        logs = self._collection.similarities(query[None])[0] / PRIOR
        for turn in history.turns:
            if turn.liked or turn.disliked:
                logs += self._evidence(turn)
        return (logs - log_sum(logs, axis=0)).astype(np.float32)

    def _evidence(self, turn: Turn) -> np.ndarray:
        shown = list(dict.fromkeys((*turn.shown, *turn.liked, *turn.disliked)))
        affinity = self._affinity(shown)
        likes = [shown.index(image_id) for image_id in turn.liked]
        dislikes = [shown.index(image_id) for image_id in turn.disliked]
        return log_picks(affinity, likes).sum(axis=0) + log_picks(-affinity, dislikes).sum(axis=0)

    def _affinity(self, ids: Sequence[str]) -> np.ndarray:
        """Returns u of some images with all images, (m, n) float64."""
        rows = self._collection.rows(ids)
        affinity = self._collection.similarities(self._collection.vectors[rows]) / VECTORS
        if self._overlap:
            affinity += np.stack([self._overlap.with_all(row) for row in rows]) / WORDS
        return affinity


class WordOverlap:
    """How much two captions say the same: the cosine of their content words, rare words weighing more.

        overlap(a, b) = sum over words in both of idf^2 / (|a| |b|),   idf = log(captions / those with it)

    Source: Salton and Buckley 1988 (binary term frequencies, idf, cosine normalisation).
    """

    def __init__(self, captions: Sequence[str]) -> None:
        self._words = [sorted(content_words(caption)) for caption in captions]
        lists: dict[str, list[int]] = {}
        for row, words in enumerate(self._words):
            for word in words:
                lists.setdefault(word, []).append(row)
        self._rows = {word: np.array(rows) for word, rows in lists.items()}
        self._weights = {word: math.log(len(captions) / len(rows)) ** 2 for word, rows in lists.items()}
        self._lengths = np.array(
            [math.sqrt(sum(self._weights[word] for word in words)) for words in self._words]
        )

    def with_all(self, row: int) -> np.ndarray:
        """Compares one caption with all of them.

        Args:
            row: Which.

        Returns:
            (n,) float64 from 0 to 1; 0 for captions without a word that tells them apart.
        """
        shared = np.zeros(len(self._words))
        for word in self._words[row]:
            shared[self._rows[word]] += self._weights[word]
        lengths = self._lengths * self._lengths[row]
        return np.divide(shared, lengths, out=np.zeros_like(shared), where=lengths > 0)


def log_picks(affinity: np.ndarray, picks: Sequence[int]) -> np.ndarray:
    """Computes log P(pick | shown, t) for all images t.

    Args:
        affinity: (m, n) float64, u of the m shown images with all n images.
        picks: k of the m.

    Returns:
        (k, n) float64.
    """
    logs = affinity[list(picks)] - log_sum(affinity, axis=0)
    return np.log((1 - NOISE) * np.exp(logs) + NOISE / len(affinity))


def log_sum(values: np.ndarray, axis: int) -> np.ndarray:
    """Returns log(sum(exp(values))) along an axis, without overflow."""
    top = values.max(axis=axis)
    return top + np.log(np.exp(values - np.expand_dims(top, axis)).sum(axis=axis))
