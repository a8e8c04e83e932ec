"""Folders of pictures to an index: reuse, resume, broken files, strange names, other processes, memory."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_world import ColourEncoder, build, failures, make_images, png
from PIL import Image as PILImage
from tqdm import tqdm

from BLIP.model import BlipEncoder
from index.decode import open_image
from index.encoder import embed
from index.faiss_index import FaissIndex
from index.file_states import FileStates
from playground.image_folder import list_images

PROJECT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures" / "blip"


def one_by_one(images):
    return np.concatenate([ColourEncoder().encode_images([open_image(image.path)]) for image in images])


def check_vectors(index, images):
    """Every row is of its image."""
    whole = [image for image in images if image.id in index.row_of]
    assert index.ids == tuple(image.id for image in whole)
    assert np.allclose(index.vectors, one_by_one(whole), atol=1e-6)


# Which pictures are embedded


BAD = {
    "zero bytes": b"",
    "bomb": png(60_000, 60_000),
    "html": b"<!doctype html><title>404</title>",
    "zeros": bytes(5000),
}


@settings(max_examples=10, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["good", *BAD, "missing"]), min_size=1, max_size=40),
    batch_size=st.integers(1, 9),
    workers=st.integers(1, 4),
    shard_size=st.integers(1, 20),
    later=st.lists(st.sampled_from(["keep", "remove", "repair"]), min_size=40, max_size=40),
)
def test_every_row_is_of_its_image(tmp_path_factory, kinds, batch_size, workers, shard_size, later):
    """Builds over a random mix of good and broken files, changes the mix, and brings the index up to date."""
    folder = tmp_path_factory.mktemp("mix")
    kinds = ["good", *kinds]
    images = make_images(folder, len(kinds))
    whole = {image.id: image.path.read_bytes() for image in images}
    for image, kind in zip(images, kinds, strict=True):
        if kind == "missing":
            image.path.unlink()
        elif kind != "good":
            image.path.write_bytes(BAD[kind])
    options = {
        "batch_size": batch_size,
        "workers": workers,
        "shard_size": shard_size,
        "max_failed_share": 1.0,
    }

    def check(broken):
        index = build(images, ColourEncoder(), folder / "index", **options)
        check_vectors(index, images)
        assert set(failures(folder / "index")) == broken == {image.id for image in images} - set(index.ids)

    broken = {image.id for image, kind in zip(images, kinds, strict=True) if kind != "good"}
    check(broken)
    for image, change in zip(list(images[1:]), later, strict=False):
        if change == "remove":
            images.remove(image)
        elif change == "repair":
            image.path.write_bytes(whole[image.id])
            broken.discard(image.id)
    images.reverse()
    check(broken & {image.id for image in images})
    assert not (folder / "index" / ".partial").exists()


def test_names_of_every_sort_come_back_as_they_are(tmp_path):
    names = [
        "new\nline.png", "tab\t.png", "carriage\r.png", 'quote"d, and comma.png',
        "emoji 🐕‍🦺.png", "עברית.png",
        "\u202eright to left.png", " leading.png", "e\u0301.png", "é.png", "a" * 251 + ".png", "=1+1.png",
    ]  # fmt: skip
    pictures = tmp_path / "pictures"
    (pictures / "folder\nfolder").mkdir(parents=True)
    for source, name in zip(make_images(tmp_path, len(names)), names, strict=True):
        source.path.rename(pictures / name)
        (pictures / "folder\nfolder" / name).write_bytes(b"broken")
    (pictures / "loop").symlink_to(pictures)
    (pictures / "round.png").symlink_to(pictures / "round.png")
    images, skipped = list_images(pictures, "")
    assert [skip.what for skip in skipped] == ["round.png"]
    build(images, ColourEncoder(), tmp_path / "index", max_failed_share=1.0)
    opened = FaissIndex.open(tmp_path / "index")
    assert set(opened.ids) == set(names)
    check_vectors(opened, images)
    reasons = failures(tmp_path / "index")
    assert set(reasons) == {f"folder\nfolder/{name}" for name in names}
    assert all(reason.startswith("not a picture in one of the formats JPEG") for reason in reasons.values())


def test_decoding_goes_on_while_the_model_encodes_but_not_without_bound(tmp_path, monkeypatch):
    images = make_images(tmp_path, 40)
    opened = []
    ahead_of_model = []
    release = threading.Event()

    def counted(path, side):
        opened.append(path)
        if len(opened) >= 4 + 4:  # four more than the batch that the model holds
            release.set()
        return open_image(path, side=side)

    class SlowEncoder(ColourEncoder):
        def encode_images(self, images):
            assert release.wait(10), "nothing was decoded while the model was busy"
            ahead_of_model.append(len(opened) - self.encoded)
            return super().encode_images(images)

    monkeypatch.setattr("index.encoder.open_image", counted)
    list(embed(images, SlowEncoder(), 4, 2, tqdm(disable=True)))
    assert len(opened) == 40
    assert max(ahead_of_model) <= 4 + 4 + 2


def test_whole_pictures_come_resized_and_the_vectors_are_the_same_to_the_last_bit(tmp_path):
    for number, size in enumerate([(40, 30), (33, 90), (64, 64), (500, 20), (31, 31), (2100, 2060)]):
        pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        PILImage.fromarray(pixels).save(tmp_path / f"{number}.png")
    images, _ = list_images(tmp_path, "")
    encoder = BlipEncoder.open(FIXTURES / "itm.pth")
    plain = encoder.encode_images([PILImage.open(image.path) for image in images])
    sizes, encode = [], encoder.encode_images
    encoder.encode_images = lambda pictures: sizes.extend(one.size for one in pictures) or encode(pictures)
    index = build(images, encoder, tmp_path / "index", batch_size=6)
    assert sizes == [(encoder.image_size, encoder.image_size)] * len(images)
    assert (index.vectors == np.rint(plain * 2**26) / np.float32(2**26)).all()


# What is refused


def test_what_cannot_be_embedded_is_refused(tmp_path):
    images = make_images(tmp_path, 20, broken=range(10))
    folder = tmp_path / "index"
    with pytest.raises(ValueError, match="got no images"):
        build([], ColourEncoder(), folder)
    with pytest.raises(ValueError, match=r"'000\.png' occurs twice"):
        build([*images, images[0]], ColourEncoder(), folder)
    with pytest.raises(ValueError, match="all 2 images are broken"):
        build(images[3:5], ColourEncoder(), folder, max_failed_share=1)
    with pytest.raises(ValueError, match=r"10 of 20 images are broken, .* at most 20%; the first is .000"):
        build(images, ColourEncoder(), folder)
    assert len(failures(folder)) == 10
    with pytest.raises(FileNotFoundError, match="incomplete index"):
        FaissIndex.open(folder)
    make_images(tmp_path, 20)
    repaired = ColourEncoder()
    assert len(build(images, repaired, folder)) == 20
    assert repaired.encoded == 10  # the second shard was whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "got 3 rows from the encoder, expected 4"),
        (lambda rows: rows * np.nan, "NaN"),
    ],
)
def test_an_encoder_that_breaks_its_promise_is_caught(tmp_path, change, message):
    class WrongEncoder(ColourEncoder):
        def encode_images(self, images):
            return change(super().encode_images(images))

    with pytest.raises(ValueError, match=message):
        build(make_images(tmp_path, 8), WrongEncoder(), tmp_path / "index")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.skipif(os.name == "nt", reason="no such locks there")
def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    images = make_images(tmp_path, 3)
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom files import locked_folder\n"
        "with locked_folder(Path(sys.argv[1])):\n    print('locked', flush=True)\n    time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "index")]
    for built in (False, True):
        with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "locked\n"
            if built:  # a whole index is opened all the same
                assert len(build(images, ColourEncoder(fail_after=0), tmp_path / "index")) == 3
            else:
                with pytest.raises(
                    ValueError, match="another process is building this index; wait"
                ) as caught:
                    build(images, ColourEncoder(), tmp_path / "index")
                assert "\n" not in str(caught.value)
            other.kill()
        assert len(build(images, ColourEncoder(), tmp_path / "index")) == 3


# What is used again


def test_the_same_index_is_reused_and_another_is_built_again(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    images = make_images(tmp_path / "images", 20, broken={7})
    folder = tmp_path / "index"
    build(images, ColourEncoder(), folder)

    def encoded_again(images, encoder, **options):
        caplog.clear()
        check_vectors(build(images, encoder, folder, **options), images)
        return encoder.encoded

    assert encoded_again(images, ColourEncoder()) == 0
    assert "reusing the index of 19 images" in caplog.text
    assert encoded_again(images, ColourEncoder(), rebuild=True) == 19
    assert encoded_again(images[:15], ColourEncoder()) == 0
    assert "0 images are new, 5 have vanished" in caplog.text
    assert encoded_again(images[:15], ColourEncoder("colours-2"), rebuild=True) == 14
    (folder / "manifest.json").unlink()
    assert encoded_again(images[:15], ColourEncoder("colours-2")) == 14
    assert "incomplete index" in caplog.text
    PILImage.new("RGB", (9, 9)).save(images[7].path)
    assert encoded_again(images[:15], ColourEncoder("colours-2")) == 1
    assert "'007.png', which was broken, can be read now" in caplog.text
    assert encoded_again(images[:15], ColourEncoder("colours-2")) == 0


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
        check_vectors(build(images, encoder, folder), images)
        assert encoder.encoded == count
    assert "1 pictures have been replaced since they were embedded" in caplog.text
    images[3].path.unlink()  # an index is searched where its pictures are not
    assert len(build(images, ColourEncoder(fail_after=0), tmp_path / "index")) == 20


def test_another_kind_is_made_without_embedding_again(tmp_path):
    images = make_images(tmp_path, 60)
    flat = build(images, ColourEncoder(), tmp_path / "index")
    assert flat.kind == "flat"

    def again(images, fail_after=0, **options):
        return build(images, ColourEncoder(fail_after=fail_after), tmp_path / "index", **options)

    hnsw = again(images, kind="hnsw")
    assert hnsw.kind == "hnsw"
    assert (hnsw.vectors == flat.vectors).all()
    assert again(images[5:]).kind == "hnsw"
    assert again(images[5:], fail_after=None, rebuild=True).kind == "hnsw"
    assert again(images[5:], kind="flat").kind == "flat"


# Resuming


def test_finished_parts_are_used_if_whole_and_of_this_model(tmp_path, caplog):
    images = make_images(tmp_path / "images", 30)
    folder = tmp_path / "index"

    def resumed(images, encoder, damage=lambda: None):
        """Stops a build in its third part of ten, and builds again."""
        with pytest.raises(RuntimeError):
            build(images, ColourEncoder(fail_after=25), folder, rebuild=True)
        (folder / "manifest.json").unlink(missing_ok=True)
        damage()
        check_vectors(build(images, encoder, folder), images)
        return encoder.encoded

    def cut():
        damaged = folder / ".partial" / "1.npy"
        damaged.write_bytes(damaged.read_bytes()[:-4])
        (folder / ".partial" / "0.json").write_text("{")

    def relabel():  # a label that names other images is not believed
        label = folder / ".partial" / "0.json"
        label.write_text(label.read_text().replace("003.png", "013.png"))

    assert resumed(images, ColourEncoder()) == 10
    assert resumed(images, ColourEncoder("colours-2")) == 30
    assert resumed(images, ColourEncoder(), cut) == 30
    assert resumed(images, ColourEncoder(), relabel) == 20
    assert "0.json: cannot be used" in caplog.text


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


BUILD = """
import sys, time
from pathlib import Path
import numpy as np
from index.build import build_index
from playground.image_folder import list_images

