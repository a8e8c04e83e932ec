"""The target steers nothing but the user: the same feedback searches, asks and prompts the same."""

import dataclasses

import numpy as np
import pytest
from conftest import (
    IMAGE_IDS,
    KnownCaptions,
    Merger,
    WordEncoder,
    caption_of,
    rounds_of,
    world_caption_vectors,
)

from feedback.history import History, Turn
from feedback.protocols import PROTOCOLS
from feedback.strategies import STRATEGIES, make_strategy
from feedback.strategies.collection import Collection
from feedback.strategies.rewrite import Rewrite
from feedback.strategies.words import Append
from feedback.users import NearestUser, View, caption_vectors
from query_editing import QueryEditing
from records import Feedback, Image, Query
from retriever import Retriever

WORDS = ("dog", "red", "something in the beach", "blue fish")
RULES = ("honest", "reference", "chatir")


class Points:
    """Likes and turns down by place alone, so that every target gets the same feedback."""

    def judge(self, views):
        return [Feedback((view.candidates[1 + view.round_number],), (view.candidates[0],)) for view in views]


class Overheard(Retriever):
    """A retriever that keeps every text, vector and score that it is asked for."""

    def __init__(self, retriever):
        super().__init__(retriever.encoder, retriever.index)
        self.heard = []

    def encode_texts(self, texts):
        self.heard += texts
        return super().encode_texts(texts)

    def search(self, queries, k, exclude=None):
        self.heard.append((k, [sorted(ids) for ids in exclude or ()]))
        self.heard += [
            (query.text, *(None if part is None else part.tolist() for part in (query.vector, query.scores)))
            for query in queries
        ]
        return super().search(queries, k, exclude)


def strategy_of(name, retriever, rewriter, captions):
    def match(texts, image_ids):
        pairs = zip(texts, image_ids, strict=True)
        return np.array([len(set(text) & set(image_id)) / 40 for text, image_id in pairs])

    return make_strategy(name, rewriter, Collection(retriever, match, world_caption_vectors))


def played(retriever, protocol, targets, make, rewriter, round_count=4):
    """Plays the words with these targets; returns the records and all that was said to any model."""
    overheard, captions = Overheard(retriever), KnownCaptions()
    queries = [
        Query(f"q{number}", text, target, frozenset([target]) if target else frozenset())
        for number, (text, target) in enumerate(zip(WORDS, targets, strict=True))
    ]
    rounds = rounds_of(
        queries, retriever=overheard, user=Points(), strategy=make(overheard, rewriter, captions),
        protocol=dataclasses.replace(PROTOCOLS[protocol], stops_when_worse=False), captions=captions,
        round_count=round_count,
    )  # fmt: skip
    return rounds, (overheard.heard, captions.asked)


def never_listed(rounds, place):
    """For each query an image that no round of it listed: as a target it is neither found nor shown."""
    listed = {f"q{number}": set() for number in range(len(WORDS))}
    for record in rounds:
        listed[record.query_id] |= set(record.image_ids)
    return [[i for i in IMAGE_IDS if i not in listed[query_id]][place] for query_id in listed]


PUBLIC = ("number", "text", "image_ids", "scores", "shown", "liked", "disliked", "captions", "fallback")


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_with_any_target_or_none_the_same_feedback_searches_the_same(retriever, name, rules):
    def play(targets):
        merger = Merger()
        rounds, said = played(retriever, rules, targets, lambda *parts: strategy_of(name, *parts), merger)
        return rounds, (*said, merger.pairs)

    alone, said = play([None] * len(WORDS))
    assert len(alone) == 16 and any(record.liked and record.disliked for record in alone)
    for place in (0, -1):
        targets = never_listed(alone, place)
        rounds, said_again = play(targets)
        assert {record.target for record in rounds} == set(targets)
        assert all(record.target_rank > 10 for record in rounds)
        assert said_again == said
        for one, other in zip(alone, rounds, strict=True):
            assert all(getattr(one, field) == getattr(other, field) for field in PUBLIC)


