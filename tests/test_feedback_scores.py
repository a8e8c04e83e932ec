"""Strategies that score every image, against their formulas written out image by image."""

import math

import numpy as np
import pytest
from conftest import IMAGE_IDS, Merger, WordEncoder, caption_of, world_caption_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from feedback.calibration import NOISE, Calibration
from feedback.history import History, Turn
from feedback.strategies import make_strategy
from feedback.strategies.bayes import log_ranking
from feedback.strategies.collection import Collection
from feedback.strategies.fusion import FEEDBACK, rank_credit, score_credit
from feedback.strategies.rerank import COSINE_ODDS, DEPTH, POSTERIOR_ODDS
from index.faiss_index import FaissIndex
from retriever import Retriever

A, B, C, D, E, F = IMAGE_IDS[:6]
CALIBRATION = Calibration(prior=0.03, pictures=1.7, captions=5.0)
NAMES = ("score-fusion", "rrf", "bayes", "bayes-captions", "itm", "bayes-itm", "bayes-captions-itm")


def chance(text, image_id):
    """A matching head that counts shared words."""
    return min(1.0, 0.2 + 0.3 * len(set(text.split()) & set(image_id.split("-"))))


class Match:
    def __init__(self):
        self.asked = []

    def __call__(self, texts, image_ids):
        self.asked += zip(texts, image_ids, strict=True)
        return np.array([chance(text, i) for text, i in zip(texts, image_ids, strict=True)])


@pytest.fixture
def collection(retriever):
    return Collection(retriever, Match(), world_caption_vectors, lambda: CALIBRATION)


def turn(shown=(), liked=(), disliked=(), words="red dog"):
    return Turn(words, tuple(shown), tuple(liked), tuple(disliked), tuple(map(caption_of, liked)))


def dots(text, ids=IMAGE_IDS):
    rows = WordEncoder().encode_texts([text, *ids]).astype(np.float64)
    return [float(rows[0] @ row) for row in rows[1:]]


def scores_of(collection, name, *turns):
    (query,) = make_strategy(name, Merger(), collection).next([History(turns)])
    assert query.search.scores.shape == (len(collection.ids),)
    return query.search


def order_of(scores):
    return sorted(range(len(scores)), key=lambda row: (-scores[row], row))


@pytest.mark.parametrize("name", NAMES)
def test_without_feedback_the_words_rank_all_images(collection, name):
    words = dots("red dog")
    for history in ([turn()], [turn([A, B])]):
        search = scores_of(collection, name, *history)
        assert search.text == "red dog"
        ours = [round(value, 4) for value in search.scores.tolist()]
        best = order_of([round(value, 4) for value in words])[: DEPTH + len(history[0].shown)]
        if name.endswith("itm"):  # the matching head's order, within what it judged
            assert set(order_of(ours)[: len(best)]) == set(best)
        else:
            assert order_of(ours) == order_of([round(value, 4) for value in words])


# Fusion over rounds


@pytest.mark.parametrize("name", ["rrf", "score-fusion"])
def test_lists_are_joined_by_the_formula(collection, name):
    search = scores_of(collection, name, turn([A, B], [A]), turn([C], [C]), turn([A], [A]))
    expected = [0.0] * len(IMAGE_IDS)
    lists = [("red dog", 1), *((text, FEEDBACK) for text in (caption_of(A), caption_of(C), A, C))]
    for text, weight in lists:
        scores = [round(value, 6) for value in dots(text)]
        for place, row in enumerate(order_of(scores)):
            low, high = min(scores), max(scores)
            part = 1 / (60 + place + 1) if name == "rrf" else (scores[row] - low) / (high - low)
            expected[row] += weight * part
    assert search.scores == pytest.approx(expected, abs=1e-5)
    assert search.text == f"red dog, {caption_of(A)}, {caption_of(C)}"


def test_credit_breaks_ties_by_row_and_a_flat_list_says_nothing():
    assert rank_credit(np.array([1.0, 2.0, 1.0, 2.0])).tolist() == [1 / 63, 1 / 61, 1 / 64, 1 / 62]
    assert score_credit(np.array([1.0, 3.0, 2.0])).tolist() == [0, 1, 0.5]
    assert score_credit(np.array([2.0, 2.0])).tolist() == [0, 0]


# Bayes


