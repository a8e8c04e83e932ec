"""Queries of words alone: the person's own, or those and the captions of what they liked.

Source: Levy et al. 2023, Chatting Makes Perfect (arXiv 2305.20062), for joining with commas.
"""

from __future__ import annotations

from collections.abc import Sequence

from feedback.history import History, NextQuery
from retriever import SearchQuery


class Original:
    """Ignores feedback: the original words in every round.

    Where shown images are removed, this is scrolling down the list.
    """

    needs_captions = False

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns the original words of each session."""
        return [NextQuery(SearchQuery(text=history.words)) for history in histories]


class Append:
    """Adds the captions of the picked images to the query; without a pick the query stays."""

    needs_captions = True

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns ``words, caption, caption, ...``, each caption once."""
        return [NextQuery(SearchQuery(text=appended(history))) for history in histories]


def appended(history: History) -> str:
    """Joins the words and all captions so far; what equals the words is not said twice."""
    return ", ".join(dict.fromkeys((history.words, *history.captions)))