def test_with_any_target_or_none_the_same_feedback_prompts_the_same(retriever, language_model):
    def play(targets):
        editing = QueryEditing(language_model, "fp32")
        prompts, complete = [], editing._model.complete

        def overheard(given, **options):
            prompts.append((list(given), options))
            return complete(given, **options)

        editing._model.complete = overheard
        rounds, _ = played(
            retriever, "honest", targets, lambda _, rewriter, __: Rewrite(rewriter, False), editing, 3
        )
        return rounds, prompts

    rounds, prompts = play([None] * len(WORDS))
    targets = never_listed(rounds, 0)
    _, again = play(targets)
    assert prompts == again and sum(len(given) for given, _ in prompts) >= len(WORDS)
    assert not [image_id for image_id in targets if image_id in repr(again)]


def test_feedback_on_what_was_not_shown_is_refused(retriever):
    class Leaks:
        def __init__(self, as_disliked):
            self.as_disliked = as_disliked

        def judge(self, views):
            goals = [tuple(view.goals) for view in views]
            return [Feedback((), goal) if self.as_disliked else Feedback(goal) for goal in goals]

    target = rounds_of(
        [Query("q", "dog", None, frozenset())], retriever=retriever, user=Points(), strategy=Append(),
        protocol=PROTOCOLS["honest"], captions=KnownCaptions(), round_count=1,
    )[0].image_ids[30]  # fmt: skip
    for as_disliked in (False, True):
        with pytest.raises(ValueError, match=f"query 'q', round 0: the user pointed at '{target}'"):
            rounds_of(
                [Query("q", "dog", target, frozenset([target]))], retriever=retriever, strategy=Append(),
                user=Leaks(as_disliked), protocol=PROTOCOLS["honest"], captions=None, round_count=2,
            )  # fmt: skip


def test_a_history_holds_words_picks_and_captions_and_a_view_no_query_text(retriever):
    assert [field.name for field in dataclasses.fields(History)] == ["turns"]
    fields = {field.name for field in dataclasses.fields(Turn)}
    assert fields == {"text", "shown", "liked", "disliked", "captions", "said"}
    fields = {field.name for field in dataclasses.fields(View)}
    assert fields == {"query_id", "round_number", "goals", "candidates", "liked_before", "shown"}
    views = []

    class Watched(Points):
        def judge(self, seen):
            views.extend(seen)
            return super().judge(seen)

    targets = IMAGE_IDS[::9]
    rounds_of(
        [Query(f"q{n}", "xyzzy dog", target, frozenset([target])) for n, target in enumerate(targets)],
        retriever=retriever, user=Watched(), strategy=Append(), protocol=PROTOCOLS["honest"],
        captions=KnownCaptions(), round_count=4,
    )  # fmt: skip
    assert views and "xyzzy" not in repr(views)
    for view in views:
        assert view.goals == {targets[int(view.query_id[1:])]}
        assert len(view.candidates) >= 8 and not view.goals & set(view.candidates)


def test_peoples_captions_steer_the_user_and_reach_nobody_else(retriever, tmp_path):
    images = [Image(i, tmp_path / i, (caption_of(i) + " xyzzy", "xyzzy")) for i in IMAGE_IDS]
    user = NearestUser(caption_vectors(images, WordEncoder().encode_texts))
    queries = [Query(f"q{n}", "dog", i, frozenset([i])) for n, i in enumerate(IMAGE_IDS[::9])]
    for from_original in (False, True):
        merger, histories = Merger(), []

        class Watched(Rewrite):
            def next(self, seen):
                histories.extend(seen)  # noqa: B023
                return super().next(seen)

        rounds = rounds_of(
            queries, retriever=retriever, user=user, strategy=Watched(merger, from_original),
            protocol=PROTOCOLS["honest"], captions=KnownCaptions(), round_count=4,
        )  # fmt: skip
        assert merger.pairs and histories
        assert "xyzzy" not in repr((merger.pairs, histories, rounds))
