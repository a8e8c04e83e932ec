"""The embedded default itself: the small BLIP in the repository, SmolLM2 and MiniLM out of their packages."""

from pathlib import Path

import numpy as np
import pytest
from demo_scoring import object_scores

from BLIP.captioner import BlipCaptioner
from BLIP.model import BlipEncoder
from feedback.itm_scorer import ItmScorer
from feedback.sentence_encoder import open_sentence_encoder
from index.decode import open_image
from index.faiss_index import FaissIndex
from playground.demo.drawing import render
from playground.demo.generate import captions_of
from playground.demo.scenes import make_scene
from query_editing import QueryEditing
from retriever import Retriever

WEIGHTS = Path(__file__).parent.parent / "BLIP" / "weights" / "demo"
SEEDS = range(3_000_000, 3_000_100)  # in none of the splits
COSINE_WEIGHT = 20.0  # 1 over the contrast's temperature; chosen on the demo's dev split among 0 to 100

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The pictures' files by number, and what is said of each, from precise to vague."""
    folder = tmp_path_factory.mktemp("scenes")
    paths, said = [], []
    for seed in SEEDS:
        scene = make_scene(seed)
        paths.append(folder / f"{seed}.jpg")
        render(scene, 224).save(paths[-1], quality=95)
        said.append([text for _, text in captions_of(scene)])
    return paths, said


def test_the_small_blip_finds_unseen_scenes_and_matching_ranks_better(scenes):
    paths, said = scenes
    encoder = BlipEncoder.open(WEIGHTS)
    names = [path.name for path in paths]
    vectors = encoder.encode_images([open_image(path) for path in paths])
    retriever = Retriever(encoder, FaissIndex.build(names, vectors))
    for number, share in ((0, 0.99), (2, 0.95)):  # a hundred images are fewer than the card's 1,000
        assert (retriever.rank([texts[number] for texts in said], names) <= 10).mean() >= share
    queries = [texts[3] for texts in said]
    scorer = ItmScorer(encoder, dict(zip(names, paths, strict=True)))
    plain = matched = 0
    for query, target, found in zip(queries, names, retriever.search(queries, 10), strict=True):
        chances = scorer([query] * 10, found.ids).clip(1e-9, 1 - 1e-9)
        scores = np.log(chances / (1 - chances)) + COSINE_WEIGHT * np.array(found.scores)
        plain += found.ids[0] == target
        matched += found.ids[int(scores.argmax())] == target
    assert matched > plain


def test_the_small_captioner_names_what_is_there(scenes):
    captioner = BlipCaptioner.open(WEIGHTS)
    captions = captioner.caption([open_image(path) for path in scenes[0]], max_length=60)
    scores = object_scores(captions, list(SEEDS))
    assert scores["object precision"] >= 0.85
    assert scores["object recall"] >= 0.85 - 0.03  # few scenes; the card has the figure of 1,000
    assert scores["setting accuracy"] > 0.95
    assert not any(caption.startswith("a picture of") for caption in captions)


def test_smollm2_merges_in_a_batch():
    editing = QueryEditing("smollm2-135m-instruct", "fp32", batch_size=2)
    queries = ["a dog on the beach", "something to eat at night", "a vehicle"]
    captions = ["a small dog next to an umbrella", "two pizzas to the left of a man", "a red bus in town"]
    rewrites = editing.rewrite(queries, captions)
    assert len(rewrites) == 3
    assert "dog" in rewrites[0] and "bus" in rewrites[2]
    assert all(rewrite and "\n" not in rewrite for rewrite in rewrites)


def test_the_users_sentence_encoder_sees_meaning_and_keeps_the_order():
    encoder = open_sentence_encoder("all-minilm-l6-v2")
    rows = encoder.encode_texts(["a dog", "a very long sentence about the weather in spring", "a puppy"])
    assert rows.shape == (3, 384)
    assert rows[0] @ rows[2] > rows[0] @ rows[1] + 0.3
    assert (rows**2).sum(axis=1) == pytest.approx(1, abs=1e-5)
    with pytest.raises(OSError):
        open_sentence_encoder("/no/such/encoder")
