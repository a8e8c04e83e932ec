"""What a strategy may use of the collection: its vectors, its captions and the models that made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from feedback.calibration import Calibration
from index.scores import all_scores, rows_of, unit_rows
from retriever import Retriever


@dataclass(frozen=True, eq=False)
class Collection:
    """The images that are searched, as the system sees them. What people wrote about them is not among it.

    Attributes:
        retriever: Holds the image vectors, and encodes texts into the same space.
        match: n texts and n image ids to (n,) float probabilities that each text is true of its image; None
            where the model has no matching head.
        open_captions: Opens the vectors of the system's own captions, (n, e) float32 rows of the grid in the
            index's order, of unit length or zero; None where there are none.
        open_calibration: Says how much queries and picks tell in this collection; asked when it is needed.
    """

    retriever: Retriever
    match: Callable[[Sequence[str], Sequence[str]], np.ndarray] | None = None
    open_captions: Callable[[], np.ndarray] | None = None
    open_calibration: Callable[[], Calibration] = Calibration

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The image ids, by row."""
        return self.retriever.index.ids

    @cached_property
    def vectors(self) -> np.ndarray:
        """(n, d) float32 unit rows."""
        return self.retriever.vectors_of(self.ids)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.ids)}

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Looks up rows, (n,) int64.

        Raises:
            ValueError: If an id is not in the index.
        """
        return rows_of(ids, self._row_of)

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Looks up vectors, (n, d) float32; errors as `rows`."""
        return self.vectors[self.rows(ids)]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes texts, (n, d) float32 unit rows."""
        return self.retriever.encode_texts(texts)

    @cached_property
    def calibration(self) -> Calibration:
        """How much queries and picks tell."""
        return self.open_calibration()

    @cached_property
    def captions(self) -> np.ndarray:
        """(n, e) float32, the captions' vectors.

        Raises:
            ValueError: If there are none.
        """
        if self.open_captions is None:
            raise ValueError("comparing captions needs their vectors, got none; choose strategy bayes")
        return self.open_captions()

    def similarities(self, vectors: np.ndarray) -> np.ndarray:
        """Scores all images, exactly as a search does: equal images have equal scores.

        Args:
            vectors: (q, d) float32 unit rows.

        Returns:
            (q, n) float64.
        """
        return all_scores(unit_rows(vectors, self.vectors.shape[1], "query vectors"), self.vectors)
