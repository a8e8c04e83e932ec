"""Images are captioned once ever, whatever their names; broken ones stop nothing; equal models share."""

import os
import shutil
from importlib.metadata import version

import pytest
from PIL import Image as PILImage

import generation.captions
from generation.captions import CaptionCache, ImageCaptions
from generation.loading import model_identity
from records import Image

COUNT = 11
BATCH = 4


class RedCaptioner:
    """Says how red a picture is, which tells the test's pictures apart."""

    def __init__(self, model_id):
        self.model_id = str(model_id)
        self.name = f"{model_id} fp32: say how red"
        self.batches = []

    def caption(self, images):
        self.batches.append(len(images))
        return [f"{image.getpixel((0, 0))[0]} réd" for image in images]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    images = [Image(f"{n}.png", folder / f"{n}.png", ("what people said",)) for n in range(COUNT)]
    for number, image in enumerate(images):
        PILImage.new("RGB", (2, 2), (number, 0, 0)).save(image.path)
    return images


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "red.pth"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def open_captions(images, model, tmp_path):
    def open_captions(captioner=None, images=images, cache="captions.sqlite"):
        cache = CaptionCache(tmp_path / "cache" / cache)
        return ImageCaptions(captioner or RedCaptioner(model), images, cache, BATCH)

    return open_captions


def said(*numbers):
    return [f"{number} réd" for number in numbers]


def ids(*numbers):
    return [f"{number}.png" for number in numbers]


def counts(captions):
    return captions.reused, captions.made, len(captions.broken)


def test_each_image_is_captioned_once(open_captions, model):
    captioner = RedCaptioner(model)
    captions = open_captions(captioner)
    assert captions.captions_of(ids(3, 1, 3)) == said(3, 1, 3)
    assert captions.captions_of(ids(1, 2)) == said(1, 2)
    assert captions.captions_of([]) == []
    assert captioner.batches == [2, 1] and counts(captions) == (0, 3, 0)
    assert captions.captions_of(ids(*range(COUNT))) == said(*range(COUNT))
    assert captioner.batches == [2, 1, 4, 4] and counts(captions) == (0, COUNT, 0)
    assert captions.counts() == "11 captions made, 0 reused"


def test_equal_renamed_and_copied_pictures_are_captioned_once(open_captions, images, model, tmp_path):
    shutil.copy(images[2].path, images[7].path)
    captioner = RedCaptioner(model)
    captions = open_captions(captioner)
    assert captions.captions_of(ids(7, 1, 2)) == said(2, 1, 2)
    assert captioner.batches == [2] and counts(captions) == (1, 2, 0)
    images[1].path.rename(tmp_path / "renamed.png")
    again = open_captions(images=[Image("a", tmp_path / "renamed.png"), images[7]])
    assert again.captions_of(["a", "7.png"]) == said(1, 2) and counts(again) == (2, 0, 0)


def test_a_changed_picture_is_captioned_again(open_captions, images):
    open_captions().captions_of(ids(1, 2))
    PILImage.new("RGB", (2, 2), (99, 0, 0)).save(images[1].path)
    captions = open_captions()
    assert captions.captions_of(ids(1, 2)) == said(99, 2)
    assert counts(captions) == (1, 1, 0)


def test_a_picture_replaced_while_it_is_captioned_gets_no_caption_of_the_other(
    open_captions, images, caplog, monkeypatch
):
    captions, opened = open_captions(), generation.captions.open_hashed

    def replaced(path):
        if path == images[1].path:  # of the same size and time, too
            status = path.stat()
            PILImage.new("RGB", (2, 2), (200, 0, 0)).save(path)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return opened(path)

    os.utime(images[1].path, (1_700_000_000, 1_700_000_000))
    monkeypatch.setattr(generation.captions, "open_hashed", replaced)
    assert captions.captions_of(ids(0, 1)) == ["0 réd", ""]
    assert "its file was replaced meanwhile; give the same command again" in caplog.text
    monkeypatch.undo()
    assert open_captions().captions_of(ids(0, 1)) == said(0, 200)


