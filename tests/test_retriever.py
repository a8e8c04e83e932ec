"""Text, pictures and vectors to rankings with a small real encoder: which colour words a text holds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_world import save_index
from PIL import Image

from index.faiss_index import FaissIndex
from retriever import Retriever, SearchQuery

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (90, 90, 90)}


class WordEncoder:
    """A text's mean colour, a picture's mean colour: both as unit rows of three dimensions."""

    dimension = 3
    fingerprint = "words-1"

    def __init__(self):
        self.batch_sizes = []

    def encode_texts(self, texts):
        self.batch_sizes.append(len(texts))
        found = [[COLOURS[word] for word in text.split() if word in COLOURS] or [(1, 1, 1)] for text in texts]
        return self._unit([np.mean(colours, axis=0) for colours in found])

    def encode_images(self, images):
        self.batch_sizes.append(len(images))
        return self._unit([np.asarray(image).reshape(-1, 3).mean(axis=0) for image in images])

    def _unit(self, rows):
        rows = np.array(rows, dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pictures():
    return [Image.new("RGB", (4, 4), colour) for colour in COLOURS.values()]


@pytest.fixture
def retriever():
    encoder = WordEncoder()
    return Retriever(
        encoder, FaissIndex.build(list(COLOURS), encoder.encode_images(pictures())), batch_size=3
    )


def test_a_vector_wins_over_the_text_and_only_its_direction_counts(retriever):
    green = retriever.vectors_of(["green"])[0]
    queries = [
        SearchQuery("red"),
        SearchQuery("red", green),
        SearchQuery(vector=green * 1e-30),
        SearchQuery(vector=green.astype(np.float64) * 1e200),
    ]
    assert [ranking.ids[0] for ranking in retriever.search(queries, 1)] == ["red", "green", "green", "green"]
    scores = [ranking.scores for ranking in retriever.search(queries[1:], 3)]
    assert scores[0] == scores[1] == scores[2]


def test_an_array_of_vectors_is_searched_as_it_is(retriever):
    texts = ["red", "grey blue", "green"]
    vectors = retriever.query_vectors(texts)
    assert vectors.shape == (3, 3)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert retriever.search(vectors, 4) == retriever.search(texts, 4)
    assert retriever.search([], 4) == []
    assert retriever.rank([], []).shape == (0,)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(-2, 2), min_size=4, max_size=4), min_size=1, max_size=4),
    left_out=st.sets(st.sampled_from(sorted(COLOURS)), max_size=3),
    k=st.integers(1, 5),
)
def test_scores_are_listed_and_ranked_as_brute_force_does(rows, left_out, k):
    encoder = WordEncoder()
    retriever = Retriever(encoder, FaissIndex.build(list(COLOURS), encoder.encode_images(pictures())))
    queries = [SearchQuery("red", scores=np.array(row, dtype=np.float32)) for row in rows]
    queries.insert(1, SearchQuery("green"))  # rows of vectors and rows of scores in one call
    exclude = [left_out] * len(queries)
    rankings = retriever.search(queries, k, exclude)
    assert rankings[1] == retriever.search(["green"], k, exclude[:1])[0]
    ids = list(COLOURS)
    for row, ranking in zip(rows, rankings[:1] + rankings[2:], strict=True):
        order = sorted((i for i in range(4) if ids[i] not in left_out), key=lambda i: (-row[i], i))
        assert ranking.ids == tuple(ids[i] for i in order[:k])
        assert ranking.scores == tuple(row[i] for i in order[:k])
    for target in set(ids) - left_out:
        ranks = retriever.rank(queries, [target] * len(queries), exclude)
        whole = retriever.search(queries, 4, exclude)
        assert ranks.tolist() == [ranking.ids.index(target) + 1 for ranking in whole]


def test_scores_win_over_vector_and_text_and_stand_for_no_vector(retriever):
    green, scores = retriever.vectors_of(["green"])[0], np.array([0, 0, 3, 0], dtype=np.float32)
    query = SearchQuery("red", green, scores)
    assert retriever.search([query], 1)[0].ids == ("blue",)
    assert retriever.prepared([query]) == [query]
    assert retriever.search([SearchQuery(scores=scores)], 4)[0].ids == ("blue", "red", "green", "grey")
    with pytest.raises(ValueError, match="query 1: got scores of all images, expected words or a vector"):
        retriever.query_vectors(["red", query])


def test_scores_that_do_not_fit_are_refused(retriever):
    for scores, message in (
        (np.zeros((1, 4), dtype=np.float32), r"got scores of shape \(1, 4\)"),
        (np.zeros(4), "dtype float64, expected one dimension of float32"),
        (np.array([0, np.nan], dtype=np.float32), "NaN or infinity"),
        (np.array([0, np.inf], dtype=np.float32), "NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            SearchQuery("red", scores=scores)
    query = SearchQuery(scores=np.zeros(3, dtype=np.float32))
    with pytest.raises(ValueError, match="got 3 scores, expected one for each of 4 images"):
        retriever.search([query], 1)
    query = SearchQuery(scores=np.zeros(4, dtype=np.float32))
    with pytest.raises(ValueError, match="got k=0"):
        retriever.search([query], 0)
    with pytest.raises(ValueError, match="target 'red' is excluded"):
        retriever.rank([query], ["red"], [{"red"}])
    with pytest.raises(ValueError, match="got 2 targets for 1 queries"):
        retriever.rank([query], ["red", "red"])
    with pytest.raises(ValueError, match="got 2 entries for 1 queries"):
        retriever.search([query], 1, [None, None])


def test_what_is_prepared_is_encoded_once(retriever):
    retriever.encoder.batch_sizes.clear()
    not_encoded = [
        SearchQuery(scores=np.zeros(4, dtype=np.float32)),
        SearchQuery("not encoded", np.ones(3)),
    ]
    asked = retriever.prepared(["red", *not_encoded, "blue", "green", "grey"])
    assert retriever.encoder.batch_sizes == [3, 1]  # texts go in batches, all together
    listed = retriever.search(asked, 4)
    assert retriever.rank(asked, ["grey"] * 6).tolist()[1] == 4
    assert retriever.encoder.batch_sizes == [3, 1]
    assert listed[::3] == retriever.search(["red", "blue"], 4)
    assert retriever.encode_images(pictures()).shape == (4, 3)
    assert retriever.encode_texts([]).shape == (0, 3)
    assert retriever.encoder.batch_sizes == [3, 1, 2, 3, 1]


def test_a_saved_index_is_opened_for_its_own_encoder_only(retriever, tmp_path):
    save_index(tmp_path, retriever.index.ids, retriever.index.vectors, fingerprint="words-1")
    opened = Retriever.open(WordEncoder(), tmp_path)
    assert opened.search(["red"], 4) == retriever.search(["red"], 4)

    class Other(WordEncoder):
        fingerprint = "words-2"

    with pytest.raises(ValueError, match=r"got words-1 \(small\), expected words-2"):
        Retriever.open(Other(), tmp_path)
    with pytest.raises(ValueError, match="got words-1 with dimension 3, expected words-2 with 3"):
        Retriever(Other(), opened.index)
    with pytest.raises(ValueError, match="with dimension 5, expected words-1 with 3"):
        Retriever(WordEncoder(), FaissIndex.build(["a"], np.eye(1, 5, dtype=np.float32)))
    with pytest.raises(FileNotFoundError, match="no such index folder"):
        Retriever.open(WordEncoder(), tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "vector", "message"),
    [
        (None, None, "expected words, or a vector"),
        ("  ", None, "got text '  '"),
        ("red", np.zeros(3), "vector of zeros"),
        (None, np.array([1, np.nan, 0]), "NaN"),
        (None, np.ones((1, 3)), r"got a vector of shape \(1, 3\)"),
        (None, np.ones(3, dtype=int), "expected one dimension of floats"),
    ],
)
def test_a_query_that_asks_nothing_is_refused(text, vector, message):
    with pytest.raises(ValueError, match=message):
        SearchQuery(text, vector)


def test_what_does_not_fit_the_index_is_refused(retriever):
    with pytest.raises(ValueError, match="query 1: got a vector of dimension 4, expected 3"):
        retriever.search([SearchQuery("red"), SearchQuery(vector=np.ones(4))], 1)
    with pytest.raises(ValueError, match="text 1: got ' '"):
        retriever.encode_texts(["red", " "])
    with pytest.raises(ValueError, match="got image id 'pink'"):
        retriever.vectors_of(["pink"])
    with pytest.raises(ValueError, match="batch size: got 0"):
        Retriever(retriever.encoder, retriever.index, batch_size=0)


def test_an_encoder_that_forgets_to_normalise_is_caught(retriever, monkeypatch):
    monkeypatch.setattr(WordEncoder, "_unit", lambda self, rows: np.array(rows, dtype=np.float32))
    with pytest.raises(ValueError, match="text vectors: row 0 has length 255, expected 1"):
        retriever.search(["red"], 1)
    with pytest.raises(ValueError, match="image vectors: row 0"):
        retriever.encode_images(pictures())
