"""Simulated users against brute force: ties, no candidates, seeds."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import IMAGE_IDS, WordEncoder, caption_of
from hypothesis import given
from hypothesis import strategies as st

from feedback.users import FirstUser, NearestUser, RandomUser, View, caption_vectors
from records import Feedback, Image


def view(candidates, goals=("g",), query_id="q", round_number=0):
    return View(query_id, round_number, frozenset(goals), tuple(candidates))


def eye(**vectors):
    rows = {name: np.array(vector, dtype=np.float32) for name, vector in vectors.items()}
    return lambda ids: np.stack([rows[image_id] / np.linalg.norm(rows[image_id]) for image_id in ids])


def test_nearest_picks_the_nearest_and_of_equal_ones_the_first_shown():
    user = NearestUser(eye(g=[1, 0], far=[0, 1], near=[3, 1], twin=[6, 2], opposite=[-1, 0]))
    for candidates, pick in [
        (["far", "near", "opposite"], "near"),
        (["far", "near", "twin"], "near"),
        (["twin", "far", "near"], "twin"),
        (["opposite"], "opposite"),
    ]:
        assert user.judge([view(candidates)]) == [Feedback(liked=(pick,))]


def test_nearest_to_any_of_several_goals():
    user = NearestUser(eye(g=[1, 0, 0], h=[0, 0, 1], between=[1, 0, 1], at_h=[0, 0.1, 1]))
    assert user.judge([view(["between", "at_h"], goals=["g", "h"])]) == [Feedback(liked=("at_h",))]
    assert user.judge([view(["between", "at_h"], goals=["g"])]) == [Feedback(liked=("between",))]


@given(
    candidates=st.lists(st.sampled_from(IMAGE_IDS), min_size=1, max_size=8, unique=True),
    goals=st.sets(st.sampled_from(IMAGE_IDS), min_size=1, max_size=3),
)
def test_nearest_agrees_with_brute_force(candidates, goals):
    vectors = {image_id: WordEncoder().encode_texts([image_id])[0].astype(float) for image_id in IMAGE_IDS}
    user = NearestUser(lambda ids: np.stack([vectors[image_id] for image_id in ids]).astype(np.float32))
    (pick,) = user.judge([view(candidates, goals)])[0].liked
    closeness = {c: max(float(vectors[c] @ vectors[goal]) for goal in goals) for c in candidates}
    assert closeness[pick] == pytest.approx(max(closeness.values()), abs=1e-6)


@pytest.mark.parametrize("user", [NearestUser(eye(g=[1.0])), RandomUser(0), FirstUser()])
def test_nothing_to_pick_is_no_pick(user):
    assert user.judge([view([]), view(["g"]), view([])]) == [Feedback(), Feedback(liked=("g",)), Feedback()]
    assert user.judge([]) == []


def test_first_picks_the_first():
    assert FirstUser().judge([view("abc"), view("ca")]) == [Feedback(liked=("a",)), Feedback(liked=("c",))]


def test_random_depends_on_seed_query_and_round_and_on_nothing_else():
    views = [view("abcdefgh", query_id=f"q{n}", round_number=r) for n in range(30) for r in range(4)]
    picks = RandomUser(7).judge(views)
    assert picks == RandomUser(7).judge(views)
    assert picks[::-1] == RandomUser(7).judge(views[::-1])
    assert picks == [RandomUser(7).judge([one])[0] for one in views]
    assert picks == RandomUser(7).judge([replace(one, goals=frozenset(["other"])) for one in views])
    assert picks != RandomUser(8).judge(views)
    by_round = [picks[number::4] for number in range(4)]
    assert by_round[0] != by_round[1]
    counts = Counter(pick.liked[0] for pick in picks)
    assert set(counts) == set("abcdefgh") and max(counts.values()) < 40


def images_with(captions):
    return [Image(name, Path(name), tuple(texts)) for name, texts in captions.items()]


def test_caption_vectors_are_the_unit_means_of_the_captions():
    captions = {name: [caption_of(name), name.split("-")[0]] for name in IMAGE_IDS[:20]}
    captions["alone"] = ["a red dog"]
    asked = []

    def encode(texts):
        asked.append(list(texts))
        return WordEncoder().encode_texts(texts)

    vectors_of = caption_vectors(images_with(captions), encode)
    assert asked == [[text for texts in captions.values() for text in texts]]
    names = [*list(captions)[::-3], "alone"]
    rows = vectors_of(names)
    assert rows.shape == (len(names), WordEncoder.dimension) and rows.dtype == np.float32
    for name, row in zip(names, rows, strict=True):
        mean = np.mean([WordEncoder().encode_texts([text])[0] for text in captions[name]], axis=0)
        assert row == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


def test_captions_that_cancel_make_no_nan():
    vectors_of = caption_vectors(images_with({"a": ["x", "y"]}), lambda _: np.array([[1, 0], [-1, 0.0]]))
    assert np.isfinite(vectors_of(["a"])).all()


def test_an_image_without_captions_is_an_error():
    images = images_with({"a": ["a dog"], "b": [], "c": []})
    with pytest.raises(ValueError, match="2 of 3 images have no caption, first b"):
        caption_vectors(images, WordEncoder().encode_texts)
