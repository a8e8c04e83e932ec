"""The photograph models on tiny stand-ins: heads that learn, captions of the nearest, a world played."""

import json

import numpy as np
import pytest
from conftest import IMAGE_IDS, WordEncoder, caption_of
from PIL import Image as PILImage

from benchmarks.photographs import (
    ROUNDS,
    RUNS,
    NearestCaptions,
    PhotographEncoder,
    World,
    coco_world,
    play,
)
from experiments.own_models import GivenEncoder
from records import Image, Query


def features(images):
    return np.float32([np.asarray(image).reshape(-1, 3).mean(axis=0) / 255 for image in images])


def one_colour(*colours):
    return [PILImage.new("RGB", (8, 8), colour) for colour in colours]


class Names:
    """Texts to the colours they name."""

    def encode_texts(self, texts):
        return np.eye(3, dtype=np.float32)[["rgb".find(text[0]) % 3 for text in texts]]


@pytest.fixture(scope="module")
def encoder():
    random = np.random.default_rng(0)
    kinds = random.integers(0, 3, 120)
    pictures = np.float32(np.eye(3)[kinds] * 0.8 + random.uniform(0, 0.2, (120, 3)))
    captions = np.repeat(np.eye(3, dtype=np.float32)[kinds][:, None], 2, axis=1)
    return PhotographEncoder(features, Names(), pictures, captions, epochs=20, batch_size=8)


def test_heads_bring_pictures_and_words_together(encoder):
    pictures = encoder.encode_images(one_colour("red", "lime", "blue"))
    nearest = (encoder.encode_texts(["r", "g", "b"]) @ pictures.T).argmax(axis=1)
    assert nearest.tolist() == [0, 1, 2]
    assert GivenEncoder(encoder).dimension == encoder.dimension


def test_a_caption_is_one_of_the_nearest_pictures_and_never_its_own(encoder):
    pictures = encoder.encode_images(one_colour("red", "lime", "blue", "darkred"))
    said = Names().encode_texts(list("rrggbbrr")).reshape(4, 2, 3)
    texts = [["r0", "r1"], ["g0", "g1"], ["b0", "b1"], ["r2", "r3"]]
    captioner = NearestCaptions(encoder, pictures, said, texts)
    assert captioner.caption(one_colour("blue"))[0] in texts[2]
    assert captioner.describe(pictures[:1], [0])[0] in texts[3]


def test_a_world_is_played_against_scrolling():
    said = WordEncoder().encode_texts(list(map(caption_of, IMAGE_IDS)))
    images = tuple(Image(image_id, None, (image_id.replace("-", " "),)) for image_id in IMAGE_IDS)
    queries = tuple(
        Query(name, f"a {name.split('-')[0]} something", name, frozenset([name])) for name in IMAGE_IDS[::5]
    )
    lines = []
    system = list(map(caption_of, IMAGE_IDS))
    encoder = WordEncoder()
    people = [(image_id.replace("-", " "), caption_of(image_id)) for image_id in IMAGE_IDS[::2]]
    development = (said[::2], system[::2], people)
    world = World(images, said, system, queries, encoder, encoder, encoder, development)
    runs = (*RUNS["picks"], *RUNS["fused"][1:], *RUNS["tells"][1:3])
    tables = play(world, (2, None), lines.append, runs)
    assert list(tables) == [2, None] and list(tables[2]) == [run.name for run in runs]
    for found in tables[None].values():
        assert found.shape == (30, ROUNDS) and (np.diff(found.astype(int), axis=1) >= 0).all()
    rates = {name: found.mean() for name, found in tables[None].items()}
    assert rates["bayes"] > rates["scrolling"] and rates["bayes-captions"] > rates["scrolling"]
    assert rates["original, tells"] > rates["scrolling"]
    assert "calibrated without labels" in lines[0] and "calibrated on people" in lines[1]
    assert lines[2] == "\n150 images, 30 queries of 2 words"
    names = [run.name for group in RUNS.values() for run in group]
    assert "captions in the search, bayes-captions, on people, 30% wrong" in names


def test_coco_captions_keep_judge_query_and_system_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.photographs.open_sentence_encoder", lambda name: WordEncoder())
    entries = [
        {"image_id": number, "caption": f"caption {place} of {number}"}
        for number in range(4)
        for place in range(5 if number else 4)  # the first has too few
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": entries}))
    world = coco_world(tmp_path / "captions.json", 2, seed=0)
    (others,) = {image.id for image in world.images} - {query.target for query in world.queries}
    assert world.development[1:] == (
        [f"caption 1 of {others}"], [(f"caption 3 of {others}", f"caption 4 of {others}")],
    )  # fmt: skip
    assert [image.id for image in world.images] == ["1", "2", "3"] and len(world.queries) == 2
    for image, system in zip(world.images, world.captions, strict=True):
        assert system == f"caption 1 of {image.id}"
        assert image.captions == tuple(f"caption {place} of {image.id}" for place in (3, 4))
    assert all(query.text == f"caption 2 of {query.target}" for query in world.queries)
