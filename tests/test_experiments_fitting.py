"""The fit of the user model: known temperatures are found again, and a blind user teaches nothing."""

import numpy as np
import pytest
from conftest import IMAGE_IDS, KnownCaptions, caption_of, one_target, rounds_of

from experiments.fit_user_model import TEMPERATURES, fit
from feedback.protocols import PROTOCOLS
from feedback.strategies import make_strategy
from feedback.strategies.bayes import WordOverlap, log_sum
from feedback.strategies.collection import Collection
from feedback.users import RandomUser
from records import Feedback


class ModelledUser:
    """Picks by the very model that is fitted."""

    def __init__(self, collection, vectors, words):
        self.random = np.random.default_rng(0)
        self.collection, self.vectors, self.words = collection, vectors, words
        self.overlap = WordOverlap([caption_of(i) for i in IMAGE_IDS])

    def judge(self, views):
        return [Feedback((view.candidates[self._pick(view)],)) for view in views]

    def _pick(self, view):
        shown, (target,) = self.collection.rows(view.candidates), self.collection.rows(sorted(view.goals))
        affinity = self.collection.vectors[shown] @ self.collection.vectors[target] / self.vectors
        affinity = affinity + self.overlap.with_all(int(target))[shown] / self.words
        return self.random.choice(len(shown), p=np.exp(affinity - log_sum(affinity, axis=0)))


@pytest.fixture(scope="module")
def collection(retriever):
    return Collection(retriever, KnownCaptions().captions_of)


def scrolled(collection, user):
    texts = ("dog", "red", "beach", "a cat", "something blue", "horse in a room")
    queries = [
        one_target(f"q{number}", texts[number % len(texts)], IMAGE_IDS[number % 150]) for number in range(450)
    ]
    return rounds_of(
        queries,
        retriever=collection.retriever,
        user=user,
        strategy=make_strategy("original"),
        protocol=PROTOCOLS["honest"],
        captions=KnownCaptions(),
        round_count=5,
    )


def test_the_temperatures_of_a_modelled_user_are_found_again(collection):
    near = {0.15: (0.1, 0.15, 0.2)}
    found = fit(collection, scrolled(collection, ModelledUser(collection, 0.15, np.inf)))
    assert found.vectors in near[0.15]
    assert found.bits > 0.2
    found = fit(collection, scrolled(collection, ModelledUser(collection, np.inf, 0.15)))
    assert found.words in near[0.15] and found.vectors_with_words > 0.5
    assert found.bits_with_words > found.bits
    assert found.agreement[1] > found.agreement[0]


def test_a_user_who_picks_blindly_teaches_nothing(collection):
    found = fit(collection, scrolled(collection, RandomUser(0)))
    assert found.vectors >= 0.8 and abs(found.bits) < 0.02


def test_the_prior_is_the_likeliest_temperature(collection):
    rounds = scrolled(collection, RandomUser(0))
    opening = [turn for turn in rounds if turn.number == 0]

    def likelihood(temperature):
        total = 0.0
        for turn in opening:
            scores = collection.similarities(collection.encode([turn.text]))[0] / temperature
            total += (
                scores[IMAGE_IDS.index(turn.target)]
                - np.log(np.exp(scores - scores.max()).sum())
                - scores.max()
            )
        return total

    assert fit(collection, rounds).prior == max(TEMPERATURES, key=likelihood)


def test_nothing_to_fit_is_an_error(collection, retriever):
    with pytest.raises(ValueError, match="got 0 such queries and 0 picks"):
        fit(collection, [])
    with pytest.raises(ValueError, match="got no captioner"):
        fit(Collection(retriever), [])
