"""How feedback moves the words: appended, rewritten, guarded."""

from typing import get_args

import numpy as np
import pytest
from conftest import IMAGE_IDS, KnownCaptions, Merger, WordEncoder
from hypothesis import given
from hypothesis import strategies as st

from feedback.history import History, Turn
from feedback.strategies import STRATEGIES, make_strategy
from feedback.strategies.anchored import WEIGHT, Anchored
from feedback.strategies.append import Append
from feedback.strategies.collection import Collection
from feedback.strategies.original import Original
from feedback.strategies.rewrite import Rewrite, content_words, fault_of
from settings import MovingStrategyName


class Says:
    """A rewriter that says what it is told to; keeps what it was asked."""

    def __init__(self, *answers):
        self.answers, self.pairs, self.calls = list(answers), [], 0

    def rewrite(self, queries, captions):
        self.calls += 1
        self.pairs += zip(queries, captions, strict=True)
        return [self.answers.pop(0) for _ in queries]


def history(*turns):
    """Turns as (text, caption, caption, ...)."""
    return History(
        tuple(
            Turn(text, (), tuple(f"id{n}" for n in range(len(said))), (), tuple(said))
            for text, *said in turns
        )
    )


def texts(searches):
    return [search.search.text for search in searches]


def test_original_repeats_the_words():
    histories = [history(("a dog", "a cat")), history(("fish", "x"), ("fish, x", "y"))]
    assert texts(Original().next(histories)) == ["a dog", "fish"]
    assert not Original().needs_captions


def test_append_joins_the_words_and_every_caption_once():
    histories = [
        history(("a dog", "a red dog")),
        history(("a dog", "a red dog"), ("ignored", "a blue dog")),
        history(("a dog", "a red dog"), ("ignored",), ("ignored", "a red dog", "grass")),
        history(("a dog",)),
        history(("a dog", "a dog")),
    ]
    assert texts(Append().next(histories)) == [
        "a dog, a red dog",
        "a dog, a red dog, a blue dog",
        "a dog, a red dog, grass",
        "a dog",
        "a dog",
    ]
    assert Append().needs_captions


def test_rewrite_takes_the_last_query_and_the_last_captions():
    says = Says("red dog field", "blue dog")
    histories = [
        history(("dog", "a cat"), ("dog cat", "a red dog", "field")),
        history(("dog", "a blue dog")),
    ]
    assert texts(Rewrite(says, from_original=False).next(histories)) == ["red dog field", "blue dog"]
    assert says.pairs == [("dog cat", "a red dog, field"), ("dog", "a blue dog")]
    assert says.calls == 1


def test_rewriting_from_the_original_takes_the_own_words_and_all_captions():
    says = Says("red dog field", "dog")
    histories = [
        history(("dog", "a cat"), ("dog cat", "a red dog", "a cat")),
        history(("dog", "a dog")),
    ]
    searches = Rewrite(says, from_original=True).next(histories)
    assert texts(searches) == ["red dog field", "dog"]
    assert says.pairs == [("dog", "a cat, a red dog"), ("dog", "a dog")]
    assert [search.fallback for search in searches] == ["", ""]


@pytest.mark.parametrize("from_original", [True, False])
def test_a_rewrite_that_fails_the_guard_becomes_the_appended_query(from_original):
    says = Says("", "a cat", "a brown dog and many words more than anybody said", "a brown dog")
    asked = history(("a brown dog", "a cat"), ("lost", "a horse"))
    empty, drifted, long, good = Rewrite(says, from_original).next([asked] * 4)
    assert {search.search.text for search in (empty, drifted, long)} == {"a brown dog, a cat, a horse"}
    assert (empty.fallback, drifted.fallback) == ("empty", "kept 0 of the 2 words asked for")
    assert long.fallback == "longer than query and caption together"
    assert (good.search.text, good.fallback) == ("a brown dog", "")


@pytest.mark.parametrize("from_original", [True, False])
def test_sessions_without_a_pick_stay_and_the_others_keep_their_answers(from_original):
    says = Says("dog one", "dog three")
    histories = [history(("dog", "one")), history(("dog two",)), history(("dog", "three"))]
    searches = Rewrite(says, from_original).next(histories)
    assert texts(searches) == ["dog one", "dog two", "dog three"]
    assert says.pairs == [("dog", "one"), ("dog", "three")]


