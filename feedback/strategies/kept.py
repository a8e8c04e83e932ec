"""What strategies keep from round to round: arrays over all images, and sums that grow by a turn a round."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from feedback.history import History

KEPT = 256  # arrays, one a session: those of a batch (`query_batch`)
TURNS_AT_ONCE = 64


class KeptArrays:
    """Arrays by what they were made of, the latest `KEPT` of them."""

    def __init__(self) -> None:
        self._arrays: dict[Hashable, np.ndarray] = {}

    def take(self, made_of: Hashable) -> np.ndarray | None:
        """Returns an array, which is no longer kept."""
        return self._arrays.pop(made_of, None)

    def keep(self, made_of: Hashable, array: np.ndarray) -> None:
        """Keeps an array."""
        self._arrays[made_of] = array
        while len(self._arrays) > KEPT:
            del self._arrays[next(iter(self._arrays))]


@dataclass(frozen=True, eq=False)
class NewTurn:
    """A turn that a sum lacks.

    Attributes:
        sum: (n,) float32, of the session's earlier turns; the turn is added in place.
        history: The session.
        number: Of the turn in it, from 0.
    """

    sum: np.ndarray
    history: History
    number: int


class KeptSums:
    """A sum for each session, of what each of its turns says of all images.

    A sum is kept under the turns that it holds until the next round. Where it is kept no more its turns are
    added again, in the same order and so to the same bits.
    """

    def __init__(
        self, told: Callable[[History, int], Hashable], add: Callable[[Sequence[NewTurn]], None]
    ) -> None:
        """Takes what is summed.

        Args:
            told: All that the sum of a session's first turns depends on, so many of them.
            add: Adds turns in place; turns of one session come in their order.
        """
        self._told = told
        self._add = add
        self._kept = KeptArrays()

    def of(self, histories: Sequence[History], images: int) -> list[np.ndarray]:
        """Returns each session's sum, (images,) float32; not to be changed."""
        sums: list[np.ndarray] = []
        new: list[NewTurn] = []
        for history in histories:
            count = len(history.turns)
            known = self._kept.take(self._told(history, count - 1))
            begin = 0 if known is None else count - 1
            sums.append(np.zeros(images, np.float32) if known is None else known)
            new += [NewTurn(sums[-1], history, number) for number in range(begin, count)]
        for first in range(0, len(new), TURNS_AT_ONCE):
            self._add(new[first : first + TURNS_AT_ONCE])
        for history, known in zip(histories, sums, strict=True):
            self._kept.keep(self._told(history, len(history.turns)), known)
        return sums
