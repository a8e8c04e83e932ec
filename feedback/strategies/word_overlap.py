"""How much two captions say the same: the cosine of their content words, rare words weighing more.

    overlap(a, b) = sum over words in both of idf^2 / (|a| |b|),   idf = log(captions / those with the word)

Source: Salton and Buckley 1988 (binary term frequencies, idf, cosine normalisation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from feedback.strategies.rewrite import content_words


class WordOverlap:
    """Compares one caption with all, over an inverted list."""

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
