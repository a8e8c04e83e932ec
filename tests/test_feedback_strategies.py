"""Strategies that move words or one vector: against their formulas, and guarded against bad rewrites."""

import math
from typing import get_args

import numpy as np
import pytest
from conftest import IMAGE_IDS, Merger, WordEncoder, caption_of, world_caption_vectors

from feedback.history import History, NextQuery, Turn
from feedback.phrases import content_words
from feedback.strategies import STRATEGIES, make_strategy
from feedback.strategies.anchored import OWN, WEIGHT, Anchored, Chosen
from feedback.strategies.collection import Collection
from feedback.strategies.fusion import CAPTION, IMAGE, STEP, slerp
from feedback.strategies.rewrite import Rewrite, fault_of
from feedback.strategies.rocchio import LIKED, PASSED, passed_over
from feedback.strategies.words import Append, Original
from retriever import SearchQuery
from settings import MovingStrategyName, StrategyName

A, B, C, D, E, F = IMAGE_IDS[:6]
VECTOR_MOVERS = ("rocchio", "fusion", "slerp")


@pytest.fixture(scope="module")
def collection(retriever):
    return Collection(retriever)


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


def turn(shown=(), liked=(), disliked=()):
    return Turn("dog", tuple(shown), tuple(liked), tuple(disliked), tuple(map(caption_of, liked)))


def texts(searches):
    return [search.search.text for search in searches]


def vector_of(text):
    return [float(value) for value in WordEncoder().encode_texts([text])[0]]


def mean(vectors):
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]


# The registry


def test_the_registry_and_the_settings_know_the_same_names():
    assert tuple(STRATEGIES) == get_args(StrategyName)
    moving = tuple(name for name, entry in STRATEGIES.items() if entry.moves_query)
    assert moving == get_args(MovingStrategyName)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_uses_what_its_entry_says_and_nothing_else(name, retriever):
    entry, merger, opened = STRATEGIES[name], Merger(), []
    collection = Collection(
        retriever,
        lambda texts, ids: np.full(len(ids), 0.5),
        lambda: opened.append("captions") or world_caption_vectors(),
    )
    made = make_strategy(name, merger, collection)
    told = (
        Turn("a dog", (A, B), (A,), (), ("a red cat",)),
        Turn("words", (C, D), (C,), (), ("grass",)),
    )
    (query,) = made.next([History(told)])
    appended, rewritten = "a dog, a red cat, grass", "a dog red cat grass"
    expected = {  # of the others "a dog"; `rewrite-chosen` finds that it agrees best with the pictures
        "append": appended, "append-anchored": appended, "fusion": appended, "slerp": appended,
        "score-fusion": appended, "rrf": appended,
        "rewrite": appended,  # "words grass" lost the dog
        "rewrite-original": rewritten, "rewrite-anchored": rewritten, "rewrite-bayes": rewritten,
    }  # fmt: skip
    assert query.search.text == expected.get(name, "a dog")
    assert made.needs_captions == entry.needs_captions
    assert bool(merger.pairs) == entry.needs_rewriter
    assert bool(opened) == entry.captions_collection
    assert (query.search.scores is None) == entry.moves_query
    assert (query.search.vector is not None) == (entry.moves_query and entry.needs_collection)
    if not entry.needs_rewriter:
        assert make_strategy(name, None, collection)
    if not entry.needs_collection:
        assert make_strategy(name, merger, None)


def test_unknown_strategies_and_missing_parts_are_errors(retriever):
    with pytest.raises(ValueError, match="got 'rocket', expected one of original, append"):
        make_strategy("rocket")
    for name, entry in STRATEGIES.items():
        if entry.needs_rewriter:
            with pytest.raises(ValueError, match=f"strategy {name} needs a rewriter"):
                make_strategy(name, None, Collection(retriever))
        if entry.needs_collection:
            with pytest.raises(ValueError, match=f"strategy {name} needs the collection"):
                make_strategy(name, Merger(), None)


# Words


def test_original_repeats_the_words():
    histories = [history(("a dog", "a cat")), history(("fish", "x"), ("fish, x", "y"))]
    assert texts(Original().next(histories)) == ["a dog", "fish"]


def test_append_joins_the_words_and_every_caption_once():
    histories = [
        history(("a dog", "a red dog"), ("ignored", "a blue dog")),
        history(("a dog", "a red dog"), ("ignored",), ("ignored", "a red dog", "grass")),
        history(("a dog",)),
        history(("a dog", "a dog")),
    ]
    assert texts(Append().next(histories)) == [
        "a dog, a red dog, a blue dog",
        "a dog, a red dog, grass",
        "a dog",
        "a dog",
    ]