def posterior_by_hand(turns, words, reads_captions):
    """The log posterior, one image and one pick at a time."""
    rows = {i: [float(x) for x in WordEncoder().encode_texts([i])[0]] for i in IMAGE_IDS}
    said = dict(zip(IMAGE_IDS, world_caption_vectors().tolist(), strict=True))

    def likes(i, t):
        affinity = CALIBRATION.pictures * sum(x * y for x, y in zip(rows[i], rows[t], strict=True))
        if reads_captions:
            affinity += CALIBRATION.captions * sum(x * y for x, y in zip(said[i], said[t], strict=True))
        return affinity

    logs = [score / CALIBRATION.prior for score in dots(words)]
    for told in turns:
        for picks, sign in ((told.liked, 1), (told.disliked, -1)):
            left = list(told.shown)
            for pick in picks:
                for row, t in enumerate(IMAGE_IDS):
                    all_of_them = sum(math.exp(sign * likes(i, t)) for i in left)
                    share = math.exp(sign * likes(pick, t)) / all_of_them
                    logs[row] += math.log((1 - NOISE) * share + NOISE / len(left))
                left.remove(pick)
    total = math.log(sum(math.exp(value - max(logs)) for value in logs)) + max(logs)
    return [value - total for value in logs]


@pytest.mark.parametrize("name", ["bayes", "bayes-captions"])
def test_the_posterior_by_its_formula(collection, name):
    turns = [turn([A, B, C], [B], [C]), turn([D, E, F], [F, D])]
    search = scores_of(collection, name, *turns)
    assert search.scores == pytest.approx(posterior_by_hand(turns, "red dog", name != "bayes"), abs=0.005)
    assert np.exp(search.scores.astype(np.float64)).sum() == pytest.approx(1, abs=1e-4)
    assert search.text == "red dog"


def test_a_pick_raises_what_is_like_it_and_not_what_was_passed_over(collection):
    before = scores_of(collection, "bayes", turn([A, B]))
    after = scores_of(collection, "bayes", turn([A, B], [A]))
    gain = after.scores - before.scores
    row_of = {image_id: row for row, image_id in enumerate(IMAGE_IDS)}
    assert gain[row_of[A]] > 0 > gain[row_of[B]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(IMAGE_IDS), min_size=2, max_size=10, unique=True), st.randoms())
def test_no_pick_costs_an_image_more_than_the_noise_allows(shown, random):
    affinity = np.array([[100 * random.uniform(-1, 1) for _ in range(7)] for _ in shown])
    pick, other = random.sample(range(len(shown)), 2)
    logs = log_ranking(affinity, [pick])
    assert (logs >= math.log(NOISE / len(shown)) - 1e-9).all() and (logs <= 0).all()
    every = np.exp([log_ranking(affinity, [place]) for place in range(len(shown))]).sum(axis=0)
    assert every == pytest.approx(np.ones(7))  # somebody picks something
    pairs = [(one, two) for one in range(len(shown)) for two in range(len(shown)) if one != two]
    assert np.exp([log_ranking(affinity, pair) for pair in pairs]).sum(axis=0) == pytest.approx(np.ones(7))
    assert (log_ranking(affinity, [pick, other]) <= logs).all()


def test_equal_images_have_equal_posteriors():
    ids = [f"{number}-red-dog-beach" for number in range(20)]
    encoder = WordEncoder()
    rows = encoder.encode_texts(["red dog"] * 20)
    index = FaissIndex.build(ids, rows)
    twins = Collection(
        Retriever(encoder, index), None, lambda: np.repeat(world_caption_vectors()[:1], 20, axis=0)
    )
    for name in ("bayes", "bayes-captions", "rrf", "score-fusion"):
        told = Turn("cat", tuple(ids[:10]), (ids[4],), (), ("red dog",))
        scores = make_strategy(name, None, twins).next([History((told,))])[0].search.scores
        listed = twins.retriever.search(
            [make_strategy(name, None, twins).next([History((told,))])[0].search], 20
        )
        assert listed[0].ids == tuple(ids)
        assert name == "rrf" or len(set(scores.tolist())) == 1


@pytest.mark.parametrize("name", ["bayes-captions", "rrf", "score-fusion"])
@pytest.mark.parametrize("room", [256, 1, 0])
def test_sums_that_were_kept_and_sums_computed_again_are_the_same_bytes(collection, name, room, monkeypatch):
    monkeypatch.setattr("feedback.strategies.kept.KEPT", room)
    monkeypatch.setattr("feedback.strategies.kept.TURNS_AT_ONCE", 2)
    monkeypatch.setattr("feedback.strategies.bayes.AT_ONCE", 2)
    monkeypatch.setattr("feedback.strategies.bayes.IMAGES_AT_ONCE", 40)
    monkeypatch.setattr("feedback.strategies.fusion.LISTS_AT_ONCE", 3)
    turns = [turn([A, B, C], [A]), turn([D, E], [], [D]), turn([F, C], [C, F]), turn([A, B], [A])]
    told = [History(tuple(turns[:count])) for count in (1, 2, 3, 4)]
    going_on = make_strategy(name, None, collection)
    rows = []
    for history in told:
        several = going_on.next([history, History(history.turns[::-1]), history])
        assert np.array_equal(several[0].search.scores, several[2].search.scores)
        rows.append(several[0].search.scores)
    for history, scores in zip(told, rows, strict=True):
        (fresh,) = make_strategy(name, None, collection).next([history])
        assert np.array_equal(fresh.search.scores, scores)


