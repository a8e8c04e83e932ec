"""What a person types: words, words with a sign, words that the encoder does not know.

``a red car -night +old -"palm tree"`` is "a red car", rather old, without night and palm trees. A sign counts
before a word that begins with a letter, or before words in quotes; a hyphen inside a word, a dash between
spaces and a negative number are text. The query vector of every round becomes

    e(words) + WEIGHT (sum of e(a plus) - sum of e(a minus)),

where e is the encoder's unit vector. A sign's words get an article, since encoders know captions better than
bare words. ``python -m benchmarks.signed_words`` measures WEIGHT.
"""

from __future__ import annotations

import re

import numpy as np

from index.encoder import Encoder
from retriever import Retriever

WEIGHT = 0.5  # the largest that costs less than one wanted picture in a hundred on the demo's dev split
_SIGNED = re.compile(r'(?<!\S)([+-])(?:"([^"]*\w[^"]*)"|([^\W\d_][^\s"]*))(?!\S)')

Signed = tuple[str, str]  # "+" or "-", and the words


def split_signs(text: str) -> tuple[str, tuple[Signed, ...]]:
    """Takes the signed words out of a text; returns the rest of it, and them in their order."""
    signed = tuple((sign, (quoted or word).strip()) for sign, quoted, word in _SIGNED.findall(text))
    return " ".join(_SIGNED.sub(" ", text).split()), signed


def beside_words(
    signed: tuple[Signed, ...], picture: np.ndarray | None, retriever: Retriever
) -> np.ndarray | None:
    """Returns what signed words and a picture add to the words' unit vector, (d,) float32; None for nothing.

    A picture (d,) of unit length counts as much as the words.
    """
    if not signed:
        return picture
    signs = np.array([1 if sign == "+" else -1 for sign, _ in signed], dtype=np.float32)
    steering = WEIGHT * signs @ retriever.encode_texts([f"a {words}" for _, words in signed])
    return steering if picture is None else picture + steering


def doubt(text: str, encoder: Encoder) -> str:
    """Returns a clause about a query's words where the encoder lacks half of them or more, or else nothing.

    Nothing either of encoders without `BLIP.model.BlipEncoder.unknown_words`.
    """
    unknown_words = getattr(encoder, "unknown_words", lambda text: ([], 0))
    unknown, count = unknown_words(text)
    if not unknown or 2 * len(unknown) < count:
        return ""
    names = ", ".join(f"“{word}”" for word in unknown[:5])
    return f"the search model hardly knows {names}: these pictures may be arbitrary; try simple English"
