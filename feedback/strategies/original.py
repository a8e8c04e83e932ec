"""No feedback: the person's own words again. With shown images removed, this is scrolling down the list."""

from __future__ import annotations

from collections.abc import Sequence

from feedback.history import History, NextQuery
from retriever import SearchQuery


class Original:
    """Searches the original words in every round."""

    needs_captions = False

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns the original words of each session."""
        return [NextQuery(SearchQuery(text=history.words)) for history in histories]
