"""A person's session is the experiments' loop; files of it open again, and it can be measured."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import IMAGE_IDS, caption_of, one_target, rounds_of
from interactive_world import PAINT, context, options, picture_folder, study  # noqa: F401
from PIL import Image

from BLIP.tokenizer import Tokenizer
from evaluation.measures import evaluate
from evaluation.runs import read_rounds
from evaluation.study import StudySearch, read_study, study_csv, study_table
from feedback.protocols import PROTOCOLS
from interactive.match import match_word
from interactive.saved import open_session, save_session
from interactive.session import EDITED, MAX_LETTERS, MAX_PICTURES, Options, Session, UserError, checked_text
from interactive.study import latin_order, with_target
from interactive.words import WEIGHT, split_signs
from records import Feedback
from retriever import SearchQuery

PROJECT = Path(__file__).parent.parent


@pytest.fixture
def session(context, options):  # noqa: F811
    return Session(context, options)


def like_first(session, count=1):
    for image_id in session.current.shown_ids[:count]:
        session.mark(image_id, "like")


class Picks:
    """A simulated user that points at given places."""

    def __init__(self, place):
        self.place = place

    def judge(self, views):
        return [Feedback(liked=(view.candidates[self.place],)) for view in views]


@pytest.mark.parametrize("strategy", ["append", "rewrite-anchored", "rocchio", "bayes"])
def test_the_rounds_are_those_of_the_experiments(context, strategy):  # noqa: F811
    target = IMAGE_IDS[70]
    played = rounds_of(
        [one_target("q", "a dog", target)],
        retriever=context.retriever,
        user=Picks(1),
        strategy=context.strategy(strategy),
        protocol=replace(PROTOCOLS["honest"], target_may_be_picked=True),
        captions=context,
        round_count=3,
    )
    session = Session(context, Options(strategy))
    session.search("a dog")
    for _ in played[1:]:
        session.mark(session.current.shown_ids[1], "like")
        session.next_round()
    records = with_target(session.turns, target, context.retriever, "found", "q")
    for mine, theirs in zip(records, played, strict=True):
        same = {"stop": theirs.stop, "captions": theirs.captions, "liked": theirs.liked}
        assert replace(mine, **same) == theirs
    assert [record.liked for record in records[:-1]] == [record.liked for record in played[:-1]]


def test_likes_dislikes_and_captions_are_on_record_in_the_order_shown(session):
    session.search("a dog")
    shown = session.current.shown_ids
    marks = [(3, "like"), (1, "like"), (2, "dislike"), (5, "like"), (5, "none"), (6, "like"), (6, "dislike")]
    for place, mark in marks:
        session.mark(shown[place], mark)
    session.next_round()
    record = session.turns[0].record
    assert (record.liked, record.disliked) == ((shown[1], shown[3]), (shown[2], shown[6]))
    assert record.captions == tuple(map(caption_of, record.liked))
    with pytest.raises(UserError, match="not shown"):
        session.mark(shown[0], "like")


def test_the_next_query_can_be_seen_edited_or_dropped_before_it_is_searched(session):
    session.search("a dog")
    like_first(session)
    caption = caption_of(session.current.shown_ids[0])
    assert session.propose().search.text == f"a dog, {caption}" and len(session.turns) == 1
    session.next_round("a white dog on the beach")
    record = session.current.record
    assert (record.text, record.fallback) == ("a white dog on the beach", EDITED)
    assert session.turns[0].record.captions == (caption,)
    assert ("added", "white") in session.changes()
    session.go_to(0)
    session.next_round(session.propose().search.text)  # taken as it is: no edit
    assert (session.current.record.text, session.current.record.fallback) == (f"a dog, {caption}", "")
    session.go_to(0)
    session.propose()
    like_first(session, 2)
    assert session.proposal is None  # what it came from has changed
    session.propose()
    session.set_options(replace(session.options, strategy="original"))
    assert session.proposal is None
    session.next_round()
    assert session.current.record.text == "a dog"


def test_stepping_back_keeps_later_rounds_until_another_is_played(session):
    session.search("a dog")
    for _ in range(2):
        like_first(session)
        session.next_round()
    for number in (0, 2, 0):
        session.go_to(number)
        assert len(session.turns) == 3 and session.current.record.number == number
    session.next_round("a blue cat")
    assert [turn.record.text for turn in session.turns] == ["a dog", "a blue cat"]
    with pytest.raises(UserError, match="expected 1 to 2"):
        session.go_to(2)


def test_number_shown_and_threshold_act_on_the_latest_round(session):
    session.search("a dog")
    shown = session.current.shown_ids
    session.set_options(replace(session.options, shown=4))
    assert session.current.shown_ids == shown[:4]
    session.set_options(replace(session.options, shown=30, threshold=session.current.matches[0]))
    record = session.current.record
    assert record.shown == sum(match >= session.options.threshold for match in session.current.matches) < 30
    assert session.current.hidden == 30 - record.shown
    session.set_options(replace(session.options, threshold=99.0))
    assert session.current.shown_ids == ()
    session.next_round()  # nothing was shown, so nothing is gone
    session.set_options(replace(session.options, threshold=None))
    assert session.current.shown_ids[:4] == shown[:4]


def test_marks_of_pictures_that_options_hide_come_back_with_them(session):
    session.search("a dog")
    shown = session.current.shown_ids
    for place, mark in ((1, "like"), (7, "dislike"), (8, "like")):
        session.mark(shown[place], mark)
    for changed, liked, disliked in (
        ({"shown": 4}, (1,), ()),
        ({"threshold": 99.0}, (), ()),
        ({"shown": 10, "threshold": None}, (1, 8), (7,)),
    ):
        session.set_options(replace(session.options, **changed))
        record = session.current.record
        assert record.liked == tuple(shown[place] for place in liked)
        assert record.disliked == tuple(shown[place] for place in disliked)


def test_options_chosen_at_an_earlier_round_delete_nothing(session):
    session.search("a dog")
    like_first(session)
    session.next_round()
    turns = list(session.turns)
    session.go_to(0)
    told = session.set_options(replace(session.options, shown=3, threshold=99.0))
    assert "apply from the next search on" in told and session.turns == turns
    session.set_options(replace(session.options, threshold=None))
    session.next_round()
    assert len(session.turns) == 2 and len(session.current.shown_ids) == 3


def test_shown_pictures_come_again_only_when_asked(session):
    session.search("a dog")
    first = session.current.shown_ids
    session.set_options(replace(session.options, shows_again=True))
    session.next_round()
    assert session.current.shown_ids == first
    records = with_target(session.turns, first[0], session.context.retriever, "found")
    assert [record.target_rank for record in records] == [1, 1]
    session.set_options(replace(session.options, shows_again=False))  # searches the latest round again
    records = with_target(session.turns, first[4], session.context.retriever, "abandoned")
    assert [record.target_rank for record in records] == [5, None]  # overlooked: the earlier rank counts
    assert evaluate(records, 2, image_count=150).summary()["Mean rank"] == [5, 5]


def test_a_collection_shown_whole_ends_the_session(session):
    session.set_options(replace(session.options, shown=40))
    session.search("a dog")
    for _ in range(3):
        session.next_round()
    assert session.current.record.stop == "exhausted" and session.current.record.shown == 150 - 3 * 40
    with pytest.raises(UserError, match="all pictures have been shown"):
        session.next_round()


def test_showing_more_appends_without_end_and_loses_no_round(session):
    session.search("a dog")
    session.mark(session.current.shown_ids[3], "like")
    first, before = session.current.shown_ids, session.copy()
    for shown in range(20, 151, 10):
        session.show_more()
        assert len(session.turns) == 1 and len(session.current.shown_ids) == shown
        assert session.current.record.stop == ("exhausted" if shown == 150 else "")
    assert session.current.shown_ids[:10] == first and session.current.record.liked == (first[3],)
    session = before
    session.next_round()
    whole = session.copy()
    session.go_to(0)
    session.show_more()
    assert len(session.turns) == 1 and session.id != whole.id  # the other one can be gone back to
    assert {turn.record.query_id for turn in session.turns} == {session.id}
    session.set_options(replace(session.options, threshold=-99.0))
    assert len(session.current.shown_ids) == 20  # what was appended stays


@pytest.mark.parametrize(("words", "text"), [("", "a blue picture"), ("a dog", "a dog")])
def test_a_picture_stays_in_the_query_and_counts_as_much_as_words(session, words, text):
    asked = session.context.captions.known.asked
    session.search(words, Image.new("RGB", (50, 50), PAINT["blue"]))
    assert session.current.record.text == words and not asked  # nothing waits for the captioner
    assert session.needs_models == (not words)
    assert session.current.shown_ids[0].startswith("blue-dog" if words else "blue")
    session.next_round("a horse")
    assert session.turns[0].record.text == text
    horse, blue = session.context.retriever.encode_texts(["a horse", "blue"])
    seen = frozenset(session.turns[0].shown_ids)
    (expected,) = session.context.retriever.search((horse + blue)[None], 10, [seen])
    assert session.current.shown_ids == expected.ids
    assert session.current.record.scores[:10] == pytest.approx(expected.scores, abs=1e-6)
    session.search("a cat")
    assert session.added is None and session.upload is None


def test_a_picture_of_the_collection_is_searched_for(session):
    session.search("", similar="red-dog-beach")
    first, second = session.current.shown_ids[:2]
    assert first == "red-dog-beach" and second.startswith("red-dog")
    session.next_round()
    assert session.turns[0].record.text == caption_of("red-dog-beach")


def test_words_with_a_sign_steer_every_round(session):
    session.search("a dog -beach +red")
    assert session.current.record.text == "a dog" and session.signed == (("-", "beach"), ("+", "red"))
    assert all("beach" not in image_id for image_id in session.current.shown_ids)
    assert session.current.shown_ids[0].startswith("red-dog")
    session.next_round("a cat -red")
    e = session.context.retriever.encode_texts(["a cat", "a beach", "a red", "a red"])
    expected = e[0] + WEIGHT * (-e[1] + e[2] - e[3])
    np.testing.assert_allclose(
        session.current.search.vector / np.linalg.norm(session.current.search.vector),
        expected / np.linalg.norm(expected), atol=1e-6,
    )  # fmt: skip
    session.search("", Image.new("RGB", (50, 50), PAINT["blue"]))
    session.search("-beach", Image.new("RGB", (50, 50), PAINT["blue"]))
    assert all(i.startswith("blue") and "beach" not in i for i in session.current.shown_ids)
    for search in (session.search, session.next_round):
        with pytest.raises(UserError, match="only words with a sign"):
            search("-beach")


def test_words_with_a_sign_and_pictures_count_beside_scores_too(context):  # noqa: F811
    session = Session(replace(context, strategies=("append", "bayes")), Options("bayes"))
    session.search("a dog -beach", Image.new("RGB", (50, 50), PAINT["blue"]))
    session.next_round()  # no marks: the posterior is the words' own order
    vectors = context.retriever.vectors_of(IMAGE_IDS)
    seen, expected = frozenset(session.turns[0].shown_ids), vectors @ session.turns[0].search.vector
    order = [IMAGE_IDS[row] for row in np.argsort(-expected, kind="stable") if IMAGE_IDS[row] not in seen]
    assert session.current.search.scores is not None
    assert sorted(session.current.matches[:10]) == pytest.approx(
        sorted((expected[IMAGE_IDS.index(i)] - expected.mean()) / expected.std() for i in order[:10]),
        abs=2e-3,
    )
    assert not any("beach" in image_id for image_id in session.current.shown_ids)


@pytest.mark.parametrize(
    ("text", "words", "signed"),
    [
        ("a red car -night", "a red car", [("-", "night")]),
        ('a street -"palm tree" +old at noon', "a street at noon", [("-", "palm tree"), ("+", "old")]),
        ("a t-shirt, black-and-white", "a t-shirt, black-and-white", []),
        ("minus -5 degrees - or not -- x- +", "minus -5 degrees - or not -- x- +", []),
        ("-Übergröße a", "a", [("-", "Übergröße")]),
        ('a -"" b -" c', 'a -"" b -" c', []),
    ],
)
def test_only_a_sign_before_a_word_counts(text, words, signed):
    assert split_signs(text) == (words, tuple(signed))


@pytest.mark.parametrize("strategy", ["append", "bayes"])
def test_matches_are_deviations_above_the_average_whatever_the_strategy(context, strategy):  # noqa: F811
    session = Session(replace(context, strategies=("append", "bayes")), Options(strategy))
    session.search("a dog")
    like_first(session)
    session.next_round()
    search, record = session.current.search, session.current.record
    scores = search.scores
    if scores is None:
        scores = context.retriever.vectors_of(IMAGE_IDS) @ (search.vector / np.linalg.norm(search.vector))
    expected = [(score - scores.mean()) / scores.std() for score in record.scores]
    assert session.current.matches == pytest.approx(expected, abs=2e-3)
    assert [match_word(match) for match in (4.2, 3, 2.9, -5)] == ["very close", "close", "fair", "far"]
    flat = SearchQuery(scores=np.ones(150, np.float32))
    assert context.match_scale.of(flat, [1.0]) == (0.0,)  # no picture is better than another


def test_words_that_the_encoder_does_not_know_are_named(session):
    encoder = session.context.retriever.encoder
    encoder.unknown_words = Tokenizer.open(PROJECT / "BLIP/weights/demo").unknown_words
    assert session.search("a dog on the beach") == ""
    for words, named in (
        ("沙滩上的一只狗", "沙"),
        ("собака", "собака"),
        ("zwei Hunde am Strand", "zwei”, “hunde”, “strand"),
    ):
        assert f"hardly knows “{named}" in session.search(words)


def test_queries_and_options_are_bounded():
    assert checked_text("  a\tdog\n\x1b[31m on\u202e a  beach ") == "a dog [31m on a beach"
    for text, fault in (("  \n", "empty"), ("x" * (MAX_LETTERS + 1), "at most")):
        with pytest.raises(UserError, match=fault):
            checked_text(text)
    for wrong in (
        {"shown": 0},
        {"shown": MAX_PICTURES + 1},
        {"threshold": math.nan},
        {"threshold": math.inf},
    ):
        with pytest.raises(UserError, match="expected"):
            Options("append", **wrong)


# Saved, opened, exported


@pytest.fixture
def played(session):
    session.search("something blue -beach", Image.new("RGB", (50, 50), PAINT["blue"]))
    like_first(session, 2)
    session.next_round()
    session.mark(session.current.shown_ids[0], "dislike")
    session.next_round("a blue fish")
    session.go_to(1)
    return session


def test_a_saved_session_goes_on_as_if_it_had_never_stopped(played, context):  # noqa: F811
    opened = open_session(save_session(played), context)
    assert [turn.record for turn in opened.turns] == [turn.record for turn in played.turns]
    for name in ("position", "options", "upload", "similar", "typed", "signed", "id"):
        assert getattr(opened, name) == getattr(played, name)
    for each in (played, opened):
        each.go_to(2)
        each.next_round()
    assert opened.current.record == played.current.record
    np.testing.assert_array_equal(opened.current.search.vector, played.current.search.vector)


def test_a_search_by_scores_is_saved_too_and_no_threshold_hides_it(context):  # noqa: F811
    context = replace(context, strategies=("append", "original", "bayes"))
    session = Session(context, Options("bayes", threshold=-99.0))
    session.search("a dog")
    like_first(session)
    session.next_round()
    assert session.current.search.scores is not None and session.current.record.shown == 10
    opened = open_session(save_session(session), context)
    records = with_target(opened.turns, opened.current.shown_ids[3], context.retriever, "found")
    assert records[1].target_rank == 4
    for each in (session, opened):
        each.next_round()
    assert opened.current.record == session.current.record


def test_saved_text_that_names_another_collection_is_refused(played, context):  # noqa: F811
    values = json.loads(save_session(played))
    for field in ("model", "collection"):
        with pytest.raises(UserError, match="another collection"):
            open_session(json.dumps(values | {field: "x"}), context)
    with pytest.raises(UserError, match="another version"):
        open_session(json.dumps(values | {"format": 99}), context)
    for text in ("", "[]", "{", "null", "[" * 100_000):
        with pytest.raises(UserError, match="not a saved session"):
            open_session(text, context)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["at"], 9), (["at"], None), (["turns"], []), (["turns"], 3), (["turns", 0], []), (["query_id"], 7),
        (["turns", 0, "vector"], "AAAA"), (["turns", 0, "vector"], None), (["turns", 0, "scores"], "AAAA"),
        (["turns", 0, "marks"], {"../../secret": "like"}), (["turns", 0, "marks"], {IMAGE_IDS[0]: "adore"}),
        (["turns", 0, "text"], "x" * 100_000), (["turns", 0, "text"], "\ud800"),
        (["turns", 0, "captions"], ["one too few"]), (["turns", 0, "options", "strategy"], "../../etc"),
        (["turns", 0, "options", "shown"], True), (["options", "shown"], 10_001), (["options"], {}),
        (["options", "threshold"], "0"), (["options", "shows_again"], 1), (["added"], [1, 2]),
        (["upload"], "AAAA"), (["similar"], "../x"), (["signed"], [["/", "x"]]), (["signed"], 3),
        (["turns", 0, "marks"], []), (["turns", 0, "text"], None), (["turns", 0, "captions"], 7),
        (["options", "threshold"], 1e400), (["options", "shown"], 10**400), (["at"], 10**400),
    ],
)  # fmt: skip
def test_a_tampered_session_is_refused_whole(played, context, path, value):  # noqa: F811
    values = inside = json.loads(save_session(played))
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    with pytest.raises(UserError, match="damaged"):
        open_session(json.dumps(values), context)


# Measured


def test_declaring_a_target_ranks_it_in_every_round_as_brute_force_does(played, context):  # noqa: F811
    played.go_to(2)
    target = played.current.shown_ids[2]
    records = with_target(played.turns, target, context.retriever, "found")
    vectors, seen = context.retriever.vectors_of(IMAGE_IDS).astype(np.float64), set()
    for turn, record in zip(played.turns, records, strict=True):
        scores = vectors @ (turn.search.vector / np.linalg.norm(turn.search.vector)).astype(np.float64)
        order = [IMAGE_IDS[row] for row in np.lexsort((range(150), -scores)) if IMAGE_IDS[row] not in seen]
        assert record.target_rank == order.index(target) + 1
        seen |= set(turn.shown_ids)
    assert [record.stop for record in records] == ["", "", "found"]
    assert evaluate(records, 3, image_count=150).summary()["Recall@10"][-1] == 1.0


def test_a_study_counts_rounds_and_seconds(study, context, options):  # noqa: F811
    times = iter((0.0, 1.0, 100.0, 130.5, 200.0, 201.0, 260.0, 300.0))
    study.clock = lambda: next(times)
    practice = study.begin("P1")
    assert study.end(practice, Session(context, options), found=False).practice
    first = study.begin("P1")
    session = Session(context, options)
    colour, animal, place = first.search.target.split("-")
    session.search(f"a {colour} {animal} in the {place}")
    first.wrong = 2
    line = study.end(first, session, found=True)
    assert (line.outcome, line.rounds, line.seconds, line.wrong_pictures) == ("found", 1, 30.5, 2)
    study.begin("P1")
    study.end(study.begin("P2"), Session(context, options), found=False)
    other = study.begin("P2")  # the same pictures for all
    assert other.search.target == first.search.target != practice.search.target
    (record,) = read_rounds(study.folder / "rounds.jsonl")
    assert (record.query_id, record.target) == (line.id, first.search.target)
    assert (record.target_rank, record.stop) == (1, "found")
    searches = read_study(study.folder / "study.csv")
    assert [(each.participant, each.number, each.practice, each.outcome) for each in searches] == [
        ("P1", 0, True, "abandoned"), ("P1", 1, False, "found"), ("P1", 2, False, "unfinished"),
        ("P2", 0, True, "abandoned"), ("P2", 1, False, "unfinished"),
    ]  # fmt: skip
    assert searches[1] == line


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_conditions_take_turns_by_a_latin_square(study, count):  # noqa: F811
    study.conditions = ("append", "rocchio", "original", "slerp")[:count]
    orders = [latin_order(study.conditions, number) for number in range(count)]
    for place in range(count):
        assert {order[place] for order in orders} == set(study.conditions)
    if count == 4:  # and each follows each other one once
        assert len({pair for order in orders for pair in itertools.pairwise(order)}) == 12
    plan = study.plan(f"P{count + 1}")
    assert plan[0] == plan[1] and plan[1::4] == orders[1 % count] and len(plan) == 1 + 4 * count
    assert set(study.plan("P1", "append")) == {"append"}
    assert study.begin("P1", "append").search.target == study.begin("P2").search.target


def test_a_participant_gets_every_picture_once_after_a_restart_too(study, context):  # noqa: F811
    study.pictures = 200
    tasks = [study.begin("ann-7") for _ in range(100)]
    study = replace(study)
    tasks += [study.begin("ann-7") for _ in range(50)]
    assert len({task.search.target for task in tasks}) == 150
    assert [task.search.practice for task in tasks].count(True) == 1
    with pytest.raises(UserError, match="had all 150"):
        study.begin("ann-7")
    for participant, condition, fault in (
        ("ann", "", "such as P07"),
        ("../1", "", "P07"),
        ("1", "x", "append"),
    ):
        with pytest.raises(UserError, match=fault):
            study.begin(participant, condition)


def test_a_study_s_file_is_read_and_compared_by_participant(tmp_path):
    def search(person, condition, outcome, rounds, practice=False):
        words = 'a "dog", black'
        return StudySearch(person, condition, 1, practice, "x", outcome, words, rounds, 9.5, 1.0, 0)

    searches = [search("P1", "append", "found", 9, practice=True), search("P9", "append", "unfinished", 0)]
    for person in ("P1", "P2", "P3"):
        searches += [search(person, "append", "abandoned", 4), search(person, "bayes", "found", 2)]
    searches += [search("P4", "bayes", "abandoned", 1)]
    path = tmp_path / "study.csv"
    path.write_text(study_csv(searches))
    assert read_study(path) == searches
    rows = study_table(searches).splitlines()[2:]
    assert rows == [
        "| append | 3 | 3 | 0.0 | - | - | - |",
        "| bayes | 4 | 4 | 75.0 | 2 | 9.5 | +100.0 (+100.0 to +100.0) |",
    ]
    path.write_text(study_csv(searches).replace("True", "yes", 1))
    with pytest.raises(ValueError, match=r"line 2: .*mend or remove"):
        read_study(path)
    path.write_text("a,b\n")
    with pytest.raises(ValueError, match="expected the columns participant, condition"):
        read_study(path)
