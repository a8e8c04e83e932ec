"""Every strategy over collections and histories of any sort: finite, and blind to the collection's order."""

import os
import zlib

import numpy as np
import pytest
from conftest import Merger
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from feedback.history import History, Turn
from feedback.strategies import STRATEGIES, make_strategy
from feedback.strategies.collection import Collection
from index.faiss_index import FaissIndex
from index.scores import unit_rows
from retriever import Retriever

QUICK = settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "10")), deadline=None)
DIMENSION = 6
TEXTS = ("dog", "a red dog", "犬", "the", "dog, dog", "1", "x" * 500)
CHANCES = (0.0, 1.0, 0.5, 1e-300, 1 - 1e-16)


class AnyWords:
    """A fixed direction for each text."""

    dimension = DIMENSION
    fingerprint = "any words"

    def encode_texts(self, texts):
        rows = [np.random.default_rng(zlib.crc32(text.encode())).standard_normal(DIMENSION) for text in texts]
        return np.float32([row / np.linalg.norm(row) for row in rows])

    def encode_images(self, images):
        raise AssertionError("no strategy encodes pictures")


def caption_of(image_id):
    return TEXTS[zlib.crc32(image_id.encode()) % len(TEXTS)]


def match(texts, image_ids):
    return np.array([CHANCES[zlib.crc32(image_id.encode()) % len(CHANCES)] for image_id in image_ids])


def collection_of(ids, vectors):
    retriever = Retriever(AnyWords(), FaissIndex.build(ids, vectors))
    said = AnyWords().encode_texts([caption_of(image_id) for image_id in ids])
    return Collection(retriever, match, lambda: unit_rows(said, DIMENSION, "caption vectors"))


@st.composite
def worlds(draw, twins=True):
    """Ids with unit vectors, and a history that shows, likes and turns down some of them."""
    count = draw(st.integers(1, 20))
    rows = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).standard_normal((count, DIMENSION))
    if twins and draw(st.booleans()):  # equal images, and one opposite to another
        rows[count // 2 :] = rows[0]
        rows[-1] = -rows[0]
    vectors = np.float32(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    ids = [f"{number}.jpg" for number in range(count)]
    turns, words = [], draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        shown = draw(st.lists(st.sampled_from(ids), max_size=8, unique=True))
        likes = draw(st.lists(st.booleans(), min_size=len(shown), max_size=len(shown)))
        turned = draw(st.lists(st.booleans(), min_size=len(shown), max_size=len(shown)))
        liked = tuple(one for one, yes in zip(shown, likes, strict=True) if yes)
        disliked = tuple(one for one, yes in zip(shown, turned, strict=True) if yes and one not in liked)
        turns.append(Turn(words, tuple(shown), liked, disliked, tuple(map(caption_of, liked))))
    return ids, vectors, History(tuple(turns))


def searched(name, collection, history):
    (query,) = make_strategy(name, Merger(), collection).next([history])
    return query.search


@pytest.mark.parametrize("name", STRATEGIES)
@QUICK
@given(world=worlds())
def test_any_history_gives_a_query_that_can_be_searched(name, world):
    ids, vectors, history = world
    collection = collection_of(ids, vectors)
    search = searched(name, collection, history)
    if search.scores is not None:
        assert search.scores.shape == (len(ids),) and np.isfinite(search.scores).all()
    else:
        (row,) = collection.retriever.query_vectors([search])
        assert np.linalg.norm(row.astype(np.float64)) == pytest.approx(1, abs=1e-6)
    assert search.text and search.text.strip()
    (ranking,) = collection.retriever.search([search], len(ids))
    assert sorted(ranking.ids) == sorted(ids) and np.isfinite(ranking.scores).all()
    ranks = collection.retriever.rank([search] * len(ids), ranking.ids)
    assert ranks.tolist() == list(range(1, len(ids) + 1))
    again = searched(name, collection_of(ids, vectors), history)  # a function of the history alone
    assert again.text == search.text
    for one, other in ((search.vector, again.vector), (search.scores, again.scores)):
        assert (one is None and other is None) or (one.tolist() == other.tolist())


@pytest.mark.parametrize("name", STRATEGIES)
@QUICK
@given(world=worlds(), data=st.data())
def test_the_order_of_the_collection_does_not_matter(name, world, data):
    ids, vectors, history = world
    order = data.draw(st.permutations(range(len(ids))))
    straight, mixed = collection_of(ids, vectors), collection_of([ids[row] for row in order], vectors[order])
    if name == "rrf":  # ranks of equal images follow the rows: docs/feedback.md
        lists = straight.similarities(vectors)
        words = straight.similarities(straight.encode([history.words, *TEXTS]))
        assume(all(len(set(scores.tolist())) == len(ids) for scores in (*lists, *words)))
    one, other = searched(name, straight, history), searched(name, mixed, history)
    assert one.text == other.text
    if one.vector is not None:
        assert one.vector.tolist() == other.vector.tolist()
    if one.scores is not None:
        assert other.scores == pytest.approx(one.scores[list(order)], rel=1e-5, abs=1e-5)
