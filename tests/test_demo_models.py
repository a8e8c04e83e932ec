"""The embedded default itself: the small BLIP in the repository, SmolLM2 and MiniLM out of their packages."""

from pathlib import Path

import pytest

from BLIP.captioner import BlipCaptioner
from BLIP.model import BlipEncoder
from BLIP.scores import by_caption_number, image_states, target_ranks
from feedback.sentence_encoder import open_sentence_encoder
from playground.demo.drawing import render
from playground.demo.generate import captions_of
from playground.demo.scenes import make_scene
from playground.demo.scoring import object_scores, read_caption
from query_editing import QueryEditing
from records import Dataset, Image, Query

WEIGHTS = Path(__file__).parent.parent / "BLIP" / "weights" / "demo"
SEEDS = range(3_000_000, 3_000_150)  # in none of the splits

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    images, queries = [], []
    for seed in SEEDS:
        scene = make_scene(seed)
        path = folder / f"{seed}.jpg"
        render(scene, 224).save(path, quality=95)
        said = captions_of(scene)
        images.append(Image(path.name, path, tuple(text for _, text in said)))
        for number, (_, text) in enumerate(said):
            queries.append(Query(f"{path.name}#{number}", text, path.name, frozenset((path.name,))))
    return Dataset("demo", folder, tuple(images), tuple(queries))


def test_the_small_blip_finds_unseen_scenes_and_matching_ranks_better(scenes):
    encoder = BlipEncoder.open(WEIGHTS)
    states = image_states(encoder, scenes)

    def ranks(number, rerank=False):
        return target_ranks(encoder, states, scenes, groups[number], rerank)

    groups = by_caption_number(scenes)
    assert list(groups) == ["0", "1", "2", "3", "4"]
    assert (ranks("0") <= 10).mean() >= 0.99
    assert (ranks("2") <= 10).mean() >= 0.95  # 150 images are fewer than 1,000
    for number in ("2", "3"):
        plain, matched = ranks(number), ranks(number, rerank=True)
        assert (matched == 1).mean() > (plain == 1).mean()
        assert ((plain <= 10) == (matched <= 10)).all()  # re-ranking stays among the ten best


def test_the_small_captioner_names_what_is_there(scenes):
    captioner = BlipCaptioner.open(WEIGHTS)
    captions = captioner.caption([render(make_scene(seed), 224) for seed in SEEDS], max_length=60)
    scores = object_scores(captions, list(SEEDS))
    assert scores["object precision"] >= 0.85
    assert scores["object recall"] >= 0.85 - 0.03  # 150 scenes are few; the card has the figure of 1,000
    assert scores["setting accuracy"] > 0.95
    assert not any(caption.startswith("a picture of") for caption in captions)


def test_reading_a_caption_takes_the_longest_names():
    assert read_caption("two slices of cake under a night sky") == ({"slice of cake"}, "night")
    assert read_caption("a puppy and a pine tree in a meadow") == ({"dog", "pine tree"}, "field")
    assert read_caption("nothing at all") == (set(), None)


def test_object_scores_count_over_all_scenes():
    scene = make_scene(3_000_000)
    nouns = [item.noun for item in scene.items]
    right = object_scores([" and ".join(nouns)], [3_000_000])
    assert (right["object precision"], right["object recall"]) == (1.0, 1.0)
    assert object_scores(["no thing"], [3_000_000])["object recall"] == 0.0
    with pytest.raises(ValueError, match="expected as many"):
        object_scores([], [1])


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