class Slow:
    dimension, fingerprint = 4, "slow"
    def encode_images(self, images):
        time.sleep(float(sys.argv[3]))
        rows = np.array([[*np.asarray(image).reshape(-1, 3).mean(axis=0), 99] for image in images])
        rows[:, 3] += rows[:, :3].mean()  # as a GPU's last bits, a vector depends on its batch
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

folder = Path(sys.argv[1])
print("begins", flush=True)
build_index(list_images(folder, "")[0], Slow(), Path(sys.argv[2]), model_name="m", dataset="d",
            image_folder=folder, batch_size=3, workers=2, shard_size=6)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_build_killed_at_random_moments_ends_as_one_that_was_not(tmp_path):
    make_images(tmp_path / "pictures", 60, broken={7})

    def command(index, seconds):
        return [sys.executable, "-c", BUILD, str(tmp_path / "pictures"), str(tmp_path / index), str(seconds)]

    delays = np.random.default_rng(1).uniform(0.01, 0.4, 3)
    finished = 0
    for delay in delays:
        with subprocess.Popen(
            command("killed", 0.03), cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begins\n"
            time.sleep(delay)
            process.kill()
        finished += process.returncode != -signal.SIGKILL
    assert finished < len(delays)
    for index in ("killed", "whole"):
        subprocess.run(command(index, 0), cwd=PROJECT, check=True, capture_output=True, timeout=180)
    whole, killed = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "killed")
    )
    assert killed == whole
    assert set(whole) == {"vectors.faiss", "ids.json", "manifest.json", "failed_images.csv", "sizes.json"}


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="other systems do not tell mapped files apart"
)
def test_vectors_and_pictures_do_not_pile_up_in_memory(tmp_path):
    """As the benchmark measures it: anonymous memory at its highest, without pages of mapped files."""
    command = [sys.executable, "-m", "benchmarks.index_build", "--memory", "20000", "--output", str(tmp_path)]
    subprocess.run(command, cwd=PROJECT, capture_output=True, timeout=120, check=True)
    small, large = json.loads((tmp_path / "index_build.json").read_text())["rows"]
    grown = (large["peak meanwhile, MB"] - large["memory before, MB"]) - (
        small["peak meanwhile, MB"] - small["memory before, MB"]
    )
    assert large["vectors, MB"] > 20
    assert grown < 0.6 * (large["vectors, MB"] - small["vectors, MB"])