def test_rewrite_takes_the_last_query_or_the_own_words_with_all_captions():
    histories = [
        history(("dog", "a cat"), ("dog cat", "a red dog", "a cat")),
        history(("dog", "a blue dog")),
    ]
    for from_original, pairs in (
        (False, [("dog cat", "a red dog, a cat"), ("dog", "a blue dog")]),
        (True, [("dog", "a cat, a red dog"), ("dog", "a blue dog")]),
    ):
        says = Says("red dog field", "blue dog")
        searches = Rewrite(says, from_original).next(histories)
        assert texts(searches) == ["red dog field", "blue dog"]
        assert [search.fallback for search in searches] == ["", ""]
        assert says.pairs == pairs and says.calls == 1


@pytest.mark.parametrize("from_original", [True, False])
def test_a_rewrite_that_fails_the_guard_becomes_the_appended_query(from_original):
    says = Says("", "a cat", "a brown dog and many words more than anybody said", "a brown dog")
    asked = history(("a brown dog", "a cat"), ("lost", "a horse"))
    empty, drifted, long, good = Rewrite(says, from_original).next([asked] * 4)
    assert {search.search.text for search in (empty, drifted, long)} == {"a brown dog, a cat, a horse"}
    assert (empty.fallback, drifted.fallback) == ("empty", "kept 0 of the 2 words asked for")
    assert long.fallback == "longer than query and caption together"
    assert (good.search.text, good.fallback) == ("a brown dog", "")


def test_without_its_guard_a_rewrite_is_taken_as_it_is_unless_it_is_empty():
    says = Says("", "something else altogether")
    says.guarded = False
    empty, drifted = Rewrite(says, from_original=False).next([history(("a brown dog", "a cat"))] * 2)
    assert (empty.search.text, empty.fallback) == ("a brown dog, a cat", "empty")
    assert (drifted.search.text, drifted.fallback) == ("something else altogether", "")


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


@pytest.mark.parametrize(
    ("from_original", "pairs"),
    [
        (False, [("a dog", "on grass, a red cat"), ("later", "by night")]),
        (True, [("a dog", "on grass, a red cat"), ("a dog", "on grass, by night, a red cat")]),
    ],
)
def test_rewriting_merges_what_was_said_and_the_captions(from_original, pairs):
    first = Turn("a dog", (A,), (A,), (), ("a red cat",), "on grass")
    rewriter = Says("a dog on grass", "a dog on grass by night")
    strategy = Rewrite(rewriter, from_original)
    strategy.next([History((first,))])
    strategy.next([History((first, Turn("later", (B,), (), (), (), "by night")))])
    assert rewriter.pairs == pairs
    assert Original().next([History((first,))])[0].search.text == "a dog, on grass"


def test_content_words_are_lower_case_and_without_function_words():
    assert content_words("A Dog, the dog's bone and I") == {"dog", "s", "bone"}
    assert content_words("the image of") == frozenset()
    assert content_words("Ein Löwe") == {"ein", "löwe"}


def test_anchoring_keeps_the_own_words_in_the_vector_and_the_fallback():
    histories = [history(("a dog", "a red cat")), history(("a fish", "b"))]
    anchored = Anchored(Rewrite(Says("a dog red", ""), True), WordEncoder().encode_texts).next(histories)
    assert [(search.search.text, search.fallback) for search in anchored] == [
        ("a dog red", ""),
        ("a fish, b", "empty"),
    ]
    for told, search in zip(histories, anchored, strict=True):
        words, text = WordEncoder().encode_texts([told.words, search.search.text])
        assert search.search.vector == pytest.approx(words + WEIGHT * text)


class Writes:
    """A strategy that writes what it is told to, or the words."""

    def __init__(self, text="", needs_captions=False):
        self.text, self.needs_captions = text, needs_captions

    def next(self, histories):
        return [NextQuery(SearchQuery(self.text or told.words), self.text) for told in histories]


def test_the_candidate_that_the_liked_images_agree_with_is_chosen(collection):
    said = [caption_of(image_id) for image_id in IMAGE_IDS[:40]]
    chosen = Chosen([Writes(text) for text in said], collection)
    for liked in ([A], [B, C]):
        (query,) = chosen.next([History((turn([A, B, C], liked),))])
        picture = mean([vector_of(image_id) for image_id in liked])
        goal = [v + OWN * w for v, w in zip(picture, vector_of("dog"), strict=True)]
        scores = [sum(x * y for x, y in zip(vector_of(text), goal, strict=True)) for text in said]
        best = max(range(len(said)), key=lambda number: (round(scores[number], 5), -number))
        assert query.search.text == query.fallback == said[best]


