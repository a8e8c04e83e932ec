"""Folders of pictures to vectors with a small real encoder: what a picture's colours are, projected."""

import csv
import logging
import threading

import numpy as np
import pytest
from PIL import Image as PILImage
from tqdm import tqdm

from index.build import build_index
from index.decode import open_image
from index.encoder import embed
from index.faiss_index import FaissIndex
from records import Image


class ColourEncoder:
    """Mean colour of a 2 x 2 grid, projected to 16 dimensions; keeps count of what it encodes."""

    dimension = 16

    def __init__(self, fingerprint="colours-1", fail_after=None):
        self.fingerprint = fingerprint
        self.encoded = 0
        self.batch_sizes = []
        self.fail_after = fail_after
        self.projection = np.random.default_rng(0).standard_normal((13, 16))

    def encode_images(self, images):
        if self.fail_after is not None and self.encoded + len(images) > self.fail_after:
            raise RuntimeError("the power went out")
        self.encoded += len(images)
        self.batch_sizes.append(len(images))
        cells = [np.asarray(image.resize((2, 2), PILImage.Resampling.BOX)).ravel() / 255 for image in images]
        rows = np.hstack([np.array(cells), np.ones((len(images), 1))]) @ self.projection
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_images(folder, count, broken=()):
    """Pictures of different colours and sizes; `broken` maps a number to the bytes that lie there instead."""
    generator = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for number in range(count):
        path = folder / f"{number:03}.png"
        pixels = generator.integers(0, 255, (2, 2, 3), dtype=np.uint8)
        PILImage.fromarray(pixels).resize((10 + number % 7, 8), PILImage.Resampling.NEAREST).save(path)
        if number in broken:
            path.write_bytes(b"no picture")
        images.append(Image(path.name, path))
    return images


def one_by_one(images):
    return np.concatenate([ColourEncoder().encode_images([open_image(image.path)]) for image in images])


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (7, 3)])
def test_vectors_stay_with_their_images_around_broken_ones(tmp_path, batch_size, workers):
    broken = {0, 5, 6, 23, 29}
    images = make_images(tmp_path, 30, broken)
    images.insert(12, Image("gone.png", tmp_path / "gone.png"))
    encoder = ColourEncoder()
    ((shard, skipped),) = embed(images, encoder, batch_size, workers, tqdm(disable=True))
    whole = [image for image in images if image.id != "gone.png" and int(image.id[:3]) not in broken]
    assert shard.ids == [image.id for image in whole]
    assert shard.vectors.dtype == np.float32
    assert np.allclose(shard.vectors, one_by_one(whole), atol=1e-6)
    expected = "000.png 005.png 006.png gone.png 023.png 029.png"
    assert " ".join(skip.what for skip in skipped) == expected
    assert [skip.why for skip in skipped][3] == "no such file"
    assert max(encoder.batch_sizes) <= batch_size
    assert set(encoder.batch_sizes[:-1]) <= {batch_size}


def test_decoding_goes_on_while_the_model_encodes_but_not_without_bound(tmp_path, monkeypatch):
    images = make_images(tmp_path, 40)
    opened = []
    ahead_of_model = []
    release = threading.Event()

    def counted(path):
        opened.append(path)
        if len(opened) >= 4 + 4:  # four more than the batch that the model holds
            release.set()
        return open_image(path)

    class SlowEncoder(ColourEncoder):
        def encode_images(self, images):
            assert release.wait(10), "nothing was decoded while the model was busy"
            ahead_of_model.append(len(opened) - self.encoded)
            return super().encode_images(images)

    monkeypatch.setattr("index.encoder.open_image", counted)
    list(embed(images, SlowEncoder(), 4, 2, tqdm(disable=True)))
    assert len(opened) == 40
    assert max(ahead_of_model) <= 4 + 4 + 2


def test_what_cannot_be_embedded_is_refused(tmp_path):
    images = make_images(tmp_path, 10, broken={3, 4})
    encoder = ColourEncoder()
    with pytest.raises(ValueError, match="got no images"):
        build([], encoder, tmp_path / "index")
    with pytest.raises(ValueError, match=r"'000\.png' occurs twice"):
        build([*images, images[0]], encoder, tmp_path / "index")
    for name in ("batch_size", "workers", "shard_size"):
        with pytest.raises(ValueError, match=f"got {name.replace('_', ' ')} 0, expected at least 1"):
            build(images, encoder, tmp_path / "index", **{name: 0})
    with pytest.raises(
        ValueError, match=r"2 of 10 images are broken, .* at most 10%; the first is '003\.png'"
    ):
        build(images, encoder, tmp_path / "index", max_failed_share=0.1)
    with pytest.raises(ValueError, match="all 2 images are broken"):
        build(images[3:5], encoder, tmp_path / "index", max_failed_share=1)


