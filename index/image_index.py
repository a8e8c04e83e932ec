"""What the retriever asks of an index of image vectors, wherever the vectors are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from index.exclusions import Exclusions
from index.manifest import Manifest

if TYPE_CHECKING:
    from index.faiss_index import Ranking


class ImageIndex(Protocol):
    """Unit-length vectors and image ids, by row; `FaissIndex` says what the methods take, give and raise."""

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        ...

    @property
    def manifest(self) -> Manifest | None:
        """Names the model that made the vectors; None while the index lives in memory only."""
        ...

    def __len__(self) -> int: ...

    @property
    def ids(self) -> tuple[str, ...]:
        """The image ids, by row."""
        ...

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Looks up vectors, (n, dimension) float32."""
        ...

    def search(self, vectors: np.ndarray, k: int, exclude: Exclusions | None = None) -> list[Ranking]:
        """Lists the nearest images of each query."""
        ...

    def rank_of(
        self, vectors: np.ndarray, target_ids: Sequence[str], exclude: Exclusions | None = None
    ) -> np.ndarray:
        """Counts the place of one image per query, (q,) int64 from 1."""
        ...
