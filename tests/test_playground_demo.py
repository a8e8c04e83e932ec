"""The demo scenes: the same everywhere, said correctly, answered by the right pictures, drawn once."""

import csv
import hashlib
import itertools
import json

import numpy as np
import pytest

from playground import open_dataset
from playground.demo import generate
from playground.demo.catalogue import things
from playground.demo.drawing import _openmoji_folder, render
from playground.demo.generate import SPLITS, captions_of, ensure_split, image_name
from playground.demo.scenes import CELLS, GRID, Item, Scene, make_scene
from playground.demo.wording import (
    LEVELS,
    Description,
    Mention,
    matches,
)

# Of 200 scenes and all that is said of them: what stands where, and every word, plural and article.
# When it changes, raise `generate.VERSION` and train anew.
SCENES_SHA256 = "67914a8358192da859c214030ffab314310fcb2422ec39505acbe82a75d8e2a6"


def test_scenes_and_captions_are_those_the_weights_were_trained_on():
    digest = hashlib.sha256()
    for seed in range(200):
        scene = make_scene(seed)
        digest.update(repr(scene).encode())
        digest.update(repr(captions_of(scene)).encode())
    assert digest.hexdigest() == SCENES_SHA256
    assert generate.VERSION == 1


def test_every_caption_is_true_of_its_own_scene():
    said = [(make_scene(seed), captions_of(make_scene(seed))) for seed in range(150)]
    for scene, captions in said:
        assert len(captions) == len(LEVELS)
        for description, text in captions:
            assert matches(scene, description), (scene, text)
            assert text and text == text.strip() and "  " not in text
    scenes = [scene for scene, _ in said]
    answers = [
        np.mean([sum(matches(scene, captions[level][0]) for scene in scenes) for _, captions in said])
        for level in range(5)
    ]
    assert answers[0] < 1.2 and answers[4] > 2  # from precise to vague


# What answers what, on scenes made by hand


def item(noun, *corners, size="medium"):
    return Item(noun, size, False, corners or ((0, 14),))


DOG_LEFT_OF_CATS = Scene(
    0, "beach", 0, (item("dog", (0, 14), size="big"), item("cat", (18, 10), (18, 18), size="small"))
)
DOG_LEFT_OF_DUCK = Scene(0, "room", 0, (item("dog", (0, 14)), item("duck", (18, 14))))
DOG_ABOVE_DUCK = Scene(0, "room", 0, (item("dog", (5, 0)), item("duck", (6, 16))))
DIAGONAL = Scene(0, "room", 0, (item("dog", (0, 0)), item("duck", (15, 15))))
dog, cat, duck = Mention("animal", "dog"), Mention("animal", "cat"), Mention("bird", "duck")


a_bird, an_animal = Mention("bird"), Mention("animal")
YES = [
    (DOG_LEFT_OF_CATS, Description((cat, dog), setting="beach")),
    (DOG_LEFT_OF_CATS, Description((Mention("animal", "cat", count=2),))),
    (DOG_LEFT_OF_CATS, Description((Mention("animal", "dog", size="big"), cat))),
    (DOG_LEFT_OF_CATS, Description((an_animal, an_animal))),
    (DOG_LEFT_OF_DUCK, Description((a_bird, an_animal))),  # a broader category
    (DOG_LEFT_OF_DUCK, Description((dog, duck), "left")),
    (DOG_LEFT_OF_DUCK, Description((duck, dog), "right")),
    (DOG_LEFT_OF_DUCK, Description((an_animal, duck), "left")),
    (DOG_ABOVE_DUCK, Description((dog, duck), "above")),  # y grows downwards
    (DOG_ABOVE_DUCK, Description((duck, dog), "below")),
    (DIAGONAL, Description((dog, duck))),
]
NO = [
    (DOG_LEFT_OF_CATS, Description((dog,), setting="room")),
    (DOG_LEFT_OF_CATS, Description((Mention("animal", "horse"),))),
    (DOG_LEFT_OF_CATS, Description((Mention("animal", "cat", count=3),))),
    (DOG_LEFT_OF_CATS, Description((dog, Mention("animal", "cat", size="big")))),
    (DOG_LEFT_OF_CATS, Description((an_animal, an_animal, an_animal))),  # every mention another item
    (DOG_LEFT_OF_CATS, Description((a_bird,))),
    (DOG_LEFT_OF_CATS, Description((dog, cat), "left")),  # relations are of single things only
    (DOG_LEFT_OF_DUCK, Description((dog, dog))),
    (DOG_LEFT_OF_DUCK, Description((duck, dog), "left")),
    (DOG_LEFT_OF_DUCK, Description((dog, duck), "above")),
    (DIAGONAL, Description((dog, duck), "left")),
    (DIAGONAL, Description((dog, duck), "above")),
]


