"""Words that carry meaning, and what a caption says beyond a query."""

from __future__ import annotations

import re
from collections.abc import Sequence

_FUNCTION_WORDS = frozenset(
    (
        "a", "an", "the", "of", "in", "on", "at", "by", "to", "and", "or", "with", "is", "are", "there",
        "this", "that", "it", "some", "we", "see", "i", "want", "show", "me", "looking", "for", "image",
        "picture", "photo",
    )
)  # fmt: skip
_LINKS = frozenset(
    (
        "about", "above", "across", "against", "along", "around", "as", "behind", "below", "beside",
        "between", "down", "during", "from", "inside", "into", "near", "next", "off", "onto", "over", "out",
        "through", "toward", "towards", "under", "up", "upon", "while", "who", "which", "has", "have",
        "was", "were", "being", "its", "his", "her", "their",
    )
)  # fmt: skip
_BEFORE = (
    "with|in|on|at|by|and|while|is|are|as|that|who|which|near|next|beside|behind|under|over|above|below|from|"
    "into|onto|through|around|during|there"
)
_PHRASE_ENDS = re.compile(rf"[.,;:!?]|\s(?=(?:{_BEFORE})\s)")


def content_words(text: str) -> frozenset[str]:
    """Returns the words of a text that carry meaning, in lower case."""
    return frozenset(re.findall(r"\w+", text.lower())) - _FUNCTION_WORDS


def phrases_unsaid(words: str, captions: Sequence[str]) -> list[str]:
    """Lists what captions say and words do not, phrase by phrase, in order.

    A caption is cut at punctuation, and before prepositions, conjunctions and forms of "to be". A phrase
    counts if it holds a word with meaning that neither the words nor an earlier phrase hold.

    Args:
        words: Of the query.
        captions: What people wrote about the image in mind.
    """
    said = set(content_words(words))
    phrases = []
    for caption in captions:
        for phrase in _PHRASE_ENDS.split(caption.lower()):
            if new := content_words(phrase) - _LINKS - said:
                phrases.append(phrase.strip())
                said |= new
    return phrases
