"""What a model wrote becomes one clean line, or none; what people wrote becomes safe in a prompt."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_LEAD_INS = re.compile(
    r"^(?:rewritten query|new query|query|combined|caption|answer|output)\s*:\s*", re.IGNORECASE
)
# What chat templates write as plain words, which no tokenizer lists: Llama 2's and Mistral's.
_TEMPLATE_WORDS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
_LETTERS_PER_WORD = 10  # more than languages have on average: bounds a "word" without end
_QUOTES = "\"'`“”‘’"


def plain_text(text: str, special_tokens: Iterable[str] = (), max_words: int | None = None) -> str:
    """Makes foreign text safe for a prompt: one line, no control characters, no tokens of a chat template.

    `special_tokens` are the tokenizer's. Cut to `max_words`, which are at most 10 letters each on average,
    so that one word of 100,000 letters is cut as well.
    """
    if max_words is not None:  # first: the rest takes time for every letter
        text = text[: 4 * _LETTERS_PER_WORD * max_words]
    for token in (*special_tokens, *_TEMPLATE_WORDS):
        text = text.replace(token, " ")
    text = "".join(
        " " if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") else letter for letter in text
    )
    words = text.split()
    if max_words is None:
        return " ".join(words)
    return " ".join(words[:max_words])[: _LETTERS_PER_WORD * max_words].rstrip()


def one_line(text: str, max_words: int, special_tokens: Iterable[str] = (), prompt: str = "") -> str:
    """Takes the answer out of what a model wrote after its prompt.

    Returns:
        The first line that says something, without lead-in ("Rewritten query:"), quotes or special tokens;
        cut as `plain_text` cuts; a phrase repeated without end is kept once. Empty when nothing was said, or
        nothing but the prompt again.
    """
    special = tuple(special_tokens)
    told = plain_text(prompt, special)
    lines_told = {plain_text(line, special) for line in prompt.splitlines()}
    said = plain_text(text[: 2 * len(prompt) + 4 * _LETTERS_PER_WORD * max_words], special) if told else ""
    if told and said.startswith(told):
        text = said[len(told) :]
    for written in text.splitlines():
        line, longer = plain_text(written, special, 4 * max_words), None
        if line in lines_told:
            continue
        while line != longer:  # taking one thing off may bare another
            line, longer = _shortened(line, max_words), line
        if any(letter.isalnum() for letter in line):
            return line
    return ""


def _shortened(line: str, max_words: int) -> str:
    words = _LEAD_INS.sub("", line).strip(_QUOTES + " ").split(" ")
    kept = " ".join(_without_loop(words)[:max_words])
    return kept[: _LETTERS_PER_WORD * max_words].rstrip(" ,;:-")


def _without_loop(words: list[str]) -> list[str]:
    """Keeps a phrase once where it begins a third turn in a row; a second, if it is of four words or more."""
    for start in range(len(words)):
        for length in range(1, (len(words) - start) // 2 + 1):
            phrase = words[start : start + length]
            turns = 2 if length >= 4 else 3
            if words[start : start + turns * length] == phrase * turns:
                return words[: start + length]
    return words
