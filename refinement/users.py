"""Simulated users: each looks at what was shown and points at one image.

What a user may see: the target (it knows what it looks for), the images shown and how its own eye judges
them. It never sees the query text, the scores or the images not shown, and nothing of it but the picked ids
reaches the strategy.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from records import Feedback, Image


@dataclass(frozen=True)
class View:
    """What a user looks at in one round.

    Attributes:
        query_id: Of the session.
        round_number: From 0.
        goals: Ids of what would satisfy: the target, or without one all relevant images.
        candidates: Ids of the shown images that may be picked, in the order shown; never picked before.
    """

    query_id: str
    round_number: int
    goals: frozenset[str]
    candidates: tuple[str, ...]


class User(Protocol):
    """Someone who judges."""

    def judge(self, views: Sequence[View]) -> list[Feedback]:
        """Returns one feedback a view; an empty one where there is nothing to pick."""
        ...


class NearestUser:
    """Picks the candidate nearest to a goal, as seen by one embedding of the images.

    With the retriever's own embedding this is the reference's user, and it flatters: it judges with the eye
    of the system that it tests. With another encoder's it is an independent user. Of equally near candidates
    the one shown first is picked.
    """

    def __init__(self, vectors_of: Callable[[Sequence[str]], np.ndarray]) -> None:
        """Takes the eye: image ids to (n, d) float32 unit rows."""
        self._vectors_of = vectors_of

    def judge(self, views: Sequence[View]) -> list[Feedback]:
        """Picks by cosine similarity, the greatest over the goals."""
        return [self._pick(view) for view in views]

    def _pick(self, view: View) -> Feedback:
        if not view.candidates:
            return Feedback()
        candidates = self._vectors_of(view.candidates)
        goals = self._vectors_of(sorted(view.goals))
        nearest = int((candidates @ goals.T).max(axis=1).argmax())
        return Feedback(liked=(view.candidates[nearest],))


class RandomUser:
    """Picks any candidate: a control. The same seed, query and round give the same pick."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def judge(self, views: Sequence[View]) -> list[Feedback]:
        """Picks evenly among the candidates."""
        picks = []
        for view in views:
            rng = random.Random(f"{self._seed} {view.query_id} {view.round_number}")
            picks.append(Feedback(liked=(rng.choice(view.candidates),)) if view.candidates else Feedback())
        return picks


class FirstUser:
    """Picks the candidate shown first: a control, pseudo relevance feedback with one image."""

    def judge(self, views: Sequence[View]) -> list[Feedback]:
        """Picks the first."""
        return [Feedback(liked=view.candidates[:1]) for view in views]


def caption_vectors(
    images: Sequence[Image], encode: Callable[[Sequence[str]], np.ndarray]
) -> Callable[[Sequence[str]], np.ndarray]:
    """Makes an eye out of people's captions: an image is the mean of its captions' embeddings.

    Args:
        images: With captions; encoded once, all together.
        encode: Texts to (n, d) float32 unit rows; with the retriever's own encoder the user would not be
            independent.

    Returns:
        Image ids to (n, d) float32 unit rows.

    Raises:
        ValueError: If an image has no captions.
    """
    bare = [image.id for image in images if not image.captions]
    if bare:
        raise ValueError(
            f"{len(bare)} of {len(images)} images have no caption, first {bare[0]}: the independent user "
            "needs captions of all images; choose another user"
        )
    rows = encode([caption for image in images for caption in image.captions])
    means, start = [], 0
    for image in images:
        mean = rows[start : start + len(image.captions)].mean(axis=0)
        means.append(mean / max(float(np.linalg.norm(mean)), 1e-12))
        start += len(image.captions)
    matrix = np.stack(means)
    place = {image.id: row for row, image in enumerate(images)}
    return lambda ids: matrix[[place[image_id] for image_id in ids]]
