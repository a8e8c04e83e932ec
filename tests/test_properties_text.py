"""Any text through the parsers: bounded, one line, nothing of a template left, and nothing more to do."""

import os
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from generation.parsing import one_line, plain_text

LONG = settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "100")), deadline=None)
SPECIAL = ("<|im_end|>", "<|im_start|>", "<|eot_id|>", "</s>", "<s>")
TEMPLATE = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
PIECES = (
    *SPECIAL, *TEMPLATE, "<|im_<s>start|>", "[IN</s>ST]", "<<s>s>", "[/INST", "]", "Query:", "Answer : ",
    "a", "dog", "x" * 90, "犬", "\ud800", "\x00", "\x1b[2J", "\u202e", "\u2028", "\u00ad", "\ufeff",
    "\n", "\r", "\t", " ", ",", "'", '"', "-", "e\u0301", "🐈\u200d⬛",
)  # fmt: skip
TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=40).map("".join),
    st.text(max_size=80),
    st.tuples(st.sampled_from(PIECES), st.integers(1, 3000)).map(lambda pair: pair[0] * pair[1]),
)
WORDS = st.integers(1, 60)


def assert_clean(line, max_words):
    assert not any(token in line for token in (*SPECIAL, *TEMPLATE))
    assert not any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in line)
    assert line == " ".join(line.split())
    assert len(line) <= 10 * max_words and len(line.split()) <= max_words
    line.encode("utf-8")


@LONG
@given(TEXTS, WORDS)
def test_what_people_write_is_bounded_and_clean(text, max_words):
    plain = plain_text(text, SPECIAL, max_words)
    assert_clean(plain, max_words)
    assert plain_text(plain, SPECIAL, max_words) == plain


@LONG
@given(TEXTS, TEXTS, WORDS)
def test_what_models_write_is_bounded_and_clean_whatever_the_prompt(text, prompt, max_words):
    for written in (text, prompt + text, f"{prompt}\n{text}"):
        line = one_line(written, max_words, SPECIAL, prompt)
        assert_clean(line, max_words)
        assert line == "" or any(letter.isalnum() for letter in line)
        assert one_line(line, max_words, SPECIAL) == line


@LONG
@given(TEXTS, WORDS)
def test_a_prompt_alone_is_no_answer(prompt, max_words):
    prompt = prompt[
        : 160 * max_words
    ]  # of a longer line only the beginning is read, which may end in a token
    assert one_line(prompt, max_words, SPECIAL, prompt) == ""
