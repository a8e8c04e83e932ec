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

What a round tells is added to what was told before (`feedback.strategies.kept`). The cosines in u are those
of coarse rows (`index.scores`), which move u by a few thousandths and halve the time.

Source: PicHunter (Cox, Miller, Minka, Papathomas and Yianilos 2000, IEEE Transactions on Image Processing 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from feedback.calibration import NOISE
from feedback.history import History, NextQuery, Strategy
from feedback.strategies.collection import Collection
from feedback.strategies.kept import KeptArrays, KeptSums, NewTurn
from index.scores import COARSE_ONE, coarse_rows, score_blocks, unit_rows
from retriever import SearchQuery

AT_ONCE = 64  # sessions whose posteriors are computed together
IMAGES_AT_ONCE = 4096


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
        self._priors = KeptArrays()
        self._evidence = KeptSums(_told, self._add)

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns the other strategy's texts, each with the log posterior of all images."""
        queries = self._inner.next(histories)
        vectors = self._collection.retriever.query_vectors([query.search for query in queries])
        moved = []
        for start in range(0, len(queries), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            priors = self._log_priors(vectors[part])
            evidence = self._evidence.of(histories[part], len(self._collection.ids))
            for query, prior, known in zip(queries[part], priors, evidence, strict=True):
                row = prior + known
                row -= log_sum(row)
                moved.append(NextQuery(SearchQuery(query.search.text, scores=row), query.fallback))
        return moved

    def _log_priors(self, vectors: np.ndarray) -> list[np.ndarray]:
        """Returns s(query, t) / PRIOR of each query, (n,) float32; kept, since most ask the same again."""
        asked = {vector.tobytes(): vector for vector in vectors}
        kept = {key: self._priors.take(key) for key in asked}
        known = {key: row for key, row in kept.items() if row is not None}
        new = [key for key in asked if key not in known]
        if new:
            rows = np.empty((len(new), len(self._collection.ids)), np.float32)
            queries = unit_rows(np.stack([asked[key] for key in new]), vectors.shape[1], "query vectors")
            temperature = self._collection.calibration.prior
            for some, images, scores in score_blocks(queries, self._collection.vectors):
                np.divide(scores, temperature, out=rows[some, images], casting="same_kind")
            known |= zip(new, rows, strict=True)
        for key, row in known.items():
            self._priors.keep(key, row)
        return [known[vector.tobytes()] for vector in vectors]

    def _add(self, new: Sequence[NewTurn]) -> None:
        """Adds log P(picks | shown, t): one product of all that was shown, block by block of images."""
        told = [(each.sum, each.history.turns[each.number]) for each in new]
        told = [(total, turn) for total, turn in told if turn.liked or turn.disliked]
        if not told:
            return
        shown = [tuple(dict.fromkeys((*turn.shown, *turn.liked, *turn.disliked))) for _, turn in told]
        rows = self._collection.rows([image_id for ids in shown for image_id in ids])
        ends = np.cumsum([len(ids) for ids in shown])
        compared = [(coarse_rows(vectors[rows]), vectors, weight) for vectors, weight in self._compared()]
        for first in range(0, len(self._collection.ids), IMAGES_AT_ONCE):
            block = slice(first, first + IMAGES_AT_ONCE)
            alike = [
                (np.split(some @ coarse_rows(vectors[block]).T, ends[:-1]), weight / COARSE_ONE)
                for some, vectors, weight in compared
            ]
            for place, (total, turn) in enumerate(told):
                affinity = reduce(np.add, [weight * parts[place] for parts, weight in alike])
                likes, dislikes = (
                    [shown[place].index(image_id) for image_id in ids] for ids in (turn.liked, turn.disliked)
                )
                if likes:
                    total[block] += log_ranking(affinity, likes)
                if dislikes:
                    total[block] += log_ranking(-affinity, dislikes)

    def _compared(self) -> list[tuple[np.ndarray, float]]:
        """Returns the vectors that the user model compares, (n, d) float32 unit rows, and their weights."""
        collection, weights = self._collection, self._collection.calibration
        compared = [(collection.vectors, weights.pictures)]
        return compared + ([(collection.captions, weights.captions)] if self._reads_captions else [])


def _told(history: History, count: int) -> tuple[tuple[tuple[str, ...], ...], ...]:
    return tuple((turn.shown, turn.liked, turn.disliked) for turn in history.turns[:count])


def log_ranking(affinity: np.ndarray, picks: Sequence[int]) -> np.ndarray:
    """Computes log P(picks in this order | shown, t) for all images t.

    Args:
        affinity: (m, n) floats, u of the m shown images with all n images.
        picks: Of the m, each once.

    Returns:
        (n,) of the same dtype; zeros without a pick.
    """
    left = list(range(len(affinity)))
    logs = np.zeros(affinity.shape[1], affinity.dtype)
    for number, pick in enumerate(picks):
        rest = affinity[left] if number else affinity  # the first is picked from all: no copy
        odds = rest - affinity[pick]
        with np.errstate(over="ignore"):  # an infinite sum is a softmax of 0, as it should be
            one_over_softmax = np.exp(odds, out=odds).sum(axis=0)
        logs += np.log((1 - NOISE) / one_over_softmax + NOISE / len(left))
        left.remove(pick)
    return logs


def log_sum(values: np.ndarray) -> np.floating:
    """Returns log(sum(exp(values))), without overflow."""
    top = values.max()
    return top + np.log(np.exp(values - top).sum())