def test_without_a_like_and_of_equals_the_first_candidate_is_taken(collection):
    chosen = Chosen([Writes("fish"), Writes("dog")], collection)
    assert chosen.next([History((turn([A, B]),))])[0].search.text == "fish"
    equal = Chosen([Writes("red dog"), Writes("dog red")], collection)
    assert equal.next([History((turn([A], [A]),))])[0].search.text == "red dog"
    assert not chosen.needs_captions and Chosen([Writes(), Writes("x", True)], collection).needs_captions


# Vectors


def moved(collection, name, *turns):
    (query,) = make_strategy(name, None, collection).next([History(turns)])
    assert query.search.scores is None and not query.fallback
    return query.search


@pytest.mark.parametrize("name", VECTOR_MOVERS)
def test_without_feedback_the_words_are_searched(collection, name):
    for told in ([turn()], [turn([A, B])], [turn([A]), turn([B])]):
        search = moved(collection, name, *told)
        assert search.text == "dog"
        assert search.vector == pytest.approx(vector_of("dog"))


def test_rocchio_by_its_formula(collection):
    search = moved(collection, "rocchio", turn([A, B, C], [A], [C]), turn([D, E], [D]))
    liked, passed = (mean([vector_of(i) for i in ids]) for ids in ([A, D], [C, B, E]))
    expected = [
        w + LIKED * plus - PASSED * minus
        for w, plus, minus in zip(vector_of("dog"), liked, passed, strict=True)
    ]
    assert search.vector == pytest.approx(expected, abs=1e-6)
    words = np.array(vector_of("dog"))
    only_liked = moved(collection, "rocchio", turn([A], [A])).vector
    assert only_liked == pytest.approx(words + LIKED * np.array(vector_of(A)), abs=1e-6)
    only_disliked = moved(collection, "rocchio", turn([A, B], [], [B])).vector
    assert only_disliked == pytest.approx(words - PASSED * np.array(vector_of(B)), abs=1e-6)


def test_images_are_passed_over_beside_a_pick_and_when_turned_down():
    assert passed_over(History((turn([A, B]),))) == []
    assert passed_over(History((turn([A, B, C], [B]),))) == [A, C]
    assert passed_over(History((turn([A, B, C], [B], [C]), turn([D], [], [D])))) == [C, A, D]


def test_fusion_by_its_formula(collection):
    search = moved(collection, "fusion", turn([A, B], [A, B]), turn([C], [C]))
    said, seen = (
        mean([vector_of(text) for text in described]) for described in (map(caption_of, (A, B, C)), (A, B, C))
    )
    expected = [w + CAPTION * c + IMAGE * v for w, c, v in zip(vector_of("dog"), said, seen, strict=True)]
    assert search.vector == pytest.approx(expected, abs=1e-6)
    assert search.text == f"dog, {caption_of(A)}, {caption_of(B)}, {caption_of(C)}"


def test_slerp_by_its_formula(collection):
    search = moved(collection, "slerp", turn([A], [A]), turn([B], [B]), turn([A], [A]))
    query = vector_of("dog")
    for image_id in (A, B):  # the caption that comes again turns nothing
        end = vector_of(caption_of(image_id))
        angle = math.acos(sum(x * y for x, y in zip(query, end, strict=True)))
        query = [
            (math.sin((1 - STEP) * angle) * x + math.sin(STEP * angle) * y) / math.sin(angle)
            for x, y in zip(query, end, strict=True)
        ]
    assert search.vector == pytest.approx(query, abs=1e-6)
    assert np.linalg.norm(search.vector) == pytest.approx(1, abs=1e-5)


def test_slerp_goes_from_start_to_end_and_stays_where_there_is_no_one_way():
    x, y = np.eye(2, dtype=np.float32)
    assert slerp(x, y, 0) == pytest.approx(x, abs=1e-6)
    assert slerp(x, y, 1) == pytest.approx(y, abs=1e-6)
    assert slerp(x, y, 1 / 3) == pytest.approx([math.cos(math.pi / 6), math.sin(math.pi / 6)], abs=1e-6)
    assert slerp(x, x, 0.5) is x and slerp(x, -x, 0.5) is x


def test_images_of_another_index_are_errors(collection):
    for name in ("rocchio", "fusion"):
        with pytest.raises(ValueError, match="got image id 'pink-dog-moon'"):
            make_strategy(name, None, collection).next(
                [History((Turn("dog", ("pink-dog-moon",), ("pink-dog-moon",), (), ()),))]
            )
