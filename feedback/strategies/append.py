"""Appending: the words, then the caption of every picked image, joined by commas as ChatIR does.

Source: Levy et al. 2023, Chatting Makes Perfect (arXiv 2305.20062), for the join.
"""

from __future__ import annotations

from collections.abc import Sequence

from feedback.history import History, NextQuery
from retriever import SearchQuery


class Append:
    """Adds the captions of the picked images to the query; without a pick the query stays."""

    needs_captions = True

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns ``words, caption, caption, ...``; a caption that is there already is not said twice."""
        return [NextQuery(SearchQuery(text=appended(history))) for history in histories]


def appended(history: History) -> str:
    """Joins the words and all captions so far."""
    captions = (caption for turn in history.turns for caption in turn.captions)
    return ", ".join(dict.fromkeys((history.words, *captions)))
