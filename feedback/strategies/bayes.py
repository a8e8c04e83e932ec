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
from index.scores import all_scores
from retriever import SearchQuery

AT_ONCE = 64  # sessions whose posteriors are in memory, float64
IMAGES_AT_ONCE = 4096
KEPT_BYTES = 2**28  # of evidence kept between rounds: 64 sessions over a million images


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
        self._kept: dict[tuple[tuple[tuple[str, ...], ...], ...], np.ndarray] = {}  # evidence, by turns

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns the other strategy's texts, each with the log posterior of all images."""
        queries = self._inner.next(histories)
        vectors = self._collection.retriever.query_vectors([query.search for query in queries])
        moved = []
        for start in range(0, len(queries), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            evidence = self._evidence(histories[part])
            logs = self._collection.similarities(vectors[part]) / self._collection.calibration.prior
            for query, row, known in zip(queries[part], logs, evidence, strict=True):
                row += known
                scores = (row - log_sum(row, axis=0)).astype(np.float32)
                moved.append(NextQuery(SearchQuery(query.search.text, scores=scores), query.fallback))
        return moved

    def _evidence(self, histories: Sequence[History]) -> list[np.ndarray]:
        """Returns the sum of log P(picks | shown, t) over each session's turns, (n,) float32 each.

        What a session's earlier turns told is kept from the last round, where there is room for it; otherwise
        it is computed again, in the same order and to the same bits.
        """
        sums: list[np.ndarray] = []
        new: list[tuple[int, Turn]] = []  # place of the session, and a turn that its sum lacks
        for place, history in enumerate(histories):
            kept = self._kept.pop(_told(history.turns[:-1]), None)
            sums.append(np.zeros(len(self._collection.ids), np.float32) if kept is None else kept)
            turns = history.turns if kept is None else history.turns[-1:]
            new += [(place, turn) for turn in turns if turn.liked or turn.disliked]
        if new:
            self._add(sums, new)
        for history, known in zip(histories, sums, strict=True):
            self._kept[_told(history.turns)] = known
        while sum(known.nbytes for known in self._kept.values()) > KEPT_BYTES:
            del self._kept[next(iter(self._kept))]
        return sums

    def _add(self, sums: list[np.ndarray], new: Sequence[tuple[int, Turn]]) -> None:
        """Adds turns to the sums in place: one product of all that was shown, block by block of images."""
        shown = [tuple(dict.fromkeys((*turn.shown, *turn.liked, *turn.disliked))) for _, turn in new]
        rows = self._collection.rows([image_id for ids in shown for image_id in ids])
        ends = np.cumsum([len(ids) for ids in shown])
        for first in range(0, len(self._collection.ids), IMAGES_AT_ONCE):
            block = slice(first, first + IMAGES_AT_ONCE)
            affinities = np.split(self._affinity(rows, block), ends[:-1])
            for (place, turn), ids, affinity in zip(new, shown, affinities, strict=True):
                likes = [ids.index(image_id) for image_id in turn.liked]
                dislikes = [ids.index(image_id) for image_id in turn.disliked]
                sums[place][block] += log_ranking(affinity, likes) + log_ranking(-affinity, dislikes)

    def _affinity(self, rows: np.ndarray, block: slice) -> np.ndarray:
        """Returns u of some rows with a block of images, (m, block) float64."""
        collection, weights = self._collection, self._collection.calibration
        affinity = weights.pictures * all_scores(collection.vectors[rows], collection.vectors[block])
        if self._reads_captions:
            affinity += weights.captions * all_scores(collection.captions[rows], collection.captions[block])
        return affinity


def _told(turns: Sequence[Turn]) -> tuple[tuple[tuple[str, ...], ...], ...]:
    return tuple((turn.shown, turn.liked, turn.disliked) for turn in turns)


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
