"""Simulated users against brute force: whom they like and turn down, how they err and lose patience."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import IMAGE_IDS, KnownCaptions, WordEncoder, caption_of, one_target, rounds_of
from hypothesis import given, settings
from hypothesis import strategies as st

from feedback.phrases import phrases_unsaid
from feedback.protocols import PROTOCOLS
from feedback.simulated_users import SimulatedUsers
from feedback.strategies.words import Append, Original
from feedback.users import (
    CaptionUser,
    FirstUser,
    GroundTruthUser,
    ImpatientUser,
    NearestUser,
    NoisyUser,
    RandomUser,
    TellingUser,
    View,
    caption_vectors,
)
from records import Feedback, Image, Query

QUICK = settings(max_examples=25, deadline=None)
ENCODE = WordEncoder().encode_texts
CAPTIONS = {
    image_id: (caption_of(image_id), image_id.split("-")[1], f"something in the {image_id.split('-')[2]}")
    for image_id in IMAGE_IDS
}
IMAGES = [Image(image_id, Path(image_id), captions) for image_id, captions in CAPTIONS.items()]


def view(candidates, goals=("g",), query_id="q", round_number=0, liked_before=()):
    return View(query_id, round_number, frozenset(goals), tuple(candidates), tuple(liked_before))


def line(**places):
    """Image vectors on a circle: the greater the angle from g at 0, the farther."""
    angles = {"g": 0.0, **places}
    return lambda ids: np.array(
        [[np.cos(angles[i]), np.sin(angles[i])] for i in ids], dtype=np.float32
    ).reshape(-1, 2)


# Likes and dislikes


@QUICK
@given(
    candidates=st.lists(st.sampled_from(IMAGE_IDS), min_size=1, max_size=8, unique=True),
    goals=st.sets(st.sampled_from(IMAGE_IDS), min_size=1, max_size=3),
)
def test_nearest_agrees_with_brute_force(candidates, goals):
    vectors = {image_id: ENCODE([image_id])[0].astype(float) for image_id in IMAGE_IDS}
    user = NearestUser(lambda ids: np.stack([vectors[image_id] for image_id in ids]).astype(np.float32))
    (pick,) = user.judge([view(candidates, goals)])[0].liked
    closeness = {c: max(float(vectors[c] @ vectors[goal]) for goal in goals) for c in candidates}
    assert closeness[pick] == pytest.approx(max(closeness.values()), abs=1e-6)


def test_of_equals_the_one_shown_first_is_picked_or_turned_down():
    user = NearestUser(line(a=1.0, b=0.1, twin=0.1, c=1.0, d=1.0), dislikes=2)
    assert user.judge([view(["a", "b", "twin", "c", "d"]), view(["d", "twin", "b", "c", "a"])]) == [
        Feedback(("b",), ("a", "c")),
        Feedback(("twin",), ("d", "c")),
    ]


def test_the_farthest_are_turned_down_in_the_order_shown():
    vectors = line(a=0.9, b=0.1, c=1.5, d=1.2, e=0.5)
    for count, disliked in [(0, ""), (1, "c"), (2, "cd"), (4, "acde"), (9, "acde")]:
        user = NearestUser(vectors, dislikes=count)
        assert user.judge([view("abcde")]) == [Feedback(("b",), tuple(disliked))]


def test_several_picks_are_the_nearest_first_and_nearer_than_all_before():
    vectors = line(a=0.9, b=0.1, c=1.5, d=0.5, old=0.7)
    assert NearestUser(vectors, likes=3).judge([view("abcd")]) == [Feedback(("b", "d", "a"))]
    later = replace(view("abcd"), liked_before=(("old",),))
    assert NearestUser(vectors, likes=3).judge([later]) == [Feedback(("b", "d"))]
    far = replace(view("ac"), liked_before=(("old",),))  # nothing is nearer: the nearest all the same
    assert NearestUser(vectors, likes=3, dislikes=5).judge([far]) == [Feedback(("a",), ("c",))]


def test_the_pick_is_among_the_nearest_of_all_shown_those_picked_before_counted(retriever):
    vectors = line(a=0.1, b=0.2, c=0.3, d=0.4)
    shown = replace(view("dc"), shown=tuple("dcba"), liked_before=(("a",), ("b",)))
    assert NearestUser(vectors, among=3).judge([shown]) == [Feedback(("c",))]
    assert NearestUser(vectors, among=2, dislikes=1).judge([shown]) == [Feedback((), ("d",))]
    assert PROTOCOLS["reference"].picks_among == 5
    protocol = replace(PROTOCOLS["reference"], picks_among=2, stops_when_worse=False, hit_rank=1)
    queries = [one_target("q", "something", IMAGE_IDS[40])]
    user = SimulatedUsers(retriever, IMAGES, queries, protocol, WordEncoder()).named("reference")
    records = rounds_of(
        queries, retriever=retriever, user=user, strategy=Original(), protocol=protocol, round_count=5
    )
    assert [len(record.liked) for record in records] == [1, 1, 0, 0, 0]  # the same 50 are shown again


@pytest.mark.parametrize(
    "user",
    [NearestUser(line(), dislikes=3), RandomUser(0), FirstUser(), NoisyUser(NearestUser(line()), 1, 0)],
)
def test_nothing_to_pick_is_no_pick(user):
    assert user.judge([view([]), view(["g"]), view([])]) == [Feedback(), Feedback(liked=("g",)), Feedback()]
    assert user.judge([]) == []


def test_random_depends_on_seed_query_and_round_and_on_nothing_else():
    views = [view("abcdefgh", query_id=f"q{n}", round_number=r) for n in range(30) for r in range(4)]
    picks = RandomUser(7).judge(views)
    assert picks == [RandomUser(7).judge([one])[0] for one in views] != RandomUser(8).judge(views)
    assert picks == RandomUser(7).judge([replace(one, goals=frozenset(["other"])) for one in views])
    counts = Counter(pick.liked[0] for pick in picks)
    assert set(counts) == set("abcdefgh") and max(counts.values()) < 40
    assert FirstUser().judge([view("abc"), view("ca")]) == [Feedback(("a",)), Feedback(("c",))]


def test_the_ground_truth_user_likes_what_is_relevant_and_nothing_else():
    views = [view("abcd", "cax"), view("abcd", "x"), view("", "x")]
    assert GroundTruthUser(dislikes=1).judge(views) == [
        Feedback(("a", "c"), ("b",)),
        Feedback((), ("a",)),
        Feedback(),
    ]


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


# By people's captions


def test_caption_vectors_are_the_unit_means_of_the_captions():
    images = [*IMAGES[:20], Image("alone", Path("alone"), ("a red dog",))]
    vectors_of = caption_vectors(images, ENCODE)
    rows = vectors_of([image.id for image in images[::-3]])
    assert rows.dtype == np.float32
    for image, row in zip(images[::-3], rows, strict=True):
        mean = np.mean([ENCODE([text])[0] for text in image.captions], axis=0)
        assert row == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)
    cancel = caption_vectors([Image("a", Path("a"), ("x", "y"))], lambda _: np.array([[1, 0], [-1, 0.0]]))
    assert np.isfinite(cancel(["a"])).all()


@QUICK
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
    for words, liked in (("Red ", "as the picture is"), ("dog", "as the query says")):
        (pick,) = CaptionUser(images, {"q": words}, ENCODE).judge([view(candidates, ["target"])])
        assert pick.liked == (liked,)


def test_targets_and_images_without_captions_are_errors():
    images = [Image("t", Path("t"), ("red", "RED")), Image("u", Path("u"), ("dog",)), *IMAGES[:2]]
    user = CaptionUser(images, {"q": "red"}, ENCODE)
    with pytest.raises(ValueError, match="query 'q': its target has no caption but the query"):
        user.judge([view(IMAGE_IDS[:2], ["t"])])
    assert user.judge([view(IMAGE_IDS[:2], ["t", "u"])])[0].liked  # one of several goals can be judged
    bare = [IMAGES[0], Image("u", Path("u")), Image("v", Path("v"))]
    with pytest.raises(ValueError, match="2 of 3 images have no caption, first u"):
        CaptionUser(bare, {}, ENCODE)
    with pytest.raises(ValueError, match="2 of 3 images have no caption, first u"):
        caption_vectors(bare, ENCODE)


# Noise and patience


@QUICK
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
    assert set(wrong.liked) <= set(possible)
    assert len(wrong.liked) == min(len(possible), max(1, len(right.liked)))
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
    # Another user errs in the same rounds: the draw does not depend on the inner user.
    truth = NoisyUser(GroundTruthUser(), 0.3, 0).judge([replace(one, goals=frozenset("a")) for one in views])
    assert [feedback.liked != ("a",) for feedback in truth] == wrong(0.3)
    with pytest.raises(ValueError, match=r"user noise: got 1\.5"):
        NoisyUser(inner, 1.5, 0)


@pytest.mark.parametrize(
    ("distances", "patience", "abandons_in"),
    [
        ([0.5, 0.4, 0.3, 0.2], 1, None),
        ([0.5, 0.6, 0.3, 0.2], 1, 1),
        ([0.5, 0.6, 0.3, 0.4, 0.4, 0.1], 2, 4),
        ([0.5, 0.5, 0.5], 2, 2),  # as near as before is no progress
        ([0.5, 0.6, 0.55, 0.4], 3, None),
    ],
)
def test_patience_ends_after_so_many_rounds_without_a_nearer_pick(distances, patience, abandons_in):
    names = [f"i{number}" for number in range(len(distances))]
    user = ImpatientUser(NearestUser(line(**dict(zip(names, distances, strict=True)))), patience)
    liked = []
    for number, name in enumerate(names):
        (feedback,) = user.judge([view([name], round_number=number, liked_before=liked)])
        if number == abandons_in:
            assert feedback == Feedback(abandons=True)
            return
        assert feedback == Feedback(liked=(name,))
        liked.append(feedback.liked)
    assert abandons_in is None


def test_the_ground_truth_user_abandons_a_search_that_finds_nothing_any_more():
    user = ImpatientUser(GroundTruthUser(), 2)
    assert user.judge([view("ab", "a")]) == [Feedback(liked=("a",))]
    assert user.judge([view("cd", "ax", liked_before=[("a",)])]) == [Feedback()]
    assert user.judge([view("ef", "ax", liked_before=[("a",), ()])]) == [Feedback(abandons=True)]
    assert user.judge([view("xf", "ax", liked_before=[("a",), ()])]) == [Feedback(liked=("x",))]
    with pytest.raises(ValueError, match="user patience: got 0"):
        ImpatientUser(GroundTruthUser(), 0)


def test_a_session_ends_when_the_user_abandons_it_and_resumes_as_if_not_stopped(retriever):
    queries = [one_target(f"q{n}", "dog", target) for n, target in enumerate(IMAGE_IDS[::6])]
    inner = NoisyUser(NearestUser(retriever.vectors_of, dislikes=1), 0.4, seed=3)

    def play(played=()):
        return rounds_of(
            queries, retriever=retriever, user=ImpatientUser(inner, 1), strategy=Original(),
            protocol=PROTOCOLS["honest"], round_count=5, played=played, batch_size=7,
        )  # fmt: skip

    whole = play()
    abandoned = [record for record in whole if record.stop == "abandoned"]
    assert abandoned and len(abandoned) < len(queries)
    assert all(record.liked == record.disliked == () and record.number > 0 for record in abandoned)
    ended = {(record.query_id, record.number) for record in abandoned}
    assert not [r for r in whole if any(r.query_id == query and r.number > number for query, number in ended)]
    for cut in (3, len(whole) // 2, len(whole) - 1):
        assert play(whole[:cut]) == whole


# By name


def users(retriever, protocol="honest", sentence_encoder="nosuch-encoder"):
    queries = [one_target("q", "dog", IMAGE_IDS[0])]
    return SimulatedUsers(retriever, IMAGES, queries, PROTOCOLS[protocol], sentence_encoder).named


def test_names_make_users_and_noise_and_patience_are_for_those_who_judge(retriever):
    named = users(retriever)
    assert isinstance(named("reference"), NearestUser)
    assert isinstance(named("reference", noise=0.3), NoisyUser)
    assert isinstance(named("reference", noise=0.3, patience=2), ImpatientUser)
    assert isinstance(named("random", noise=0.3, patience=2), RandomUser)
    assert isinstance(named("first", noise=1.0, patience=1), FirstUser)
    assert isinstance(users(retriever, "paper")("ground-truth"), GroundTruthUser)
    one = view(IMAGE_IDS[1:9], IMAGE_IDS[:1])
    (feedback,) = named("reference", dislikes=3).judge([one])
    assert len(feedback.liked) == 1 and len(feedback.disliked) == 3
    assert len({named("random", seed=seed).judge([one])[0].liked for seed in range(20)}) > 3
    with pytest.raises(ValueError, match="choose --protocol paper"):
        named("ground-truth")
    with pytest.raises(ValueError, match="user: got 'nobody', expected one of independent"):
        named("nobody")


def test_a_sentence_encoder_may_be_given_as_an_object(retriever):
    asked = []

    class Mine:
        def encode_texts(self, texts):
            asked.extend(texts)
            return ENCODE(texts)

    named = users(retriever, sentence_encoder=Mine())
    one = view(IMAGE_IDS[1:9], IMAGE_IDS[:1])
    expected = NearestUser(caption_vectors(IMAGES, ENCODE)).judge([one])
    assert named("independent").judge([one]) == expected
    assert named("caption").judge([one]) == CaptionUser(IMAGES, {"q": "dog"}, ENCODE).judge([one])
    assert len(asked) == len(set(asked))  # both users share what has been encoded


# Words besides pointing


def test_a_phrase_is_said_once_and_only_if_it_is_new():
    captions = ("A man rides a wave, in the sea.", "A man in a black suit is standing on a wave")
    assert phrases_unsaid("a man rides", captions) == [
        "a man rides a wave",
        "in the sea",
        "in a black suit",
        "is standing",
    ]
    assert phrases_unsaid(captions[0], captions[:1]) == []
    assert phrases_unsaid("fish", ("above, near and with it.",)) == []  # nothing but links


def test_a_telling_user_points_as_the_other_and_says_one_phrase_a_round():
    inner = NearestUser(line(a=1.0, b=0.1))
    user = TellingUser(inner, {"q": ["red", "in a field"]}.__getitem__)
    heard = user.judge([view("ab"), view("a", round_number=1), view("a", round_number=2)])
    assert heard == [
        Feedback(("b",), said="red"), Feedback(("a",), said="in a field"), Feedback(("a",)),
    ]  # fmt: skip
    patient = ImpatientUser(user, 1)
    assert patient.judge([view("ab")])[0].said == "red"


def test_what_is_said_reaches_the_words_and_only_under_its_protocol(retriever):
    target = next(image_id for image_id in IMAGE_IDS if image_id.startswith("red-fish"))
    query = one_target("q", "something", target)
    for name in ("honest", "tells"):
        users = SimulatedUsers(retriever, IMAGES, [query], PROTOCOLS[name], WordEncoder())
        records = rounds_of(
            [query], retriever=retriever, user=users.named("independent", noise=0.5), strategy=Original(),
            protocol=PROTOCOLS[name], captions=None, round_count=3,
        )  # fmt: skip
        phrases = phrases_unsaid("something", CAPTIONS[target])
        expected = ["something", f"something, {phrases[0]}"] if name == "tells" else ["something"] * 2
        assert [record.text for record in records][:2] == expected
        assert records[0].said == (phrases[0] if name == "tells" else "")


def test_who_has_no_captions_of_a_target_cannot_tell(retriever):
    query = one_target("q", "something", IMAGE_IDS[0])
    bare = [replace(image, captions=()) for image in IMAGES]
    users = SimulatedUsers(retriever, bare, [query], PROTOCOLS["tells"], WordEncoder())
    with pytest.raises(ValueError, match="no caption to say a phrase of, first of query 'q'"):
        users.named("reference")
