"""Fusion of words, captions and liked images: as one vector, along a great circle, or as lists.

`Fusion` adds vectors, each kind with its weight; a mean over nothing is 0:

    q = e(words) + CAPTION mean e(captions) + IMAGE mean v(liked)

The two encoders share one space, so this is late fusion of three similarities. Source: linear late fusion,
Kludas, Bruno and Marchand-Maillet 2007; weights as in Rocchio's formula.

`Slerp` turns the query towards each caption in turn, beginning with q = e(words):

    q <- sin((1 - STEP) a) / sin(a) q + sin(STEP a) / sin(a) e(caption),    a the angle between them

Where the two are equal or opposite there is no one great circle, and q stays. Source: Shoemake 1985 for the
formula; MERLIN (Han et al. 2024, arXiv 2407.12508) for its use on queries.

`ListFusion` searches with the words (weight 1), each caption and each liked image (weight FEEDBACK) by
themselves, and adds what each list gives an image:

- `rank_credit` (RRF):        weight / (60 + rank of t in the list)
- `score_credit` (CombSUM):   weight (s(t) - min s) / (max s - min s)

Ranks are those of a search: of equal scores the lower row comes first. A list in which all scores are equal
says nothing and counts as 0 in CombSUM. Source: Cormack, Clarke and Buettcher 2009 for RRF; Fox and Shaw 1994
and Lee 1997 for CombSUM with its normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import islice

import numpy as np

from feedback.history import History, NextQuery
from feedback.strategies.collection import Collection
from feedback.strategies.kept import KeptSums, NewTurn
from feedback.strategies.words import appended
from retriever import SearchQuery

CAPTION = 0.1  # the weights and the step were chosen on the demo's dev split, see docs/feedback.md
IMAGE = 0.1
STEP = 0.05
FEEDBACK = 0.05
RANK_CONSTANT = 60  # Cormack et al.'s
LISTS_AT_ONCE = 16  # (16, n) float64 are in memory


class Fusion:
    """Adds the captions' and the liked images' vectors to that of the words."""

    needs_captions = True

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns words and captions as text, with the fused vector."""
        return [NextQuery(SearchQuery(appended(history), self._fused(history))) for history in histories]

    def _fused(self, history: History) -> np.ndarray:
        words, *said = self._collection.encode([history.words, *history.captions])
        fused = words.copy()
        if said:
            fused += CAPTION * np.mean(said, axis=0)
        if history.liked:
            fused += IMAGE * self._collection.vectors_of(history.liked).mean(axis=0)
        return fused if fused.any() else words


class Slerp:
    """Turns the query vector towards the captions of the picked images."""

    needs_captions = True

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns words and captions as text, with the turned vector."""
        turned = []
        for history in histories:
            query, *rows = self._collection.encode([history.words, *history.captions])
            for row in rows:
                query = slerp(query, row, STEP)
            turned.append(NextQuery(SearchQuery(appended(history), query)))
        return turned


class ListFusion:
    """Adds up the lists of words, captions and liked images."""

    needs_captions = True

    def __init__(self, collection: Collection, credit: Callable[[np.ndarray], np.ndarray]) -> None:
        """Takes what a list gives an image.

        Args:
            collection: What is searched.
            credit: `rank_credit` or `score_credit`: (n,) scores of a list to what each image gets for it.
        """
        self._collection = collection
        self._credit = credit
        self._sums = KeptSums(_listed, self._add)

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns words and captions as text, with the added scores."""
        sums = self._sums.of(histories, len(self._collection.ids))
        return [
            NextQuery(SearchQuery(appended(history), scores=added.copy()))
            for history, added in zip(histories, sums, strict=True)
        ]

    def _add(self, new: Sequence[NewTurn]) -> None:
        """Adds the lists that turns bring, in each session in the same order however many come together."""
        brought = [_brought(each) for each in new]
        encoded = iter(self._collection.encode([text for texts, _ in brought for text in texts]))
        lists: list[tuple[np.ndarray, float, np.ndarray]] = []  # the sum that it goes to, weight and query
        for each, (texts, liked) in zip(new, brought, strict=True):
            queries = [*islice(encoded, len(texts)), *self._collection.vectors_of(liked)]
            weights = [1.0 if each.number == place == 0 else FEEDBACK for place in range(len(queries))]
            lists += [(each.sum, weight, query) for weight, query in zip(weights, queries, strict=True)]
        for first in range(0, len(lists), LISTS_AT_ONCE):
            part = lists[first : first + LISTS_AT_ONCE]
            similarities = self._collection.similarities(np.stack([query for _, _, query in part]))
            for (added, weight, _), scores in zip(part, similarities, strict=True):
                added += weight * self._credit(scores)


def _listed(history: History, count: int) -> Hashable:
    return history.words, tuple((turn.captions, turn.liked) for turn in history.turns[:count])


def _brought(new: NewTurn) -> tuple[list[str], list[str]]:
    """Returns captions and liked images new in a turn; the first turn also brings the words."""
    turn, earlier = new.history.turns[new.number], History(new.history.turns[: new.number])
    captions = [caption for caption in dict.fromkeys(turn.captions) if caption not in earlier.captions]
    liked = [image_id for image_id in dict.fromkeys(turn.liked) if image_id not in earlier.liked]
    return ([] if new.number else [new.history.words]) + captions, liked


def slerp(start: np.ndarray, end: np.ndarray, step: float) -> np.ndarray:
    """Goes part of the way from one unit vector to another.

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


def rank_credit(scores: np.ndarray) -> np.ndarray:
    """Returns 1 / (60 + rank) of each image; ranks count from 1."""
    order = np.argsort(-scores)  # the fast kind, which leaves equal scores in any order
    ordered = scores[order]
    equal = ordered[1:] == ordered[:-1]
    # What stands beside its equal is put in order of its row; that is little, so this costs little.
    tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
    order[tied] = order[tied][np.lexsort((order[tied], -ordered[tied]))]
    credit = np.empty(len(scores))
    credit[order] = 1 / (RANK_CONSTANT + 1 + np.arange(len(scores)))
    return credit


def score_credit(scores: np.ndarray) -> np.ndarray:
    """Stretches the scores to 0 ... 1; zeros where all are equal."""
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low) if high > low else np.zeros(len(scores))
