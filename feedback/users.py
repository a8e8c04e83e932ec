"""Simulated users: each looks at what was shown and points at images.

A user sees only its `View`: what it is looking for, the shown images that may be picked, and what it picked
before. It never sees the query's text, the scores or images that were not shown, and nothing of it but the
picked ids (and the phrases of a `TellingUser`) reaches the strategy. By which similarity function a user
judges is in its own docstring; `NoisyUser`, `ImpatientUser` and `TellingUser` make any judging user more like
a person.

No user remembers anything, so a stopped run goes on as if it had not been stopped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Protocol

import numpy as np

from records import Feedback, Image

Encode = Callable[[Sequence[str]], np.ndarray]  # texts, or image ids, to (n, d) float32 unit rows

CONTROLS = ("random", "first")  # users who judge nothing, so that they neither err nor lose patience


@dataclass(frozen=True)
class View:
    """What a user looks at in one round.

    Attributes:
        query_id: Of the session.
        round_number: From 0.
        goals: Ids of what would satisfy: the target, or without one all relevant images.
        candidates: Ids of the shown images that may be picked, in the order shown; never picked before.
        liked_before: What the user picked in each earlier round, oldest first.
        shown: Ids of all shown images, picked before or not, in the order shown.
    """

    query_id: str
    round_number: int
    goals: frozenset[str]
    candidates: tuple[str, ...]
    liked_before: tuple[tuple[str, ...], ...] = ()
    shown: tuple[str, ...] = ()


class User(Protocol):
    """Someone who gives feedback."""

    def judge(self, views: Sequence[View]) -> list[Feedback]:
        """Returns one feedback a view; an empty one where there is nothing to pick."""
        ...


class JudgingUser(User, Protocol):
    """A user with a judgement of its own, not a control: it can tell progress."""

    def improves(self, view: View, liked: tuple[str, ...]) -> bool:
        """Says whether these likes bring it closer to the goal than all earlier ones."""
        ...


class NearestUser:
    """Picks the candidate most similar to a goal, by the cosine of image vectors.

    With the retriever's own vectors this is the reference's user, and it flatters: it judges by the
    similarity function of the system under test. With another encoder's vectors it is an independent user. Of
    equally similar candidates it picks the one shown first.

    May see: the vectors of the goals and of the shown images.
    """

    def __init__(
        self, vectors_of: Encode, dislikes: int = 0, likes: int = 1, among: int | None = None
    ) -> None:
        """Takes the similarity function.

        Args:
            vectors_of: Image ids to (n, d) float32 unit rows.
            dislikes: How many candidates it turns down: those least similar to every goal.
            likes: How many it picks at most, the nearest first: the nearest, and those that are nearer than
                all it picked before.
            among: It picks among so many of the shown images that are nearest, those picked before counted,
                and nothing where all were picked before; among all candidates when None.
        """
        self._vectors_of = vectors_of
        self._dislikes = dislikes
        self._likes = likes
        self._among = among

    def judge(self, views: Sequence[View]) -> list[Feedback]:
        """Picks by the greatest similarity over the goals."""
        return [self._judge(view) for view in views]

    def improves(self, view: View, liked: tuple[str, ...]) -> bool:
        """Says whether a pick is nearer to a goal than every earlier one."""
        earlier = [image_id for ids in view.liked_before for image_id in ids]
        if not liked or not earlier:
            return bool(liked)
        return bool(self.nearness(view, liked).max() > self.nearness(view, earlier).max())

    def nearness(self, view: View, image_ids: Sequence[str]) -> np.ndarray:
        """Judges images.

        Returns:
            (n,) floats: the greatest similarity with a goal.
        """
        goals = self._vectors_of(sorted(view.goals))
        return (self._vectors_of(image_ids) @ goals.T).max(axis=1)

    def _judge(self, view: View) -> Feedback:
        if not view.candidates:
            return Feedback()
        nearness = self.nearness(view, view.candidates)
        nearest_first = np.argsort(-nearness, kind="stable")
        if self._among is not None:
            order = np.argsort(-self.nearness(view, view.shown), kind="stable")[: self._among]
            near = {view.shown[place] for place in order}
            nearest_first = [place for place in nearest_first if view.candidates[place] in near]
        earlier = [image_id for ids in view.liked_before for image_id in ids]
        best_before = self.nearness(view, earlier).max() if self._likes > 1 and earlier else -np.inf
        liked = [
            int(place)
            for number, place in enumerate(nearest_first[: self._likes])
            if number == 0 or nearness[place] > best_before
        ]
        farthest_first = [int(place) for place in np.argsort(nearness, kind="stable") if place not in liked]
        disliked = sorted(farthest_first[: self._dislikes])
        return Feedback(
            tuple(view.candidates[place] for place in liked),
            tuple(view.candidates[place] for place in disliked),
        )


class CaptionUser(NearestUser):
    """Judges by other words for the same picture: the goal's captions that are not the query.

    With T the captions that people wrote about a goal, without those that say what the query says, and C
    those of a candidate, the candidate's similarity is

        mean over t in T of max over c in C of cos(e(t), e(c)):

    how well each thing that can be said of the goal is said of the candidate too. Of several goals the
    greatest counts; goals described by nothing but the query are left out, and with none left it cannot
    judge.

    May see: people's captions of the goals and of the candidates. It knows the query's words only to leave
    them out; the independent user, who judges by the mean of all captions, has the query among them.
    """

    def __init__(
        self,
        images: Sequence[Image],
        words: Mapping[str, str],
        encode: Encode,
        dislikes: int = 0,
        likes: int = 1,
        among: int | None = None,
    ) -> None:
        """Takes what it will judge by.

        Args:
            images: With captions; encoded once, all together, when it judges for the first time.
            words: The text of each query, by its id.
            encode: Texts to (n, d) float32 unit rows; not the retriever's own encoder.
            dislikes: As `NearestUser`.
            likes: As `NearestUser`.
            among: As `NearestUser`.

        Raises:
            ValueError: If an image has no captions.
        """
        check_captioned(images)
        self._captions = {image.id: image.captions for image in images}
        self._images = images
        self._encode = encode
        self._words = words
        self._dislikes = dislikes
        self._likes = likes
        self._among = among

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        return _caption_rows(self._images, self._encode)

    def nearness(self, view: View, image_ids: Sequence[str]) -> np.ndarray:
        """Judges images by their captions.

        Raises:
            ValueError: If no caption but the query describes a goal.
        """
        query = _plain(self._words[view.query_id])
        goals = []
        for goal in sorted(view.goals):
            kept = [row for row, said in enumerate(self._captions[goal]) if _plain(said) != query]
            if kept:
                goals.append(self._rows[goal][kept])
        if not goals:
            raise ValueError(
                f"query {view.query_id!r}: its target has no caption but the query; the user 'caption' needs "
                "another one; choose another user"
            )
        return np.array(
            [
                max(float((goal @ self._rows[image_id].T).max(axis=1).mean()) for goal in goals)
                for image_id in image_ids
            ]
        )


class GroundTruthUser:
    """Likes every candidate that answers the query: the paper's artificial actor (arXiv 2404.18746).

    It makes sense only where images that answer the query may be picked, and there are several of them: under
    the protocol ``paper``. Where none was shown it likes nothing.

    May see: which images answer the query.
    """

    def __init__(self, dislikes: int = 0) -> None:
        """Takes a habit.

        Args:
            dislikes: How many of the other candidates it turns down, from the top of the list: those that the
                system wrongly took to be the best.
        """
        self._dislikes = dislikes

    def judge(self, views: Sequence[View]) -> list[Feedback]:
        """Likes what is relevant."""
        return [self._judge(view) for view in views]

    def improves(self, view: View, liked: tuple[str, ...]) -> bool:
        """Says whether anything was found: picked images are no candidates again, so each one is new."""
        return bool(view.goals.intersection(liked))

    def _judge(self, view: View) -> Feedback:
        liked = tuple(image_id for image_id in view.candidates if image_id in view.goals)
        wrong = tuple(image_id for image_id in view.candidates if image_id not in view.goals)
        return Feedback(liked, wrong[: self._dislikes])


class RandomUser:
    """Picks any candidate: a control. The same seed, query and round give the same pick.

    May see: the ids of the candidates.
    """

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
    """Picks the candidate shown first: a control, pseudo relevance feedback with one image.

    May see: the order of the candidates.
    """

    def judge(self, views: Sequence[View]) -> list[Feedback]:
        """Picks the first."""
        return [Feedback(liked=view.candidates[:1]) for view in views]


class NoisyUser:
    """With a given probability points at wrong candidates instead of those that the inner user likes.

    Wrong candidates are those that the inner user did not like and that are no goal. It draws, evenly, as
    many as the inner user liked, at least one; where there is none, it makes no mistake. What the inner user
    turned down stays so, except what is now liked. The same seed, query and round give the same mistake
    whoever the inner user is, so that all users err in the same rounds.
    """

    def __init__(self, inner: JudgingUser, chance: float, seed: int) -> None:
        """Wraps a user.

        Args:
            inner: The user.
            chance: Of a mistake, in each round of each query.
            seed: Of the draws.

        Raises:
            ValueError: If the chance is none.
        """
        if not 0 <= chance <= 1:
            raise ValueError(f"user noise: got {chance}, expected a share from 0 to 1")
        self._inner = inner
        self._chance = chance
        self._seed = seed

    def judge(self, views: Sequence[View]) -> list[Feedback]:
        """Judges as the inner user, and errs in some rounds."""
        return [
            self._mistake(view, feedback)
            for view, feedback in zip(views, self._inner.judge(views), strict=True)
        ]

    def improves(self, view: View, liked: tuple[str, ...]) -> bool:
        """Judges progress as the inner user, mistaken picks included."""
        return self._inner.improves(view, liked)

    def _mistake(self, view: View, feedback: Feedback) -> Feedback:
        rng = random.Random(f"noise {self._seed} {view.query_id} {view.round_number}")
        if rng.random() >= self._chance:
            return feedback
        right = view.goals.union(feedback.liked)
        wrong = [place for place, image_id in enumerate(view.candidates) if image_id not in right]
        if not wrong:
            return feedback
        drawn = sorted(rng.sample(wrong, min(len(wrong), max(1, len(feedback.liked)))))
        liked = tuple(view.candidates[place] for place in drawn)
        return Feedback(liked, tuple(image_id for image_id in feedback.disliked if image_id not in liked))


class ImpatientUser:
    """Abandons the search after so many rounds in a row without progress, as the inner user judges it.

    The first pick is progress, then each pick nearer to the goal than all before it (for the ground-truth
    user: any round with something it was looking for). The round in which it abandons has no feedback.
    """

    def __init__(self, inner: JudgingUser, patience: int) -> None:
        """Wraps a user.

        Args:
            inner: The user.
            patience: Rounds without progress that it takes; at least 1.

        Raises:
            ValueError: If there is no patience at all.
        """
        if patience < 1:
            raise ValueError(f"user patience: got {patience}, expected at least 1 round")
        self._inner = inner
        self._patience = patience

    def judge(self, views: Sequence[View]) -> list[Feedback]:
        """Judges as the inner user, until it abandons the search."""
        return [
            Feedback(abandons=True)
            if self.rounds_without_progress(view, feedback.liked) >= self._patience
            else feedback
            for view, feedback in zip(views, self._inner.judge(views), strict=True)
        ]

    def improves(self, view: View, liked: tuple[str, ...]) -> bool:
        """Judges progress as the inner user."""
        return self._inner.improves(view, liked)

    def rounds_without_progress(self, view: View, liked: tuple[str, ...]) -> int:
        """Counts the latest rounds, this one included, since the last one with progress."""
        picks = (*view.liked_before, liked)
        for number in reversed(range(len(picks))):
            if self._inner.improves(replace(view, liked_before=picks[:number]), picks[number]):
                return len(picks) - 1 - number
        return len(picks)


class TellingUser:
    """Besides pointing, says one more thing every round, from what people wrote about the goal.

    May see: the phrases of the goal that the query does not hold, see `feedback.phrases`.
    """

    def __init__(self, inner: JudgingUser, phrases: Callable[[str], Sequence[str]]) -> None:
        """Wraps a user.

        Args:
            inner: The user who points.
            phrases: Query id to what can be said, one phrase a round from round 0.
        """
        self._inner = inner
        self._phrases = phrases

    def judge(self, views: Sequence[View]) -> list[Feedback]:
        """Judges as the inner user, and says this round's phrase while there is one."""
        feedbacks = []
        for view, feedback in zip(views, self._inner.judge(views), strict=True):
            phrase = next(iter(self._phrases(view.query_id)[view.round_number :]), "")
            feedbacks.append(replace(feedback, said=phrase))
        return feedbacks

    def improves(self, view: View, liked: tuple[str, ...]) -> bool:
        """Judges progress as the inner user."""
        return self._inner.improves(view, liked)


