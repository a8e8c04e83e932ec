"""Rewriting: a language model merges the picked image's caption, and what the person added, into the query.

Source: Enhancing Interactive Image Retrieval With Query Rewriting Using LLMs and VLMs (arXiv 2404.18746).
A model may drop what the person said, say nothing, or talk on; a guard looks at every rewrite, and what does
not pass is replaced by plain appending, with the reason. Rewriting as published has no guard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from feedback.history import History, NextQuery
from feedback.phrases import content_words
from feedback.strategies.words import appended
from retriever import SearchQuery

MIN_KEPT = 0.5  # share of the person's content words that a rewrite must keep


class Rewriter(Protocol):
    """A language model that merges a caption into a query.

    It may have an attribute ``guarded``: False takes its rewrites as they are, as the published code does.
    """

    def rewrite(self, queries: list[str], captions: list[str]) -> list[str]:
        """Returns one line a pair, in order; empty where it failed."""
        ...


class Rewrite:
    """Rewrites the query with the caption of the picked image.

    As in the paper, the model rewrites the last query with the last caption, so that a slip of one round
    stays in all later ones. With ``from_original`` it rewrites the person's own words with all captions so
    far.
    """

    needs_captions = True

    def __init__(self, rewriter: Rewriter, from_original: bool) -> None:
        self._rewriter = rewriter
        self._from_original = from_original
        self._fault_of = fault_of if getattr(rewriter, "guarded", True) else _blank

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Rewrites all sessions' queries in one call."""
        pairs = [self._pair(history) for history in histories]
        asked = [pair for pair in pairs if pair[1]]
        rewrites = iter(self._rewriter.rewrite([pair[0] for pair in asked], [pair[1] for pair in asked]))
        return [
            self._next(history, pair, next(rewrites))
            if pair[1]
            else NextQuery(SearchQuery(history.last.text))
            for history, pair in zip(histories, pairs, strict=True)
        ]

    def _pair(self, history: History) -> tuple[str, str]:
        if not self._from_original:
            return history.last.text, _merged((history.last.said, *history.last.captions))
        return history.turns[0].text, _merged((*history.said, *history.captions))

    def _next(self, history: History, pair: tuple[str, str], rewrite: str) -> NextQuery:
        fault = self._fault_of(rewrite, history.words, *pair)
        return NextQuery(SearchQuery(appended(history) if fault else rewrite), fault)


def _merged(texts: Sequence[str]) -> str:
    return ", ".join(text for text in texts if text)


def fault_of(rewrite: str, words: str, query: str, caption: str) -> str:
    """Says why a rewrite cannot be used; empty when it can.

    Args:
        rewrite: What the model wrote.
        words: The person's own words.
        query: The query it was to rewrite.
        caption: The caption it was to merge in.
    """
    if not rewrite:
        return "empty"
    if len(rewrite.split()) > len(query.split()) + len(caption.split()):
        return "longer than query and caption together"
    wanted = content_words(words)
    kept = len(wanted & content_words(rewrite))
    if wanted and kept < MIN_KEPT * len(wanted):
        return f"kept {kept} of the {len(wanted)} words asked for"
    return ""


def _blank(rewrite: str, *_: str) -> str:
    return "" if rewrite.strip() else "empty"  # nothing can be searched