def test_a_picture_replaced_by_one_of_the_same_size_is_embedded_again(tmp_path):
    images = make_images(tmp_path / "images", 12)
    build(images, ColourEncoder(), tmp_path / "index")
    red, blue = (images[number].path.read_bytes() for number in (3, 4))
    padded = max(len(red), len(blue)) + 8
    images[3].path.write_bytes(red.ljust(padded, b" "))
    assert count_encoded(tmp_path, images) == 1
    images[3].path.write_bytes(blue.ljust(padded, b" "))
    assert count_encoded(tmp_path, images) == 1
    os.utime(images[3].path, (1, 1))  # touched, and the content is the same
    assert count_encoded(tmp_path, images) == 0


def count_encoded(folder, images):
    encoder = ColourEncoder()
    check_vectors(build(images, encoder, folder / "index"), images)
    return encoder.encoded


def test_an_index_that_knows_sizes_alone_still_opens(tmp_path):
    images = make_images(tmp_path / "images", 6)
    states = FileStates(images)
    for image in images:
        size = image.path.stat().st_size
        assert states.unchanged(image.id, size) and not states.unchanged(image.id, size + 1)
        assert states.unchanged(image.id, None) and states.unchanged(image.id, states.now(image.id))
    images[0].path.unlink()
    assert FileStates(images).now(images[0].id) is None


def test_a_file_that_changes_while_it_is_read_is_not_taken_for_known(tmp_path):
    (image, *_) = images = make_images(tmp_path, 2)
    states = FileStates(images)
    os.utime(image.path, (1, 1))  # between the listing and the reading
    assert states.now(image.id).endswith(" -")
    assert not FileStates(images).unchanged(image.id, states.now(image.id))