def caption_vectors(images: Sequence[Image], encode: Encode) -> Encode:
    """Makes image vectors of people's captions: the mean of the embeddings of an image's captions.

    Args:
        images: With captions; encoded once, all together, when the first is asked for.
        encode: Texts to (n, d) float32 unit rows; with the retriever's own encoder the user would not be
            independent.

    Returns:
        Image ids to (n, d) float32 unit rows.

    Raises:
        ValueError: If an image has no captions.
    """
    check_captioned(images)
    place = {image.id: row for row, image in enumerate(images)}

    @cache
    def matrix() -> np.ndarray:
        means = [rows.mean(axis=0) for rows in _caption_rows(images, encode).values()]
        return np.stack([mean / max(float(np.linalg.norm(mean)), 1e-12) for mean in means])

    return lambda ids: matrix()[[place[image_id] for image_id in ids]]


def _caption_rows(images: Sequence[Image], encode: Encode) -> dict[str, np.ndarray]:
    """Encodes all captions together; returns the rows of each image's."""
    rows = encode([caption for image in images for caption in image.captions])
    ends = np.cumsum([len(image.captions) for image in images])
    return {image.id: part for image, part in zip(images, np.split(rows, ends[:-1]), strict=True)}


def check_captioned(images: Sequence[Image]) -> None:
    """Makes sure that a user who judges by captions can judge all images; ValueError if one has none."""
    bare = [image.id for image in images if not image.captions]
    if bare:
        raise ValueError(
            f"{len(bare)} of {len(images)} images have no caption, first {bare[0]}: a user who judges by "
            "people's captions needs those of all images; choose another user, or a --split whose images "
            "all have some"
        )


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
