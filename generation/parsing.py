"""What a model wrote becomes one clean line, or none; what people wrote becomes safe in a prompt."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_LEAD_INS = re.compile(
    r"^(?:rewritten query|new query|query|combined|caption|answer|output)\s*:\s*", re.IGNORECASE
)
_QUOTES = "\"'`“”‘’"


def plain_text(text: str, special_tokens: Iterable[str] = ()) -> str:
    """Makes foreign text safe for a prompt: one line, no control characters, no tokens of a chat template.

    Args:
        text: A person's query or a model's caption.
        special_tokens: The tokenizer's; they are taken out wherever they stand.

    Returns:
        The words, single spaces between them.
    """
    for token in special_tokens:
        text = text.replace(token, " ")
    text = "".join(
        " " if unicodedata.category(letter) in ("Cc", "Cf", "Zl", "Zp") else letter for letter in text
    )
    return " ".join(text.split())


def one_line(text: str, most_words: int, special_tokens: Iterable[str] = ()) -> str:
    """Takes the answer out of what a model wrote.

    Args:
        text: The generated part, without the prompt.
        most_words: Where to cut.
        special_tokens: The tokenizer's.

    Returns:
        The first line that says something, without lead-in ("Rewritten query:"), quotes or special tokens;
        cut to ``most_words``; a phrase repeated without end is kept once. Empty when nothing was said.
    """
    for line in text.splitlines():
        line, longer = plain_text(line, special_tokens), None
        while line != longer:  # taking one thing off may bare another
            line, longer = _shortened(line, most_words), line
        if any(letter.isalnum() for letter in line):
            return line
    return ""


def _shortened(line: str, most_words: int) -> str:
    words = _LEAD_INS.sub("", line).strip(_QUOTES + " ").split(" ")[: 4 * most_words]
    return " ".join(_without_loop(words)[:most_words]).rstrip(" ,;:-")


def _without_loop(words: list[str]) -> list[str]:
    """Keeps a phrase once where it begins a third turn in a row; a second, if it is of four words or more."""
    for start in range(len(words)):
        for length in range(1, (len(words) - start) // 2 + 1):
            phrase = words[start : start + length]
            turns = 2 if length >= 4 else 3
            if words[start : start + turns * length] == phrase * turns:
                return words[: start + length]
    return words