def test_what_answers_a_description():
    assert [said for scene, said in YES if not matches(scene, said)] == []
    assert [said for scene, said in NO if matches(scene, said)] == []


# The catalogue and its grammar


@pytest.mark.demo
def test_every_thing_has_a_picture():
    missing = [
        thing.noun
        for thing in things().values()
        if not (_openmoji_folder() / f"{thing.code_point}.svg").is_file()
    ]
    assert not missing
    assert len({thing.code_point for thing in things().values()}) == len(things())


def test_splits_share_no_scene():
    ranges = sorted((first, first + count) for first, count, _ in SPLITS.values())
    assert all(end <= first for (_, end), (first, _) in itertools.pairwise(ranges))
    assert set(SPLITS) == {"train", "train-large", "dev", "test", "test-medium", "dev-large", "test-large"}


QUARTERS = {
    2000000: [[185, 189, 184], [188, 190, 185], [134, 133, 111], [132, 125, 114]],
    2000001: [[145, 174, 148], [145, 176, 150], [83, 126, 74], [84, 122, 81]],
    2000007: [[248, 236, 163], [248, 236, 163], [216, 207, 155], [221, 206, 138]],
    14: [[166, 205, 234], [167, 203, 229], [224, 196, 145], [234, 212, 144]],
}


# On disk


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(generate, "SPLITS", {"train": (0, 12, 48), "test": (2_000_000, 12, 48)})


@pytest.mark.demo
def test_a_split_is_drawn_and_read(small, tmp_path):
    dataset = open_dataset("demo", tmp_path, "test")
    scenes = [make_scene(seed) for seed in range(2_000_000, 2_000_012)]
    assert [image.id for image in dataset.images] == [image_name(scene) for scene in scenes]
    assert dataset.skipped == () and len(dataset.queries) == 60
    assert (tmp_path / "test" / "ATTRIBUTION.txt").read_text().count("CC BY-SA 4.0")
    queries = {query.id: query for query in dataset.queries}
    for scene, image in zip(scenes, dataset.images, strict=True):
        said = captions_of(scene)
        assert image.captions == tuple(text for _, text in said)
        for number, (description, text) in enumerate(said):
            query = queries[f"{image.id}#{number}"]
            assert (query.text, query.target) == (text, image.id)
            assert query.relevant == {image_name(other) for other in scenes if matches(other, description)}
    assert any(len(query.relevant) > 1 for query in queries.values())
    with pytest.raises(ValueError, match=r"unknown split .all. of the demo scenes; expected one of train, "):
        open_dataset("demo", tmp_path, "all")


@pytest.mark.demo
def test_regions_say_what_stands_where(small, tmp_path):
    with (ensure_split(tmp_path, "train") / "regions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scenes = {image_name(scene): scene for scene in map(make_scene, range(12))}
    assert len(rows) == sum(item.count for scene in scenes.values() for item in scene.items)
    for row in rows:
        left, top, right, bottom = (float(row[side]) * GRID for side in ("left", "top", "right", "bottom"))
        (item,) = (item for item in scenes[row["image_name"]].items if item.noun == row["label"])
        assert (round(left), round(top)) in item.corners
        assert round(right - left) == round(bottom - top) == CELLS[item.size]


@pytest.mark.demo
def test_a_split_is_drawn_once(small, tmp_path, monkeypatch):
    folder = ensure_split(tmp_path, "test")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert ensure_split(tmp_path, "test") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    monkeypatch.setattr(generate, "VERSION", generate.VERSION + 1)
    ensure_split(tmp_path, "test")
    manifest = folder / "manifest.json"
    assert json.loads(manifest.read_text())["version"] == generate.VERSION
    assert manifest.stat().st_mtime_ns != before[manifest]


@pytest.mark.demo
def test_an_interrupted_drawing_is_done_again(small, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generate, "_write_texts", killed)
        with pytest.raises(KeyboardInterrupt):
            ensure_split(tmp_path, "test")
    assert not (tmp_path / "test").exists()
    (tmp_path / "test.unfinished" / "images" / "left-over.jpg").write_bytes(b"half a picture")
    folder = ensure_split(tmp_path, "test")
    assert not (tmp_path / "test.unfinished").exists()
    assert len(list((folder / "images").iterdir())) == 12
    with (folder / "relevant.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) > 60


@pytest.mark.demo
def test_pictures_look_as_they_did():
    # Means of the four quarters; another machine's rasteriser may round otherwise, so not to the bit.
    for seed, quarters in QUARTERS.items():
        picture = render(make_scene(seed), 64)
        assert (picture.size, picture.mode) == ((64, 64), "RGB")
        means = np.asarray(picture).reshape(2, 32, 2, 32, 3).mean(axis=(1, 3)).reshape(-1, 3)
        assert np.abs(means - quarters).max() < 2, seed
        assert picture.tobytes() == render(make_scene(seed), 64).tobytes()