def test_a_broken_picture_has_the_empty_caption_and_is_tried_again(open_captions, images, caplog):
    images[1].path.write_bytes(images[1].path.read_bytes()[:40])
    images[2].path.unlink()
    captions = open_captions()
    assert captions.captions_of(ids(0, 1, 2, 3, 1)) == ["0 réd", "", "", "3 réd", ""]
    assert counts(captions) == (0, 2, 2)
    assert captions.counts() == "2 captions made, 0 reused, 2 pictures broken"
    assert captions.broken["2.png"] == "no such file" and "not a picture" in captions.broken["1.png"]
    assert [
        record.getMessage().split(" ")[0] for record in caplog.records if record.levelname == "WARNING"
    ] == [
        str(images[2].path),
        str(images[1].path),
    ]
    for number in (1, 2):
        PILImage.new("RGB", (2, 2), (number, 0, 0)).save(images[number].path)
    assert open_captions().captions_of(ids(0, 1, 2, 3)) == said(0, 1, 2, 3)


def test_a_kill_loses_the_batch_that_was_being_made_alone(open_captions, model):
    class Killed(RedCaptioner):
        def caption(self, images):
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().caption(images)

    with pytest.raises(KeyboardInterrupt):
        open_captions(Killed(model)).captions_of(ids(*range(COUNT)))
    captions = open_captions()
    assert captions.captions_of(ids(*range(COUNT))) == said(*range(COUNT))
    assert counts(captions) == (2 * BATCH, COUNT - 2 * BATCH, 0)


def test_what_another_process_made_meanwhile_is_used(open_captions, model):
    class Slow(RedCaptioner):
        def caption(self, images):
            if not self.batches:
                open_captions(RedCaptioner(model)).captions_of(ids(*range(6)))
            return [f"late {text}" for text in super().caption(images)]

    captioner = Slow(model)
    captions = open_captions(captioner)
    late = [f"late {text}" for text in said(*range(6, COUNT))]
    assert captions.captions_of(ids(*range(COUNT))) == said(*range(6)) + late
    assert captioner.batches == [BATCH, 2, COUNT - 2 * BATCH]
    assert counts(captions)[0] + counts(captions)[1] == COUNT


def test_other_weights_precision_or_prompt_are_another_captioner(open_captions, model, tmp_path):
    open_captions().captions_of(ids(1))

    def made(model_id, name=None):
        captioner = RedCaptioner(model_id)
        captioner.name = f"{model_id} {name}" if name else captioner.name
        captions = open_captions(captioner)
        captions.captions_of(ids(1))
        return captions.made

    moved = tmp_path / "moved.pth"
    shutil.copy(model, moved)
    assert made(moved) == 0
    assert made(model, "int8: say how red") == 1
    assert made(model, "fp32: say it again") == 1
    model.write_bytes(b"WEIGHTS")
    assert made(model) == 1
    assert made(moved) == 0


def test_an_image_of_another_collection_is_refused(open_captions):
    with pytest.raises(ValueError, match=r"got image id 'other.png', expected one of the collection's 11"):
        open_captions().captions_of(["1.png", "other.png"])


def test_a_model_is_known_by_all_files_that_change_what_it_says(tmp_path):
    hashes_of = CaptionCache(tmp_path / "captions.sqlite").hashes_of
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "chat_template.jinja").write_text("say it")
    (folder / "README.md").write_text("a model")
    first = model_identity(str(folder), hashes_of)
    assert len(first) == 16
    moved = folder.rename(tmp_path / "moved")
    (moved / "README.md").write_text("the same model")
    assert model_identity(str(moved), hashes_of) == first
    (moved / "chat_template.jinja").write_text("say it again")
    assert model_identity(str(moved), hashes_of) != first
    alone = tmp_path / "alone.pth"
    alone.write_bytes(b"weights")
    first = model_identity(str(alone), hashes_of)
    (tmp_path / "vocab.txt").write_text("words")
    assert model_identity(str(alone), hashes_of) != first


def test_captions_of_another_major_version_or_other_pixels_are_others(open_captions, model, monkeypatch):
    names = [open_captions().captioner_name]
    assert f" fp32: say how red, transformers {version('transformers').split('.')[0]}, pixels " in names[0]
    monkeypatch.setattr("index.fingerprint.version", lambda library: "99.1")
    names.append(open_captions().captioner_name)
    monkeypatch.setattr("index.fingerprint.VERSION", 99)
    names.append(open_captions().captioner_name)
    assert len(set(names)) == 3


def test_models_that_cannot_be_known_are_named(tmp_path):
    hashes_of = CaptionCache(tmp_path / "captions.sqlite").hashes_of
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty cannot be opened: the folder holds no model files"):
        model_identity(str(tmp_path / "empty"), hashes_of)
    with pytest.raises(ValueError, match="the model /no/such cannot be opened") as caught:
        model_identity("/no/such", hashes_of)
    assert "\n" not in str(caught.value)
