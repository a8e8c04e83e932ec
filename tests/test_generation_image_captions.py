"""Captions are made once ever, survive a kill, and are never another captioner's."""

import json

import pytest
from PIL import Image as PILImage

from generation.caption_store import BATCH_SIZE, CaptionStore
from records import Image

COUNT = BATCH_SIZE + 6


class RedCaptioner:
    """Says how red a picture is, which tells the test's pictures apart."""

    def __init__(self):
        self.batches = []

    def caption(self, images):
        self.batches.append(len(images))
        return [f"{image.getpixel((0, 0))[0]} réd" for image in images]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    images = [Image(f"{n}.png", folder / f"{n}.png", ("what people said",)) for n in range(COUNT)]
    for number, image in enumerate(images):
        PILImage.new("RGB", (2, 2), (number, 0, 0)).save(image.path)
    return images


def captions(*numbers):
    return [f"{number} réd" for number in numbers]


def ids(*numbers):
    return [f"{number}.png" for number in numbers]


def test_each_image_is_captioned_once(images):
    captioner = RedCaptioner()
    store = CaptionStore(captioner, "red", images, None)
    assert store.captions_of(ids(3, 1, 3)) == captions(3, 1, 3)
    assert store.captions_of(ids(1, 2)) == captions(1, 2)
    assert store.captions_of([]) == []
    assert captioner.batches == [2, 1] and store.made == 3
    assert store.captions_of([image.id for image in images]) == captions(*range(COUNT))
    assert captioner.batches == [2, 1, BATCH_SIZE, COUNT - 3 - BATCH_SIZE] and store.made == COUNT


def test_the_file_is_read_again(images, tmp_path):
    path = tmp_path / "new" / "captions.jsonl"
    CaptionStore(RedCaptioner(), "red", images, path).captions_of(ids(3, 1))
    captioner = RedCaptioner()
    store = CaptionStore(captioner, "red", images, path)
    assert store.captions_of(ids(1, 3)) == captions(1, 3)
    assert captioner.batches == [] and store.made == 0
    store.captions_of(ids(5))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == [
        {"captioner": "red"},
        *({"image": f"{n}.png", "caption": f"{n} réd"} for n in (3, 1, 5)),
    ]


def test_a_file_cut_anywhere_is_mended(images, tmp_path):
    path = tmp_path / "captions.jsonl"
    CaptionStore(RedCaptioner(), "red", images, path).captions_of(ids(3, 1))
    whole = path.read_bytes()
    for length in range(len(whole) + 1):  # in the middle of the é as well
        path.write_bytes(whole[:length])
        store = CaptionStore(RedCaptioner(), "red", images, path)
        assert store.captions_of(ids(3, 1)) == captions(3, 1)
        assert store.made == 3 - max(1, whole[:length].count(b"\n"))
        assert path.read_bytes() == whole


def test_a_kill_between_batches_loses_the_last_batch_only(images, tmp_path):
    class Killed(RedCaptioner):
        def caption(self, images):
            if self.batches:
                raise KeyboardInterrupt
            return super().caption(images)

    path = tmp_path / "captions.jsonl"
    with pytest.raises(KeyboardInterrupt):
        CaptionStore(Killed(), "red", images, path).captions_of([image.id for image in images])
    store = CaptionStore(RedCaptioner(), "red", images, path)
    assert store.captions_of([image.id for image in images]) == captions(*range(COUNT))
    assert store.made == COUNT - BATCH_SIZE


def test_another_captioners_file_is_refused(images, tmp_path):
    path = tmp_path / "captions.jsonl"
    CaptionStore(RedCaptioner(), "red", images, path)
    with pytest.raises(ValueError, match="captions by 'red', expected 'green'; remove it"):
        CaptionStore(RedCaptioner(), "green", images, path)


@pytest.mark.parametrize("damage", ['{"captioner": "red"}\nrubbish\n', "[]\n", '{"captioner": "red"}\n{}\n'])
def test_a_damaged_file_is_refused(images, tmp_path, damage):
    path = tmp_path / "captions.jsonl"
    path.write_text(damage)
    with pytest.raises(ValueError, match=r"captions.jsonl: damaged .*remove it"):
        CaptionStore(RedCaptioner(), "red", images, path)


def test_images_that_cannot_be_captioned_are_named(images, tmp_path):
    gone = Image("gone.png", tmp_path / "gone.png")
    store = CaptionStore(RedCaptioner(), "red", [*images, gone], None)
    with pytest.raises(ValueError, match=r"got image id 'other.png', expected one of the collection's 71"):
        store.captions_of(["1.png", "other.png"])
    with pytest.raises(ValueError, match=r"gone.png: no such file"):
        store.captions_of(["gone.png"])


def test_a_captioner_that_forgets_one_is_caught(images):
    class Forgetful(RedCaptioner):
        def caption(self, images):
            return super().caption(images)[1:]

    with pytest.raises(ValueError, match="zip"):
        CaptionStore(Forgetful(), "red", images, None).captions_of(ids(1, 2))