@pytest.mark.parametrize(
    ("words", "rewrite", "fault"),
    [
        ("a brown dog", "a brown dog in a field", ""),
        ("a brown dog", "a brown dog in the field, one", ""),  # seven words, as said
        ("a brown dog", "a brown dog in the field, one two", "longer than query and caption together"),
        ("a brown dog", "the DOG, running", ""),  # half of the words
        ("a brown dog", "a cat", "kept 0 of the 2 words asked for"),
        ("a big brown dog", "a dog", "kept 1 of the 3 words asked for"),
        ("a brown dog", "", "empty"),
        ("a picture of the", "anything", ""),
        ("dog", "hotdogs", "kept 0 of the 1 words asked for"),
    ],
)
def test_the_guard(words, rewrite, fault):
    assert fault_of(rewrite, words, words, "in the field, one") == fault


@given(st.lists(st.sampled_from(["dog", "red", "the", "of", "field", "two"]), min_size=1).map(" ".join))
def test_what_keeps_all_words_passes_the_guard(words):
    assert fault_of(words, words, words, "") == ""
    assert fault_of(f"{words} and more", words, words, "and more") == ""
    assert not content_words(words) & {"the", "of"}


def test_content_words_are_lower_case_and_without_function_words():
    assert content_words("A Dog, the dog's bone and I") == {"dog", "s", "bone"}
    assert content_words("the image of") == frozenset()
    assert content_words("Ein Löwe") == {"ein", "löwe"}


def test_anchoring_keeps_the_own_words_in_the_vector():
    histories = [history(("a dog", "a red cat")), history(("a fish",))]
    inner = Append()
    anchored = Anchored(inner, WordEncoder().encode_texts)
    assert anchored.needs_captions == inner.needs_captions
    for moved, search in zip(inner.next(histories), anchored.next(histories), strict=True):
        assert (search.search.text, search.fallback) == (moved.search.text, moved.fallback)
    for told, search in zip(histories, anchored.next(histories), strict=True):
        words, text = WordEncoder().encode_texts([told.words, search.search.text])
        assert search.search.vector == pytest.approx(words + WEIGHT * text)


def test_anchoring_keeps_the_fallbacks():
    (search,) = Anchored(Rewrite(Says(""), True), WordEncoder().encode_texts).next([history(("a", "b"))])
    assert (search.search.text, search.fallback) == ("a, b", "empty")


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_by_name(name, retriever):
    merger = Merger()
    collection = Collection(retriever, KnownCaptions().captions_of, lambda texts, ids: np.full(len(ids), 0.5))
    made = make_strategy(name, merger, collection)
    told = [
        Turn("a dog", tuple(IMAGE_IDS[:2]), (IMAGE_IDS[0],), (), ("a red cat",)),
        Turn("words", tuple(IMAGE_IDS[2:4]), (IMAGE_IDS[2],), (), ("grass",)),
    ]
    (query,) = made.next([History(tuple(told))])
    appended, rewritten = "a dog, a red cat, grass", "a dog red cat grass"
    texts = {  # of the others "a dog"; `rewrite-chosen` finds that it agrees best with the pictures
        "append": appended,
        "append-anchored": appended,
        "rewrite": appended,  # "words grass" lost the dog
        "rewrite-original": rewritten,
        "rewrite-anchored": rewritten,
        "fusion": appended,
        "slerp": appended,
        "score-fusion": appended,
        "rrf": appended,
        "rewrite-bayes": rewritten,
    }
    assert query.search.text == texts.get(name, "a dog")
    words_alone = name in ("original", "append", "rewrite", "rewrite-original")
    moves = name in get_args(MovingStrategyName)
    assert (query.search.vector is not None) == (moves and not words_alone)
    assert (query.search.scores is not None) == (not moves)
    assert bool(merger.pairs) == name.startswith("rewrite")


def test_unknown_strategies_and_missing_parts_are_errors(retriever):
    with pytest.raises(ValueError, match="got 'rocket', expected one of original, append"):
        make_strategy("rocket")
    for name in ("rewrite", "rewrite-original", "rewrite-anchored"):
        with pytest.raises(ValueError, match=f"strategy {name} needs a rewriter"):
            make_strategy(name, None, Collection(retriever))
    with pytest.raises(ValueError, match="rewrite-anchored needs the collection"):
        make_strategy("rewrite-anchored", Merger(), None)