class WrongEncoder(ColourEncoder):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def encode_images(self, images):
        return self.change(super().encode_images(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows * 2, "row 0 has length 2, expected 1"),
        (lambda rows: rows[1:], "got 3 rows from the encoder, expected 4"),
        (lambda rows: rows[:, :5], "got shape"),
        (lambda rows: rows * np.nan, "NaN"),
    ],
)
def test_an_encoder_that_breaks_its_promise_is_caught(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        build(make_images(tmp_path, 8), WrongEncoder(change), tmp_path / "index")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def build(images, encoder, folder, **options):
    settings = {"batch_size": 4, "workers": 2, "shard_size": 10, "max_failed_share": 0.2} | options
    return build_index(
        images,
        encoder,
        folder,
        model_name="colours",
        dataset="toy",
        image_folder=folder.parent,
        **settings,
    )


def failed(folder):
    with (folder / "failed_images.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_an_index_is_built_and_finds_each_picture_by_itself(tmp_path):
    images = make_images(tmp_path / "images", 25, broken={9, 10})
    encoder = ColourEncoder()
    built = build(images, encoder, tmp_path / "index")
    opened = FaissIndex.open(tmp_path / "index", encoder.fingerprint, 16)
    assert (
        opened.ids == built.ids == tuple(f"{number:03}.png" for number in range(25) if number not in (9, 10))
    )
    assert [ranking.ids[0] for ranking in opened.search(opened.vectors_of(opened.ids), 1)] == list(opened.ids)
    assert opened.manifest is not None
    assert (opened.manifest.model_name, opened.manifest.dataset) == ("colours", "toy")
    assert failed(tmp_path / "index")[0] == ["image_name", "reason"]
    assert [row[0] for row in failed(tmp_path / "index")[1:]] == ["009.png", "010.png"]
    files = {"failed_images.csv", "ids.json", "manifest.json", "sizes.json", "vectors.faiss"}
    assert {path.name for path in (tmp_path / "index").iterdir()} == files


def test_the_same_index_is_reused_and_another_is_built_again(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    images = make_images(tmp_path / "images", 20, broken={7})
    folder = tmp_path / "index"
    build(images, ColourEncoder(), folder)

    def encoded_again(images, encoder, **options):
        caplog.clear()
        build(images, encoder, folder, **options)
        return encoder.encoded

    assert encoded_again(images, ColourEncoder()) == 0
    assert "reusing the index of 19 images" in caplog.text
    assert encoded_again(images, ColourEncoder(), rebuild=True) == 19
    assert encoded_again(images[:15], ColourEncoder()) == 0
    assert "0 images are new, 5 have vanished" in caplog.text
    assert encoded_again(images[:15], ColourEncoder("colours-2")) == 14
    assert "another model's index: got colours-1 (colours), expected colours-2" in caplog.text
    (folder / "manifest.json").unlink()
    assert encoded_again(images[:15], ColourEncoder("colours-2")) == 14
    assert "incomplete index" in caplog.text
    PILImage.new("RGB", (9, 9)).save(images[7].path)
    assert encoded_again(images[:15], ColourEncoder("colours-2")) == 1
    assert "'007.png', which was broken, can be read now" in caplog.text
    assert encoded_again(images[:15], ColourEncoder("colours-2")) == 0


def test_a_killed_build_continues_where_it_stopped(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    images = make_images(tmp_path / "images", 35, broken={3, 33})
    folder = tmp_path / "index"
    with pytest.raises(RuntimeError, match="the power went out"):
        build(images, ColourEncoder(fail_after=27), folder)
    with pytest.raises(FileNotFoundError, match="incomplete index"):
        FaissIndex.open(folder)
    rest = ColourEncoder()
    index = build(images, rest, folder)
    assert rest.encoded == 33 - 19  # two shards of ten were done, with one broken image among them
    assert "16 of 35 images are to be embedded" in caplog.text  # the broken one is tried again
    whole = [image for image in images if image.id in index.ids]
    assert len(whole) == 33
    assert np.allclose(index.vectors_of([image.id for image in whole]), one_by_one(whole), atol=1e-6)
    assert [row[0] for row in failed(folder)[1:]] == ["003.png", "033.png"]
    assert not (folder / ".partial").exists()


def test_finished_parts_are_used_if_whole_and_of_this_model(tmp_path):
    images = make_images(tmp_path / "images", 30)
    folder = tmp_path / "index"

    def stop_midway():
        with pytest.raises(RuntimeError):
            build(images, ColourEncoder(fail_after=25), folder, rebuild=True)

    stop_midway()
    other = ColourEncoder("colours-2")
    build(images, other, folder)
    assert other.encoded == 30
    stop_midway()
    fewer = ColourEncoder()
    index = build(images[1:], fewer, folder, rebuild=False)
    assert fewer.encoded == 10  # two parts of ten serve, though the first image has vanished
    assert np.allclose(index.vectors_of(index.ids), one_by_one(images[1:]), atol=1e-6)
    stop_midway()
    damaged = folder / ".partial" / "1.npy"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    (folder / ".partial" / "0.json").write_text("{")
    (folder / "manifest.json").unlink()
    again = ColourEncoder()
    build(images, again, folder)
    assert again.encoded == 30


def test_too_many_broken_images_leave_a_list_and_no_index(tmp_path):
    images = make_images(tmp_path / "images", 20, broken=set(range(10)))
    with pytest.raises(ValueError, match="10 of 20 images are broken"):
        build(images, ColourEncoder(), tmp_path / "index")
    assert len(failed(tmp_path / "index")) == 11
    with pytest.raises(FileNotFoundError, match="incomplete index"):
        FaissIndex.open(tmp_path / "index")
    make_images(tmp_path / "images", 20)
    repaired = ColourEncoder()
    assert len(build(images, repaired, tmp_path / "index")) == 20
    assert repaired.encoded == 10  # the second shard was whole


def test_what_was_embedded_a_minute_ago_is_kept_and_the_batches_stay_the_same(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("index.build.KEEP_SECONDS", 0)  # for a minute
    images = make_images(tmp_path / "images", 30, broken={2, 7})
    whole = ColourEncoder()
    build(images, whole, tmp_path / "whole", shard_size=1000)
    first, rest = ColourEncoder(fail_after=18), ColourEncoder()
    with pytest.raises(RuntimeError, match="the power went out"):
        build(images, first, tmp_path / "index", shard_size=1000)
    build(images, rest, tmp_path / "index", shard_size=1000)
    assert (first.encoded, rest.encoded) == (16, 12)
    assert first.batch_sizes + rest.batch_sizes == whole.batch_sizes
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "index" / path.name).read_bytes()
    assert "embedded 18 of 30 images, 2 failed" in caplog.text  # where there is no terminal for a bar


def test_a_replaced_picture_is_embedded_again(tmp_path, caplog):
    images = make_images(tmp_path / "images", 20)
    build(images, ColourEncoder(), tmp_path / "index")
    with pytest.raises(RuntimeError):
        build(images, ColourEncoder("colours-2", fail_after=12), tmp_path / "other")  # the first part is kept
    images[3].path.write_bytes(images[4].path.read_bytes() + b"another size")
    for folder, encoder, count in (
        (tmp_path / "index", ColourEncoder(), 1),
        (tmp_path / "other", ColourEncoder("colours-2"), 11),
    ):
        index = build(images, encoder, folder)
        assert encoder.encoded == count
        assert index.ids == tuple(image.id for image in images)
        assert np.allclose(index.vectors_of(index.ids), one_by_one(images), atol=1e-6)
    assert "1 pictures have been replaced since they were embedded" in caplog.text
    assert len(build(images, ColourEncoder(fail_after=0), tmp_path / "index")) == 20
    images[3].path.unlink()  # an index is searched where its pictures are not
    assert len(build(images, ColourEncoder(fail_after=0), tmp_path / "index")) == 20


def test_a_label_that_names_other_images_is_not_believed(tmp_path, caplog):
    images = make_images(tmp_path / "images", 20)
    with pytest.raises(RuntimeError):
        build(images, ColourEncoder(fail_after=12), tmp_path / "index")
    label = tmp_path / "index" / ".partial" / "0.json"
    label.write_text(label.read_text().replace("003.png", "013.png"))
    encoder = ColourEncoder()
    index = build(images, encoder, tmp_path / "index")
    assert encoder.encoded == 20 and "0.json: cannot be used" in caplog.text
    assert np.allclose(index.vectors_of(index.ids), one_by_one(images), atol=1e-6)


def test_a_build_killed_while_the_new_index_takes_its_place_loses_nothing(tmp_path, monkeypatch):
    images = make_images(tmp_path / "images", 20)
    folder = tmp_path / "index"
    build(images[:15], ColourEncoder(), folder)
    real = type(folder).replace

    class Killed(BaseException):
        pass

    def replace(path, target):
        if target.name == "manifest.json":
            raise Killed
        return real(path, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(type(folder), "replace", replace)
        build(images, ColourEncoder(), folder)
    with pytest.raises(FileNotFoundError, match="incomplete index"):
        FaissIndex.open(folder)
    assert len(build(images, ColourEncoder(fail_after=0), folder)) == 20
    assert not (folder / ".partial").exists()
