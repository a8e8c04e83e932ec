"""What makes simulated users more like people: they point at the wrong image, and they lose patience.

Each habit wraps a user and is a user itself. Both look at the same `View` as the user within, and remember
nothing: a stopped run goes on as if it had not been stopped.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from feedback.users import JudgingUser, View
from records import Feedback


class NoisyUser:
    """With probability p points at wrong candidates instead of those that the user within likes.

    Wrong candidates are those that the user within did not like and that are no goal. As many are drawn
    evenly as it liked, at least one; where there are none, it is not mistaken. What it turned down stays so,
    except what is now liked. The same seed, query and round give the same mistake; the user within has no
    part in the draw, so that all users err in the same rounds.
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
        """Judges as the user within, and errs in some rounds."""
        return [
            self._mistake(view, feedback)
            for view, feedback in zip(views, self._inner.judge(views), strict=True)
        ]

    def improves(self, view: View, liked: tuple[str, ...]) -> bool:
        """Judges progress as the user within, mistaken picks included."""
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
    """Gives up after so many rounds in a row without progress, by the judgement of the user within.

    A round is progress if its pick is nearer to the goal than every pick before it (for the ground-truth
    user: if it holds anything that was looked for). The round in which the user gives up has no feedback.
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
        """Judges as the user within, until it gives up."""
        return [
            Feedback(abandons=True)
            if self.rounds_without_progress(view, feedback.liked) >= self._patience
            else feedback
            for view, feedback in zip(views, self._inner.judge(views), strict=True)
        ]

    def improves(self, view: View, liked: tuple[str, ...]) -> bool:
        """Judges progress as the user within."""
        return self._inner.improves(view, liked)

    def rounds_without_progress(self, view: View, liked: tuple[str, ...]) -> int:
        """Counts the latest rounds, this one included, since the last that was progress."""
        picks = (*view.liked_before, liked)
        for number in reversed(range(len(picks))):
            if self._inner.improves(replace(view, liked_before=picks[:number]), picks[number]):
                return len(picks) - 1 - number
        return len(picks)
