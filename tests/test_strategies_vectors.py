"""Strategies that move one query vector, against their formulas written out number by number."""

import math

import numpy as np
import pytest
from conftest import IMAGE_IDS, KnownCaptions, WordEncoder, caption_of

from feedback.history import History, NextQuery, Turn
from feedback.strategies import make_strategy
from feedback.strategies.chosen import OWN, Chosen
from feedback.strategies.collection import Collection
from feedback.strategies.fusion import CAPTION, IMAGE
from feedback.strategies.rocchio import LIKED, PASSED, passed_over
from feedback.strategies.slerp import STEP, slerp
from retriever import SearchQuery

A, B, C, D, E, F = IMAGE_IDS[:6]
NAMES = ("rocchio", "fusion", "slerp")


@pytest.fixture(scope="module")
def collection(retriever):
    return Collection(retriever, KnownCaptions().captions_of)


def turn(shown=(), liked=(), disliked=()):
    return Turn("dog", tuple(shown), tuple(liked), tuple(disliked), tuple(map(caption_of, liked)))


def vector_of(text):
    return [float(value) for value in WordEncoder().encode_texts([text])[0]]


def mean(vectors):
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def moved(collection, name, *turns):
    (query,) = make_strategy(name, None, collection).next([History(turns)])
    assert query.search.scores is None and not query.fallback
    return query.search


@pytest.mark.parametrize("name", NAMES)
def test_without_feedback_the_words_are_searched(collection, name):
    for history in ([turn()], [turn([A, B])], [turn([A]), turn([B])]):
        search = moved(collection, name, *history)
        assert search.text == "dog"
        assert search.vector == pytest.approx(vector_of("dog"))


@pytest.mark.parametrize("name", NAMES)
def test_many_sessions_move_as_each_alone(collection, name):
    strategy = make_strategy(name, None, collection)
    histories = [History((turn([A, B], [A]),)), History((turn(),)), History((turn([C], [C]), turn([D], [D])))]
    together = strategy.next(histories)
    for history, query in zip(histories, together, strict=True):
        (alone,) = strategy.next([history])
        assert alone.search.text == query.search.text
        assert alone.search.vector.tolist() == query.search.vector.tolist()


def test_rocchio_by_its_formula(collection):
    search = moved(collection, "rocchio", turn([A, B, C], [A], [C]), turn([D, E], [D]))
    liked, passed = (mean([vector_of(i) for i in ids]) for ids in ([A, D], [C, B, E]))
    expected = [
        w + LIKED * plus - PASSED * minus
        for w, plus, minus in zip(vector_of("dog"), liked, passed, strict=True)
    ]
    assert search.vector == pytest.approx(expected, abs=1e-6)
    assert search.text == "dog"
    assert not make_strategy("rocchio", None, collection).needs_captions


def test_rocchio_takes_likes_alone_and_dislikes_alone(collection):
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
        mean([vector_of(text) for text in texts]) for texts in (map(caption_of, (A, B, C)), (A, B, C))
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
    assert slerp(x, x, 0.5) is x
    assert slerp(x, -x, 0.5) is x


def test_images_of_another_index_are_errors(collection):
    for name in ("rocchio", "fusion"):
        with pytest.raises(ValueError, match="got image id 'pink-dog-moon'"):
            make_strategy(name, None, collection).next(
                [History((Turn("dog", ("pink-dog-moon",), ("pink-dog-moon",), (), ()),))]
            )


class Writes:
    """A strategy that writes what it is told to, or the words."""

    def __init__(self, text="", needs_captions=False):
        self.text, self.needs_captions = text, needs_captions

    def next(self, histories):
        return [NextQuery(SearchQuery(self.text or told.words), self.text) for told in histories]


def test_the_candidate_that_the_liked_images_agree_with_is_chosen(collection):
    texts = [caption_of(image_id) for image_id in IMAGE_IDS[:40]]
    chosen = Chosen([Writes(text) for text in texts], collection)
    for liked in ([A], [B, C]):
        (query,) = chosen.next([History((turn([A, B, C], liked),))])
        picture = mean([vector_of(image_id) for image_id in liked])
        goal = [v + OWN * w for v, w in zip(picture, vector_of("dog"), strict=True)]
        scores = [sum(x * y for x, y in zip(vector_of(text), goal, strict=True)) for text in texts]
        best = max(range(len(texts)), key=lambda number: (round(scores[number], 5), -number))
        assert query.search.text == query.fallback == texts[best]


def test_without_a_like_and_of_equals_the_first_candidate_is_taken(collection):
    chosen = Chosen([Writes("fish"), Writes("dog")], collection)
    assert chosen.next([History((turn([A, B]),))])[0].search.text == "fish"
    equal = Chosen([Writes("red dog"), Writes("dog red")], collection)
    assert equal.next([History((turn([A], [A]),))])[0].search.text == "red dog"
    assert not chosen.needs_captions and Chosen([Writes(), Writes("x", True)], collection).needs_captions