@pytest.mark.parametrize("name", ["bayes", "rrf"])
def test_a_round_looks_at_what_is_new_in_it_only(collection, name, monkeypatch):
    asked = []
    monkeypatch.setattr("feedback.strategies.kept.TURNS_AT_ONCE", 1)
    strategy = make_strategy(name, None, collection)
    sums = strategy._evidence if name == "bayes" else strategy._sums
    add = sums._add
    sums._add = lambda new: (asked.append([each.number for each in new]), add(new))
    turns = tuple(turn([A, B, C], [image_id]) for image_id in (A, B, C))
    for count in (1, 2, 3):
        strategy.next([History(turns[:count])])
    assert asked == [[0], [1], [2]]
    strategy.next([History((*turns[:2], turn([D], [D])))])  # the person went back, and on by another way
    assert asked[3:] == [[0], [1], [2]]


def test_each_query_has_its_own_prior_in_every_round(collection):
    going_on = make_strategy("bayes", None, collection)
    told = [[turn([A, B, C], [A], words=words) for _ in range(3)] for words in ("red dog", "cat", "red dog")]
    for count in (1, 2, 3):
        moved = going_on.next([History(tuple(turns[:count])) for turns in reversed(told)])
        for query, turns in zip(moved, reversed(told), strict=True):
            alone = scores_of(collection, "bayes", *turns[:count])
            assert np.array_equal(query.search.scores, alone.scores)
    assert not np.array_equal(moved[0].search.scores, moved[1].search.scores)


def test_words_said_later_begin_the_lists_anew(collection):
    strategy = make_strategy("rrf", None, collection)
    first = turn([A, B], [A])
    strategy.next([History((first,))])
    said = Turn("red dog", (C,), (C,), (), (caption_of(C),), said="on a beach")
    (moved,) = strategy.next([History((first, said))])
    (fresh,) = make_strategy("rrf", None, collection).next([History((first, said))])
    assert np.array_equal(moved.search.scores, fresh.search.scores)


def test_the_prior_may_come_from_a_rewrite(collection):
    turns = [turn([A, B], [A])]
    (query,) = make_strategy("rewrite-bayes", Merger(), collection).next([History(tuple(turns))])
    (anchored,) = make_strategy("rewrite-anchored", Merger(), collection).next([History(tuple(turns))])
    unit = anchored.search.vector / np.linalg.norm(anchored.search.vector)
    plain = scores_of(collection, "bayes-captions", *turns).scores
    prior = (unit - collection.encode(["red dog"])[0]) @ collection.vectors.T / CALIBRATION.prior
    difference = query.search.scores - plain - prior
    assert difference == pytest.approx(np.full(len(IMAGE_IDS), difference[0]), abs=1e-3)
    assert query.search.text == anchored.search.text
    assert make_strategy("rewrite-bayes", Merger(), collection).needs_captions


# Re-ranking


@pytest.mark.parametrize(("name", "weight"), [("itm", COSINE_ODDS), ("bayes-itm", POSTERIOR_ODDS)])
def test_the_best_are_reordered_by_the_formula_and_the_rest_stay_behind(collection, name, weight):
    told = turn([A, B, C], [A])
    before = scores_of(collection, "bayes", told).scores if name == "bayes-itm" else dots("red dog")
    before = [round(float(value), 4) for value in before]
    search = scores_of(collection, name, told)
    best = order_of(before)[: DEPTH + 3]
    odds = [chance("red dog", i) / (1 - chance("red dog", i)) for i in IMAGE_IDS]
    judged = {row: before[row] + weight * math.log(odds[row]) for row in best}
    for row, value in judged.items():
        assert search.scores[row] == pytest.approx(value, abs=2e-4)
    rest = [row for row in order_of(before) if row not in judged]
    assert search.scores[rest].max() < search.scores[best].min()
    assert [row for row in order_of(search.scores.round(4).tolist()) if row not in judged] == rest
    assert len(collection.match.asked) == DEPTH + 3 and {t for t, _ in collection.match.asked} == {"red dog"}


def test_chances_of_0_and_1_are_finite(retriever):
    sure = Collection(retriever, lambda texts, ids: np.array([0.0, 1.0] * (len(ids) // 2)))
    (query,) = make_strategy("itm", None, sure).next([History((turn(),))])
    assert np.isfinite(query.search.scores).all()
