"""Written text kept in check: by the person's own words in the vector, and by the pictures they liked.

`Anchored` searches  unit(e(words) + WEIGHT e(text)),  where e is the retriever's text embedding and ``text``
is another strategy's query: Rocchio's formula (Rocchio 1971; Manning et al. 2008, equation 9.3) with the
words as query (alpha 1), the text as the one relevant document (beta WEIGHT) and no other (gamma 0).

`Chosen` takes, of several strategies' texts c, the one that the liked images agree with:

    argmax over c of  e(c) . (mean v(liked) + OWN e(words))

Without a like it takes the first strategy's; of equal candidates, the earlier strategy's. The language model
cannot see the picture, so this is the one place where a rewrite is held against it. Source: best-of-n
selection with image-text similarity as the judge, as CLIP ranks samples in DALL-E (Ramesh et al. 2021, arXiv
2102.12092).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from feedback.history import History, NextQuery, Strategy
from feedback.strategies.collection import Collection
from retriever import SearchQuery

WEIGHT = 0.1  # chosen on the demo's dev split, see docs/feedback.md
OWN = 0.5


class Anchored:
    """Adds the person's own words to the query vector of another strategy."""

    def __init__(self, inner: Strategy, encode: Callable[[Sequence[str]], np.ndarray]) -> None:
        """Wraps a strategy that moves the text.

        Args:
            inner: The strategy.
            encode: The retriever's text encoder: n texts to (n, d) float32 unit rows.
        """
        self._inner = inner
        self._encode = encode
        self.needs_captions = inner.needs_captions

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns the other strategy's texts, each with its anchored vector."""
        moved = self._inner.next(histories)
        anchors = self._encode([history.words for history in histories])
        texts = self._encode([query.search.text or "" for query in moved])
        return [
            NextQuery(SearchQuery(query.search.text, anchor + WEIGHT * text), query.fallback)
            for query, anchor, text in zip(moved, anchors, texts, strict=True)
        ]


class Chosen:
    """Takes for each session the candidate nearest to its liked images and its words."""

    def __init__(self, candidates: Sequence[Strategy], collection: Collection) -> None:
        """Takes the strategies that write.

        Args:
            candidates: At least one; each moves the words.
            collection: What is searched.
        """
        self._candidates = candidates
        self._collection = collection
        self.needs_captions = any(candidate.needs_captions for candidate in candidates)

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns the chosen query of each session."""
        offered = zip(*(candidate.next(histories) for candidate in self._candidates), strict=True)
        return [self._best(queries, history) for queries, history in zip(offered, histories, strict=True)]

    def _best(self, queries: Sequence[NextQuery], history: History) -> NextQuery:
        if not history.liked:
            return queries[0]
        words, *rows = self._collection.encode(
            [history.words, *(query.search.text or "" for query in queries)]
        )
        goal = self._collection.vectors_of(history.liked).mean(axis=0) + OWN * words
        return queries[int(np.argmax(np.stack(rows) @ goal))]
