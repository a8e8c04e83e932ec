"""The loop against a session played by hand; resuming, batches, both protocols and what may not leak."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
from conftest import (
    IMAGE_IDS,
    KnownCaptions,
    Merger,
    WordEncoder,
    caption_of,
    one_target,
    rounds_of,
    world_caption_vectors,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from feedback.history import NextQuery
from feedback.protocols import PROTOCOLS
from feedback.rounds import run_rounds
from feedback.strategies import STRATEGIES, make_strategy
from feedback.strategies.collection import Collection
from feedback.strategies.rewrite import Rewrite
from feedback.strategies.words import Append, Original
from feedback.users import FirstUser, NearestUser, RandomUser
from index.faiss_index import FaissIndex
from records import Feedback, Query
from retriever import Retriever, SearchQuery


@pytest.fixture(scope="module")
def strategy_of(retriever):
    """Strategies by name, over the whole world; the matching head is no better than the vectors."""
    vector_of = dict(zip(IMAGE_IDS, retriever.vectors_of(IMAGE_IDS), strict=True))

    def match(texts, image_ids):
        rows = retriever.encode_texts(texts)
        return np.array([row @ vector_of[i] for row, i in zip(rows, image_ids, strict=True)])

    collection = Collection(retriever, match, world_caption_vectors)
    return lambda name: make_strategy(name, Merger(), collection)


HONEST, REFERENCE = PROTOCOLS["honest"], PROTOCOLS["reference"]
TEXTS = ("dog", "red", "something in the beach", "an animal", "blue fish", "black mouse in the room")
QUERIES = [
    one_target(f"q{number}", TEXTS[number % len(TEXTS)], target)
    for number, target in enumerate(IMAGE_IDS[3:150:7])
]
RED = next(image_id for image_id in IMAGE_IDS if image_id.startswith("red-"))
NO_TARGET = Query("all fish", "fish", None, frozenset(i for i in IMAGE_IDS if "fish" in i))


def everything(retriever):
    return {
        "retriever": retriever,
        "user": NearestUser(retriever.vectors_of),
        "strategy": Append(),
        "protocol": HONEST,
        "captions": KnownCaptions(),
        "round_count": 4,
    }


@pytest.fixture(scope="module")
def play(retriever):
    return lambda queries, **changes: rounds_of(queries, **everything(retriever) | changes)


def by_query(rounds):
    sessions = {}
    for record in rounds:
        sessions.setdefault(record.query_id, []).append(record)
    return sessions


def session_by_hand(query, protocol, round_count):
    """Appends the caption of the image nearest to the target, one query, nothing shared with the loop."""
    vectors = WordEncoder().encode_texts(IMAGE_IDS).astype(np.float64)
    row_of = {image_id: row for row, image_id in enumerate(IMAGE_IDS)}
    text, seen, taken, said, ranks, session = query.text, [], [], [query.text], [], []
    for number in range(round_count):
        scores = vectors @ WordEncoder().encode_texts([text])[0].astype(np.float64)
        left = [row for row in range(len(IMAGE_IDS)) if not (protocol.removes_shown and row in seen)]
        order = sorted(left, key=lambda row: (-scores[row], row))
        shown = order[: protocol.shown]
        target = row_of[query.target]
        ranks.append(order.index(target) + 1)
        stop = ""
        if ranks[-1] <= protocol.hit_rank:
            stop = "found"
        elif protocol.stops_when_worse and number and ranks[-1] > ranks[-2]:
            stop = "worse"
        liked = None
        if not stop and number + 1 < round_count:
            may = [
                row for row in shown if row not in taken and (protocol.target_may_be_picked or row != target)
            ]
            float32 = vectors.astype(np.float32)
            liked = max(may, key=lambda row: (float32[row] @ float32[target], -shown.index(row)))
            taken.append(liked)
            caption = caption_of(IMAGE_IDS[liked])
            said += [caption] if caption not in said else []
        session.append(
            (
                text,
                [IMAGE_IDS[row] for row in shown],
                ranks[-1],
                stop,
                None if liked is None else IMAGE_IDS[liked],
            )
        )
        if stop:
            break
        seen, text = seen + shown, ", ".join(said)
    return session


NARROW = (replace(HONEST, shown=2, hit_rank=2), replace(REFERENCE, shown=20, hit_rank=1))


@pytest.mark.parametrize("protocol", [HONEST, REFERENCE, *NARROW])
def test_the_loop_plays_as_one_would_by_hand(play, protocol):
    queries = [
        one_target(f"{text} / {target}", text, target) for text in TEXTS[:3] for target in IMAGE_IDS[::3]
    ]
    sessions = by_query(play(queries, protocol=protocol))
    for query in queries:
        played = [
            (
                record.text,
                list(record.image_ids[: record.shown]),
                record.target_rank,
                record.stop,
                record.liked[0] if record.liked else None,
            )
            for record in sessions[query.id]
        ]
        assert played == session_by_hand(query, protocol, 4)
    stops = {session[-1].stop for session in sessions.values()}
    if protocol in NARROW:
        assert stops == ({"found", "", "worse"} if protocol.stops_when_worse else {"found", ""})


def test_honest_images_are_shown_once_and_the_target_ends_the_session(play):
    sessions = by_query(play(QUERIES, round_count=20))
    for query in QUERIES:
        session = sessions[query.id]
        shown = [image_id for record in session for image_id in record.image_ids[: record.shown]]
        assert len(shown) == len(set(shown)) == 10 * len(session)
        assert session[-1].stop == "found" and query.target in shown[-10:]
        assert all(record.stop == "" for record in session[:-1])
        assert query.target not in [image_id for record in session for image_id in record.liked]
        assert all(set(record.liked) <= set(record.image_ids[: record.shown]) for record in session)
        for number, record in enumerate(session):
            assert (record.number, record.shown, record.target) == (number, 10, query.target)
            assert record.relevant == (query.target,)
            assert not set(record.image_ids) & set(shown[: 10 * number])


@pytest.mark.parametrize("user", ["first", "random"])
@pytest.mark.parametrize("protocol", [HONEST, REFERENCE])
def test_ranks_and_scores_agree_with_brute_force(play, retriever, user, protocol):
    users = {"first": FirstUser(), "random": RandomUser(3)}
    rounds = play(QUERIES, user=users[user], protocol=protocol)
    assert {record.number for record in rounds} == {0, 1, 2, 3}
    vectors = retriever.vectors_of(IMAGE_IDS).astype(np.float64)
    for session in by_query(rounds).values():
        seen = set()
        for record in session:
            scores = vectors @ retriever.query_vectors([record.text])[0].astype(np.float64)
            order = sorted(range(len(IMAGE_IDS)), key=lambda row: (-scores[row], row))
            order = [row for row in order if IMAGE_IDS[row] not in seen]
            assert record.image_ids == tuple(IMAGE_IDS[row] for row in order[:50])
            assert record.scores == pytest.approx([scores[row] for row in order[:50]], abs=1e-6)
            assert record.target_rank == [IMAGE_IDS[row] for row in order].index(record.target) + 1
            if protocol.removes_shown:
                seen |= set(record.image_ids[: record.shown])


def test_reference_stops_when_the_rank_got_worse(play):
    target = "blue-cat-field"

    class Worse:
        needs_captions = False
        texts = iter(["cat", "red dog in the beach"])

        def next(self, histories):
            return [NextQuery(SearchQuery(next(self.texts)))]

    query = one_target("q", "blue", target)
    rounds = play([query], protocol=REFERENCE, strategy=Worse())
    assert rounds[0].target_rank > 10
    assert [record.stop for record in rounds] == ["", "", "worse"]
    Worse.texts = iter(["cat", "red dog in the beach", "blue cat in the field"])
    honest = play([query], strategy=Worse(), user=NoUser())
    assert "worse" not in [record.stop for record in honest]


class NoUser:
    """Never points at anything."""

    def judge(self, views):
        return [Feedback() for _ in views]


def test_reference_lets_the_target_be_picked_and_honest_does_not(play):
    target = play([one_target("q", "dog", IMAGE_IDS[0])], round_count=1)[0].image_ids[20]
    query = one_target("q", "dog", target)
    assert play([query], protocol=REFERENCE)[0].liked == (target,)
    shown_but_no_hit = replace(REFERENCE, target_may_be_picked=False)
    assert play([query], protocol=shown_but_no_hit)[0].liked != (target,)


def test_a_target_beyond_the_list_has_its_true_rank_and_is_no_hit(play):
    last = play([one_target("q", "dog", IMAGE_IDS[0])], protocol=replace(REFERENCE, shown=150))[0].image_ids[
        -1
    ]
    for protocol in (HONEST, REFERENCE):
        record = play([one_target("q", "dog", last)], protocol=protocol, round_count=1)[0]
        assert record.target_rank == len(IMAGE_IDS)
        assert last not in record.image_ids and len(record.image_ids) == 50
        assert record.stop == ""


def test_the_hit_rank_itself_is_a_hit_and_the_next_is_not(play):
    order = play([one_target("q", "dog", IMAGE_IDS[0])], round_count=1)[0].image_ids
    for protocol in (HONEST, REFERENCE):
        for place, stop in ((9, "found"), (10, "")):
            record = play([one_target("q", "dog", order[place])], protocol=protocol, round_count=1)[0]
            assert (record.target_rank, record.stop) == (place + 1, stop)


def test_a_collection_that_is_shown_whole_is_exhausted(play):
    ids = IMAGE_IDS[:25]
    encoder = WordEncoder()
    small = Retriever(encoder, FaissIndex.build(ids, encoder.encode_texts(ids)))
    nobody = Query("q", "dog", None, frozenset(["not-in-the-index"]))
    rounds = play([nobody], retriever=small, user=FirstUser(), round_count=9)
    assert [(record.shown, record.stop) for record in rounds] == [(10, ""), (10, ""), (5, "exhausted")]
    assert sorted(i for record in rounds for i in record.image_ids[: record.shown]) == sorted(ids)
    exact = Retriever(encoder, FaissIndex.build(ids[:20], encoder.encode_texts(ids[:20])))
    rounds = play([nobody], retriever=exact, user=FirstUser(), round_count=9)
    assert [(record.shown, record.stop) for record in rounds] == [(10, ""), (10, "exhausted")]
    rounds = play([nobody], retriever=small, user=FirstUser(), protocol=REFERENCE, round_count=3)
    assert [(record.shown, record.stop) for record in rounds] == [(25, ""), (25, ""), (25, "")]


def test_without_a_target_the_session_ends_when_all_relevant_were_shown(play):
    rounds = play([NO_TARGET], strategy=Original(), round_count=9)
    assert [record.stop for record in rounds] == ["", "", "found"]
    left = set(NO_TARGET.relevant)
    for record in rounds:
        assert record.target is None and record.target_rank is None
        assert record.relevant == tuple(sorted(left))
        left -= set(record.image_ids[: record.shown])
    assert not left
    assert rounds[0].liked and rounds[0].liked[0] in NO_TARGET.relevant


@pytest.mark.parametrize("protocol", [HONEST, REFERENCE])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_query_alone_plays_as_among_many(play, strategy_of, protocol, strategy):
    strategy = strategy_of(strategy)
    queries = [*QUERIES, NO_TARGET]
    together = by_query(play(queries, protocol=protocol, strategy=strategy, user=RandomUser(1)))
    for size in (1, 4):
        batches = play(queries, protocol=protocol, strategy=strategy, user=RandomUser(1), batch_size=size)
        assert by_query(batches) == together
    for query in queries[::5]:
        alone = play([query], protocol=protocol, strategy=strategy, user=RandomUser(1))
        assert alone == together[query.id]


def test_captions_are_those_of_the_picks_and_only_if_needed(play):
    captions = KnownCaptions()
    rounds = play(QUERIES, captions=captions)
    assert any(record.liked for record in rounds)
    assert all(record.captions == tuple(map(caption_of, record.liked)) for record in rounds)
    captions = KnownCaptions()
    rounds = play(QUERIES, captions=captions, strategy=Original())
    assert any(record.liked for record in rounds)
    assert not captions.asked and all(record.captions == () for record in rounds)


def test_several_picks_a_round_keep_their_captions(play):
    class Two:
        def judge(self, views):
            return [
                Feedback(view.candidates[: len(view.query_id) % 3], view.candidates[5:6]) for view in views
            ]

    queries = [replace(query, id=query.id + "x" * number) for number, query in enumerate(QUERIES[:5])]
    rounds = play(queries, user=Two())
    assert {len(record.liked) for record in rounds} == {0, 1, 2}
    assert all(record.captions == tuple(map(caption_of, record.liked)) for record in rounds)
    assert all(len(record.disliked) == 1 for record in rounds if not record.stop and record.number < 3)


def test_without_a_pick_the_query_stays(play):
    for strategy in (Append(), Rewrite(Merger(), True), Rewrite(Merger(), False)):
        rounds = play(QUERIES[:5], user=NoUser(), strategy=strategy)
        texts = {query.id: query.text for query in QUERIES}
        assert all(record.text == texts[record.query_id] and not record.fallback for record in rounds)
        assert max(record.number for record in rounds) > 0


# Resuming


RESUMED = [*QUERIES[:5], NO_TARGET]


@settings(max_examples=30, deadline=None)
@given(
    cut=st.integers(0, 24),
    sizes=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    chunk=st.sampled_from([1, 4, 100]),
    protocol=st.sampled_from(sorted(PROTOCOLS)),
)
def test_a_run_cut_anywhere_ends_as_if_it_was_not(play, cut, sizes, chunk, protocol):
    same = {"protocol": PROTOCOLS[protocol], "user": RandomUser(5), "strategy": Rewrite(Merger(), False)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("feedback.rounds.CHUNK", chunk)
        whole, kept = play(RESUMED, batch_size=sizes[0], **same), []
        resumed = play(RESUMED, batch_size=sizes[1], played=whole[:cut], keep=kept.extend, **same)
    assert resumed == whole and kept == whole[cut:]


def test_a_killed_run_has_kept_the_batches_before(play):
    class Tired(Append):
        left = 2

        def next(self, histories):
            Tired.left -= 1
            if not Tired.left:
                raise KeyboardInterrupt
            return super().next(histories)

    whole, kept = play(QUERIES, batch_size=4), []
    with pytest.raises(KeyboardInterrupt):
        play(QUERIES, batch_size=4, strategy=Tired(), keep=kept.extend)
    assert kept == whole[: len(kept)] and len(kept) == len(QUERIES) + 4
    assert play(QUERIES, batch_size=4, played=kept) == whole


def test_a_finished_run_is_not_played_again(play):
    whole = play(QUERIES)
    kept = []
    assert play(QUERIES, played=whole, keep=kept.append, captions=None, user=None) == whole
    assert kept == []


def test_chunks_come_one_after_another_and_play_as_all_together(play, monkeypatch):
    whole = play(QUERIES)
    monkeypatch.setattr("feedback.rounds.CHUNK", 4)
    chunked = play(QUERIES, batch_size=3)
    assert by_query(chunked) == by_query(whole) and chunked != whole
    place_of = {query.id: place // 4 for place, query in enumerate(QUERIES)}
    assert chunked == sorted(chunked, key=lambda record: (place_of[record.query_id], record.number))


def test_no_record_of_an_earlier_chunk_stays_in_memory(retriever, monkeypatch):
    monkeypatch.setattr("feedback.rounds.CHUNK", 4)
    alive, most = [], 0

    def keep(fresh):
        nonlocal alive, most
        alive = [record for record in alive if record() is not None] + [weakref.ref(r) for r in fresh]
        most = max(most, len(alive))

    def played():  # as from a file: nobody else holds the records
        whole = rounds_of(QUERIES[:12], **everything(retriever))
        while whole:
            yield whole.pop(0)

    run_rounds(QUERIES, keep=keep, **everything(retriever))
    assert 4 < most <= 4 * 4
    alive, most = [], 0
    run_rounds(QUERIES, played=played(), keep=keep, **everything(retriever))
    assert 4 < most <= 4 * 4


def test_wrong_queries_and_records_are_refused(play, monkeypatch):
    with pytest.raises(ValueError, match="distinct ids"):
        play([QUERIES[0], replace(QUERIES[1], id=QUERIES[0].id)])
    with pytest.raises(ValueError, match="targets of 1 queries are not in the index, first of query q1"):
        play([QUERIES[0], replace(QUERIES[1], target="pink-dog-beach")])
    played, kept = play(QUERIES[:2], round_count=1), []
    with pytest.raises(ValueError, match="records of 1 other queries, first q1"):
        play(QUERIES[:1], played=played, keep=kept.append)
    with pytest.raises(ValueError, match=f"'q0' have the target '{QUERIES[0].target}', expected 'red-"):
        play([replace(QUERIES[0], target=RED)], played=played[:1], keep=kept.append)
    with pytest.raises(ValueError, match="'q0' hold round 0 where round 1 is expected"):
        play(QUERIES[:2], played=[played[0], played[0]], keep=kept.append)
    monkeypatch.setattr("feedback.rounds.CHUNK", 1)
    with pytest.raises(ValueError, match="'q1' are not where a run writes them"):
        play(QUERIES[:2], played=played[::-1], keep=kept.append)
    assert not kept


def test_a_strategy_that_needs_captions_is_not_played_without(play):
    with pytest.raises(ValueError, match="Append needs captions of the picked images, got no captions"):
        play(QUERIES, captions=None)
    assert play(QUERIES, captions=None, strategy=Original())


def test_a_fallback_is_on_record(play):
    class Mute(Merger):
        def rewrite(self, queries, captions):
            return [""] * len(queries)

    rounds = play(QUERIES, strategy=Rewrite(Mute(), False))
    assert {(record.fallback, record.number > 0) for record in rounds} == {("", False), ("empty", True)}
