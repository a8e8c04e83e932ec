"""Users that judge by captions or by the truth, that err and that give up, against brute force."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import IMAGE_IDS, KnownCaptions, WordEncoder, caption_of, one_target, rounds_of
from hypothesis import given
from hypothesis import strategies as st

from feedback.habits import ImpatientUser, NoisyUser
from feedback.protocols import PROTOCOLS
from feedback.strategies.append import Append
from feedback.strategies.original import Original
from feedback.users import CaptionUser, GroundTruthUser, NearestUser, View
from records import Feedback, Image, Query

ENCODE = WordEncoder().encode_texts
CAPTIONS = {
    image_id: (caption_of(image_id), image_id.split("-")[1], f"something in the {image_id.split('-')[2]}")
    for image_id in IMAGE_IDS
}
IMAGES = [Image(image_id, Path(image_id), captions) for image_id, captions in CAPTIONS.items()]


def view(candidates, goals=("g",), query_id="q", round_number=0, liked_before=()):
    return View(query_id, round_number, frozenset(goals), tuple(candidates), tuple(liked_before))


def line(**places):
    """An eye for which images lie on a circle: the greater the angle from g at 0, the farther."""
    angles = {"g": 0.0, **places}
    return lambda ids: np.array(
        [[np.cos(angles[i]), np.sin(angles[i])] for i in ids], dtype=np.float32
    ).reshape(-1, 2)


# Likes and dislikes


def test_the_farthest_are_turned_down_in_the_order_shown():
    eye = line(a=0.9, b=0.1, c=1.5, d=1.2, e=0.5)
    for count, disliked in [
        (0, ()),
        (1, ("c",)),
        (2, ("c", "d")),
        (4, ("a", "c", "d", "e")),
        (9, tuple("acde")),
    ]:
        user = NearestUser(eye, dislikes=count)
        assert user.judge([view("abcde")]) == [Feedback(("b",), disliked)]
    assert NearestUser(eye, dislikes=3).judge([view("b"), view("")]) == [Feedback(("b",)), Feedback()]


def test_of_equally_far_candidates_the_first_shown_is_turned_down():
    user = NearestUser(line(a=1.0, b=0.1, c=1.0, d=1.0), dislikes=2)
    assert user.judge([view("abcd"), view("dcba")]) == [
        Feedback(("b",), ("a", "c")),
        Feedback(("b",), ("d", "c")),
    ]


# By captions


@given(
    candidates=st.lists(st.sampled_from(IMAGE_IDS), min_size=1, max_size=6, unique=True),
    goals=st.sets(st.sampled_from(IMAGE_IDS), min_size=1, max_size=2),
    said=st.integers(0, 2),
)
def test_the_caption_user_agrees_with_brute_force(candidates, goals, said):
    words = CAPTIONS[min(goals)][said]
    user = CaptionUser(IMAGES, {"q": words.upper()}, ENCODE)
    (pick,) = user.judge([view(candidates, goals)])[0].liked

    def nearness(candidate):
        of_goals = []
        for goal in goals:
            others = [caption for caption in CAPTIONS[goal] if caption != words]
            best = [
                max(float(ENCODE([other])[0] @ ENCODE([caption])[0]) for caption in CAPTIONS[candidate])
                for other in others
            ]
            of_goals.append(sum(best) / len(best))
        return max(of_goals)

    nearnesses = {candidate: nearness(candidate) for candidate in candidates}
    assert nearnesses[pick] == pytest.approx(max(nearnesses.values()), abs=1e-6)


def test_the_caption_user_does_not_judge_by_the_query_itself():
    images = [
        Image("target", Path("target"), ("red", "dog")),
        Image("as the query says", Path("a"), ("red", "cat")),
        Image("as the picture is", Path("b"), ("blue", "dog")),
    ]
    candidates = [image.id for image in images[1:]]
    (pick,) = CaptionUser(images, {"q": "Red "}, ENCODE).judge([view(candidates, ["target"])])
    assert pick.liked == ("as the picture is",)
    (pick,) = CaptionUser(images, {"q": "dog"}, ENCODE).judge([view(candidates, ["target"])])
    assert pick.liked == ("as the query says",)


def test_a_target_without_another_caption_is_an_error_and_one_of_several_goals_is_not():
    images = [Image("t", Path("t"), ("red", "RED")), Image("u", Path("u"), ("dog",)), *IMAGES[:2]]
    user = CaptionUser(images, {"q": "red"}, ENCODE)
    with pytest.raises(ValueError, match="query 'q': its target has no caption but the query"):
        user.judge([view(IMAGE_IDS[:2], ["t"])])
    assert user.judge([view(IMAGE_IDS[:2], ["t", "u"])])[0].liked
    with pytest.raises(ValueError, match="1 of 2 images have no caption, first u"):
        CaptionUser([IMAGES[0], Image("u", Path("u"))], {}, ENCODE)


# By the truth


def test_the_ground_truth_user_likes_what_is_relevant_and_nothing_else():
    user = GroundTruthUser(dislikes=1)
    views = [view("abcd", "cax"), view("abcd", "x"), view("", "x")]
    assert user.judge(views) == [Feedback(("a", "c"), ("b",)), Feedback((), ("a",)), Feedback()]


def test_under_the_paper_protocol_recall_adds_up_over_unseen_images(retriever):
    relevant = frozenset(image_id for image_id in IMAGE_IDS if "fish" in image_id)
    query = Query("q", "blue", IMAGE_IDS[0], relevant | {IMAGE_IDS[0]})
    rounds = rounds_of(
        [query], retriever=retriever, user=GroundTruthUser(), strategy=Append(), protocol=PROTOCOLS["paper"],
        captions=KnownCaptions(), round_count=30,
    )  # fmt: skip
    seen = []
    for record in rounds:
        shown = record.image_ids[: record.shown]
        assert record.target is None and record.shown == 10 and not set(shown) & set(seen)
        assert set(record.relevant) == query.relevant - set(seen)
        seen += shown
        if not record.stop:
            assert record.liked == tuple(image_id for image_id in shown if image_id in query.relevant)
    assert rounds[-1].stop == "found" and set(seen) >= query.relevant
    assert any(len(record.liked) > 1 for record in rounds)


# Noise


@given(
    candidates=st.lists(st.sampled_from("abcdefgh"), max_size=8, unique=True),
    goals=st.sets(st.sampled_from("abcdefgh"), min_size=1, max_size=3),
    number=st.integers(0, 99),
)
def test_a_mistake_is_a_wrong_candidate_where_there_is_one(candidates, goals, number):
    inner = GroundTruthUser(dislikes=2)
    one = view(candidates, goals, query_id=f"q{number}")
    right, (wrong,) = inner.judge([one])[0], NoisyUser(inner, 1.0, 0).judge([one])
    possible = [image_id for image_id in candidates if image_id not in goals]
    if not possible:
        assert wrong == right
        return
    assert set(wrong.liked) <= set(possible) and len(wrong.liked) == min(
        len(possible), max(1, len(right.liked))
    )
    assert [image_id for image_id in candidates if image_id in wrong.liked] == list(wrong.liked)
    assert wrong.disliked == tuple(image_id for image_id in right.disliked if image_id not in wrong.liked)


def test_the_share_of_mistakes_is_the_chance_and_the_seed_decides_which():
    inner = NearestUser(line(a=0.1, b=0.4, c=0.8, d=1.0))
    views = [view("abcd", query_id=f"q{n}", round_number=r) for n in range(500) for r in range(4)]

    def wrong(chance, seed=0):
        return [feedback.liked != ("a",) for feedback in NoisyUser(inner, chance, seed).judge(views)]

    assert not any(wrong(0.0)) and all(wrong(1.0))
    assert np.mean(wrong(0.3)) == pytest.approx(0.3, abs=0.04)
    assert wrong(0.3) == wrong(0.3) != wrong(0.3, seed=1)
    assert [NoisyUser(inner, 0.3, 0).judge([one])[0] for one in views] == NoisyUser(inner, 0.3, 0).judge(
        views
    )
    # Another user errs in the same rounds: the draw does not depend on who is within.
    truth = NoisyUser(GroundTruthUser(), 0.3, 0).judge([replace(one, goals=frozenset("a")) for one in views])
    assert [feedback.liked != ("a",) for feedback in truth] == wrong(0.3)
    with pytest.raises(ValueError, match=r"user noise: got 1\.5"):
        NoisyUser(inner, 1.5, 0)


# Patience


@pytest.mark.parametrize(
    ("distances", "patience", "gives_up_in"),
    [
        ([0.5, 0.4, 0.3, 0.2], 1, None),
        ([0.5, 0.6, 0.3, 0.2], 1, 1),
        ([0.5, 0.6, 0.3, 0.4, 0.4, 0.1], 2, 4),
        ([0.5, 0.5, 0.5], 2, 2),  # as near as before is no progress
        ([0.5, 0.6, 0.55, 0.4], 3, None),
    ],
)
def test_patience_ends_after_so_many_rounds_without_a_nearer_pick(distances, patience, gives_up_in):
    names = [f"i{number}" for number in range(len(distances))]
    user = ImpatientUser(NearestUser(line(**dict(zip(names, distances, strict=True)))), patience)
    liked = []
    for number, name in enumerate(names):
        (feedback,) = user.judge([view([name], round_number=number, liked_before=liked)])
        if number == gives_up_in:
            assert feedback == Feedback(abandons=True)
            return
        assert feedback == Feedback(liked=(name,))
        liked.append(feedback.liked)
    assert gives_up_in is None
    with pytest.raises(ValueError, match="user patience: got 0"):
        ImpatientUser(GroundTruthUser(), 0)


def test_the_ground_truth_user_gives_up_when_nothing_is_found_any_more():
    user = ImpatientUser(GroundTruthUser(), 2)
    assert user.judge([view("ab", "a")]) == [Feedback(liked=("a",))]
    assert user.judge([view("cd", "ax", liked_before=[("a",)])]) == [Feedback()]
    assert user.judge([view("ef", "ax", liked_before=[("a",), ()])]) == [Feedback(abandons=True)]
    assert user.judge([view("xf", "ax", liked_before=[("a",), ()])]) == [Feedback(liked=("x",))]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_session_ends_when_the_user_gives_up_and_resumes_as_if_not_stopped(retriever, batch_size):
    queries = [one_target(f"q{n}", "dog", target) for n, target in enumerate(IMAGE_IDS[::6])]
    inner = NoisyUser(NearestUser(retriever.vectors_of, dislikes=1), 0.4, seed=3)

    def play(played=()):
        return rounds_of(
            queries, retriever=retriever, user=ImpatientUser(inner, 1), strategy=Original(),
            protocol=PROTOCOLS["honest"], captions=KnownCaptions(), round_count=5, played=played,
            batch_size=batch_size,
        )  # fmt: skip

    whole = play()
    given_up = [record for record in whole if record.stop == "abandoned"]
    assert given_up and len(given_up) < len(queries)
    assert all(record.liked == record.disliked == () and record.number > 0 for record in given_up)
    ended = {(record.query_id, record.number) for record in given_up}
    assert not [r for r in whole if any(r.query_id == query and r.number > number for query, number in ended)]
    for cut in (3, len(whole) // 2, len(whole) - 1):
        assert play(whole[:cut]) == whole
