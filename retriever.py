"""Text and pictures to rankings: one encoder and the index that it made.

A query travels through the rounds as a `SearchQuery`: words, a vector, or scores of all images. Words and
vectors become unit rows here; then the query is searched and ranked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from index.encoder import Encoder, checked_rows
from index.faiss_index import FaissIndex, ImageIndex, Ranking
from index.scores import Exclusions, best_rows, excluded_rows, target_rows

BATCH_SIZE = 64
ROUNDING = 1e-6  # a float32 row that was scaled to length 1 is no farther from it


@dataclass(frozen=True, eq=False)
class SearchQuery:
    """What to search for: words, a vector, or scores of all images; an empty or wrong one is a ValueError.

    Attributes:
        text: The words; encoded when there is no vector.
        vector: (d,) floats, of which only the direction counts; it wins over the text.
        scores: (images,) float32 in the index's order, the higher first, for what no vector can say; they win
            over vector and text.
    """

    text: str | None = None
    vector: np.ndarray | None = None
    scores: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.scores is not None:
            scores = np.asarray(self.scores)
            if scores.ndim != 1 or scores.dtype != np.float32:
                raise ValueError(
                    f"search query: got scores of shape {scores.shape} and dtype {scores.dtype}, "
                    "expected one dimension of float32"
                )
            if not np.isfinite(scores).all():
                raise ValueError("search query: got scores with NaN or infinity, expected finite numbers")
        if self.vector is not None:
            vector = np.asarray(self.vector)
            if vector.ndim != 1 or vector.dtype.kind != "f":
                raise ValueError(
                    f"search query: got a vector of shape {vector.shape} and dtype {vector.dtype}, "
                    "expected one dimension of floats"
                )
            if not np.isfinite(vector).all() or not vector.any():
                raise ValueError(
                    "search query: got a vector of zeros, or with NaN or infinity, expected a direction"
                )
        elif self.scores is None and (self.text is None or not self.text.strip()):
            raise ValueError(f"search query: got text {self.text!r}, expected words, or a vector instead")


class Retriever:
    """An encoder of texts and pictures, and an index of its vectors."""

    def __init__(self, encoder: Encoder, index: ImageIndex, batch_size: int = BATCH_SIZE) -> None:
        """Joins the two; `batch_size` texts or pictures go to one call of the encoder.

        Raises ValueError if the index is another model's; of one in memory only the dimension can be checked.
        """
        if batch_size < 1:
            raise ValueError(f"batch size: got {batch_size}, expected at least 1")
        made_by = index.manifest.model_fingerprint if index.manifest else encoder.fingerprint
        if (made_by, index.dimension) != (encoder.fingerprint, encoder.dimension):
            raise ValueError(
                f"the index belongs to another model: got {made_by} with dimension {index.dimension}, "
                f"expected {encoder.fingerprint} with {encoder.dimension}; "
                "choose that model, or build the index with: python embed_image_as_faiss.py"
            )
        self.encoder = encoder
        self.index = index
        self._batch_size = batch_size

    @classmethod
    def open(cls, encoder: Encoder, index_folder: Path, batch_size: int = BATCH_SIZE) -> Retriever:
        """Opens a saved index for this encoder; errors are those of `FaissIndex.open`."""
        return cls(encoder, FaissIndex.open(index_folder, encoder.fingerprint, encoder.dimension), batch_size)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes n texts, (n, d) float32 unit rows; one that is blank is a ValueError."""
        for number, text in enumerate(texts):
            if not text.strip():
                raise ValueError(f"text {number}: got {text!r}, expected words")
        return self._encoded(texts, self.encoder.encode_texts, "text vectors")

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Encodes n RGB pictures (see `index.decode.open_image`), (n, d) float32 unit rows."""
        return self._encoded(images, self.encoder.encode_images, "image vectors")

    def query_vectors(self, queries: Sequence[SearchQuery | str] | np.ndarray) -> np.ndarray:
        """Makes one unit row of each query, (q, d) float32; as `prepared`, but scores are a ValueError."""
        asked = self.prepared(queries)
        for number, query in enumerate(asked):
            if query.scores is not None:
                raise ValueError(
                    f"query {number}: got scores of all images, expected words or a vector: no single vector "
                    "stands for them; search and rank take such a query as it is"
                )
        return self._with_vectors(asked)[1]

    def prepared(self, queries: Sequence[SearchQuery | str] | np.ndarray) -> list[SearchQuery]:
        """Makes each query a unit row, unless it has scores, so that it is encoded once for search and rank.

        Args:
            queries: q queries, q texts, or their vectors (q, d) of any length above zero.

        Raises ValueError if a query is empty, or a vector does not fit the index.
        """
        asked = [_search_query(query) for query in queries]
        for number, query in enumerate(asked):
            if query.vector is not None and len(query.vector) != self.index.dimension:
                raise ValueError(
                    f"query {number}: got a vector of dimension {len(query.vector)}, "
                    f"expected {self.index.dimension} as in the index"
                )
        words = [query.text or "" for query in asked if query.vector is None and query.scores is None]
        encoded = iter(self.encode_texts(words))
        return [
            query
            if query.scores is not None
            else SearchQuery(query.text, next(encoded) if query.vector is None else _unit(query.vector))
            for query in asked
        ]

    def search(
        self,
        queries: Sequence[SearchQuery | str] | np.ndarray,
        k: int,
        exclude: Exclusions | None = None,
    ) -> list[Ranking]:
        """Lists the k best images of each query; fewer when fewer are left. A misfit is a ValueError.

        Args:
            queries: As for `prepared`.
            k: At least 1.
            exclude: For each query the image ids that may not be listed, or None.
        """
        asked = self.prepared(queries)
        excluded = excluded_rows(exclude, self.index.row_of, len(asked))
        places, vectors = self._with_vectors(asked)
        listed = iter(self.index.search(vectors, k, [excluded[place] for place in places]))
        rankings = []
        for query, left_out in zip(asked, excluded, strict=True):
            if query.scores is None:
                rankings.append(next(listed))
                continue
            scores = self._scores(query, left_out)
            best = best_rows(scores, k)
            rankings.append(Ranking(tuple(self.index.ids[row] for row in best), tuple(scores[best].tolist())))
        return rankings

    def rank(
        self,
        queries: Sequence[SearchQuery | str] | np.ndarray,
        target_ids: Sequence[str],
        exclude: Exclusions | None = None,
    ) -> np.ndarray:
        """Counts the place of a target for each query in the whole collection, (q,) int64 from 1.

        Raises ValueError if the arguments do not fit the index, or a target is excluded.
        """
        asked = self.prepared(queries)
        excluded = excluded_rows(exclude, self.index.row_of, len(asked))
        targets = target_rows(target_ids, self.index.row_of, excluded)
        places, vectors = self._with_vectors(asked)
        ranks = np.ones(len(asked), dtype=np.int64)
        ranks[places] = self.index.rank_of(
            vectors, [target_ids[place] for place in places], [excluded[place] for place in places]
        )
        for place, (query, target) in enumerate(zip(asked, targets, strict=True)):
            if query.scores is not None:
                scores = self._scores(query, excluded[place])
                goal = scores[target]
                ranks[place] += np.count_nonzero(scores > goal) + np.count_nonzero(scores[:target] == goal)
        return ranks

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Looks up the vectors of indexed images, (n, d) float32; an unknown id is a ValueError."""
        return self.index.vectors_of(ids)

    def _encoded(self, items: Sequence, encode: Callable[[list], np.ndarray], what: str) -> np.ndarray:
        parts = [np.empty((0, self.index.dimension), dtype=np.float32)]
        for first in range(0, len(items), self._batch_size):
            batch = list(items[first : first + self._batch_size])
            parts.append(checked_rows(encode(batch), len(batch), self.encoder, what))
        return np.concatenate(parts)

    def _with_vectors(self, asked: Sequence[SearchQuery]) -> tuple[list[int], np.ndarray]:
        """Returns the places of the prepared queries that have vectors and no scores, and the vectors."""
        places = [place for place, query in enumerate(asked) if query.scores is None]
        rows = np.array([asked[place].vector for place in places], dtype=np.float32)
        return places, rows.reshape(-1, self.index.dimension)

    def _scores(self, query: SearchQuery, left_out: np.ndarray) -> np.ndarray:
        """Returns a query's scores, float32, minus infinity in the rows that are left out."""
        scores = np.array(query.scores)
        if len(scores) != len(self.index):
            raise ValueError(
                f"query: got {len(scores)} scores, expected one for each of {len(self.index)} images"
            )
        scores[left_out] = -np.inf
        return scores


def _search_query(query: SearchQuery | str | np.ndarray) -> SearchQuery:
    if isinstance(query, SearchQuery):
        return query
    return SearchQuery(text=query) if isinstance(query, str) else SearchQuery(vector=query)


def _unit(vector: np.ndarray) -> np.ndarray:
    """Scales to length 1; by the largest entry first, so that no square overflows or vanishes."""
    largest = float(np.abs(vector).max())
    scaled = vector.astype(np.float64) / largest
    length = float(np.linalg.norm(scaled))
    # Scaling a unit row again would move its last bits and break ties: what `prepared` gave stays as it is.
    if abs(largest * length - 1) < ROUNDING:
        return vector.astype(np.float32)
    return (scaled / length).astype(np.float32)
