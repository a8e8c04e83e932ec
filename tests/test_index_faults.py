"""Collections as they are found: broken files, strange names, other processes, more images than memory."""

import csv
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from index.build import build_index
from index.decode import open_image
from index.faiss_index import FaissIndex
from playground.image_folder import list_images
from records import Image

PROJECT = Path(__file__).parent.parent


class MeanColour:
    """The mean colour of a picture as a direction; keeps the colours it was given."""

    dimension = 4
    fingerprint = "mean-1"

    def encode_images(self, images):
        means = [np.asarray(image).reshape(-1, 3).mean(axis=0) / 255 for image in images]
        rows = np.hstack([np.array(means), np.full((len(images), 1), 0.5)])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def build(images, folder, encoder=None, **options):
    values = {"batch_size": 4, "workers": 3, "shard_size": 7, "max_failed_share": 1.0} | options
    return build_index(
        images, encoder or MeanColour(), folder, model_name="m", dataset="d", image_folder=folder, **values
    )


def failures(folder):
    with (folder / "failed_images.csv").open(encoding="utf-8", newline="") as file:
        return {row["image_name"]: row["reason"] for row in csv.DictReader(file)}


def saved(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb():
    """2 kB that claim to be 3.6 billion pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 10**6)) + chunk(b"IEND", b"")


RED = PILImage.new("RGB", (40, 20), (250, 0, 0))
NOISE = PILImage.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
TURNED = PILImage.Exif()
TURNED[0x0112] = 6
GOOD = {
    "grey16": saved(PILImage.new("I;16", (9, 9), 40_000)),
    "cmyk": saved(PILImage.new("CMYK", (9, 9), (0, 255, 255, 0)), "JPEG"),
    "palette with alpha": saved(PILImage.new("P", (9, 9), 0), transparency=bytes([0, 128, 255])),
    "animated": saved(RED, "GIF", save_all=True, append_images=[PILImage.new("RGB", (40, 20), "blue")]),
    "turned": saved(RED, "JPEG", exif=TURNED),
    "one pixel": saved(RED.resize((1, 1))),
    "30,000 wide": saved(PILImage.new("RGB", (30_000, 3), (0, 200, 0))),
    "another format": saved(RED, "WEBP"),
}
BAD = {
    "truncated": saved(NOISE, "JPEG")[:900],
    "zero bytes": b"",
    "bomb": bomb(),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    "html": b"<!doctype html><title>404</title>",
    "zeros": bytes(5000),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_sort_of_file_is_embedded_or_listed_with_its_reason(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, content in (GOOD | BAD).items():
        (pictures / f"{name}.jpg").write_bytes(content)
    images, _ = list_images(pictures, "")
    index = build(images, tmp_path / "index")
    assert set(index.ids) == {f"{name}.jpg" for name in GOOD}
    reasons = failures(tmp_path / "index")
    assert set(reasons) == {f"{name}.jpg" for name in BAD}
    assert reasons["zero bytes.jpg"] == "the file is empty"
    assert reasons["bomb.jpg"].startswith("too large")
    assert reasons["svg.jpg"] == reasons["html.jpg"] == (
        "not a picture in one of the formats JPEG, PNG, WEBP, GIF, BMP, TIFF"
    )  # fmt: skip
    assert "truncated" in reasons["truncated.jpg"]
    assert open_image(pictures / "turned.jpg").size == (20, 40)
    assert open_image(pictures / "30,000 wide.jpg").size == (30_000, 3)


def test_an_error_of_the_system_is_listed_with_its_name(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(saved(RED))
    real = PILImage.open

    def refused(path, **options):
        if Path(path).name == "a.png":
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr("index.decode.Image.open", refused)
    assert build(list_images(tmp_path, "")[0], tmp_path / "index").ids == ("b.png",)
    assert "PermissionError" in failures(tmp_path / "index")["a.png"]


def test_names_of_every_sort_come_back_as_they_are(tmp_path):
    names = [
        "new\nline.png", "tab\t.png", "carriage\r.png", 'quote"d, and comma.png',
        "emoji 🐕‍🦺.png", "עברית.png",
        "\u202eright to left.png", " leading.png", "e\u0301.png", "é.png", "a" * 251 + ".png", "=1+1.png",
    ]  # fmt: skip
    pictures = tmp_path / "pictures"
    (pictures / "folder\nfolder").mkdir(parents=True)
    for number, name in enumerate(names):
        (pictures / name).write_bytes(saved(PILImage.new("RGB", (2, 2), (number * 9, 100, 0))))
        (pictures / "folder\nfolder" / name).write_bytes(b"broken")
    (pictures / "loop").symlink_to(pictures)
    (pictures / "round.png").symlink_to(pictures / "round.png")
    images, skipped = list_images(pictures, "")
    assert [skip.what for skip in skipped] == ["round.png"]
    build(images, tmp_path / "index")
    opened = FaissIndex.open(tmp_path / "index")
    assert set(opened.ids) == set(names)
    for number, name in enumerate(names):
        expected = MeanColour().encode_images([PILImage.new("RGB", (2, 2), (number * 9, 100, 0))])
        assert np.allclose(opened.vectors_of([name]), expected, atol=1e-6)
    assert set(failures(tmp_path / "index")) == {f"folder\nfolder/{name}" for name in names}


@settings(max_examples=10, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["good", *BAD, "missing"]), min_size=1, max_size=40),
    batch_size=st.integers(1, 9),
    workers=st.integers(1, 4),
    shard_size=st.integers(1, 20),
    later=st.lists(st.sampled_from(["keep", "remove", "repair"]), min_size=40, max_size=40),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_row_is_of_its_image(tmp_path_factory, kinds, batch_size, workers, shard_size, later):
    """Builds over a random mix of good and broken files, changes the mix, and brings the index up to date."""
    folder = tmp_path_factory.mktemp("mix")
    colours = {}
    images = []
    for number, kind in enumerate(["good", *kinds]):
        path = folder / f"{number:02}.png"
        colours[path.name] = (number * 6, 255 - number * 6, number * 31 % 256)
        images.append(Image(path.name, path))
        if kind == "good":
            path.write_bytes(saved(PILImage.new("RGB", (3, 2), colours[path.name])))
        elif kind != "missing":
            path.write_bytes(BAD[kind])

    def check():
        index = build(images, folder / "index", batch_size=batch_size, workers=workers, shard_size=shard_size)
        failed = failures(folder / "index")
        assert [image.id for image in images if image.id not in failed] == list(index.ids)
        assert set(index.ids).isdisjoint(failed)
        pictures = [PILImage.new("RGB", (3, 2), colours[name]) for name in index.ids]
        assert np.allclose(index.vectors_of(index.ids), MeanColour().encode_images(pictures), atol=1e-6)
        return failed

    broken = {image.id for image, kind in zip(images, ["good", *kinds], strict=True) if kind != "good"}
    assert set(check()) == broken
    for image, change in zip(list(images[1:]), later, strict=False):
        if change == "remove":
            images.remove(image)
        elif change == "repair":
            image.path.write_bytes(saved(PILImage.new("RGB", (3, 2), colours[image.id])))
            broken.discard(image.id)
    images.reverse()
    assert set(check()) == broken & {image.id for image in images}
    assert not (folder / "index" / ".partial").exists()


def test_another_kind_is_made_without_embedding_again(tmp_path):
    random = np.random.default_rng(0)
    for number in range(60):
        colour = tuple(map(int, random.integers(0, 255, 3)))
        (tmp_path / f"{number:02}.png").write_bytes(saved(PILImage.new("RGB", (2, 2), colour)))
    images, _ = list_images(tmp_path, "")
    flat = build(images, tmp_path / "index")
    assert flat.kind == "flat"

    class NoEncoder(MeanColour):
        def encode_images(self, images):
            raise AssertionError("the vectors are there")

    hnsw = build(images, tmp_path / "index", NoEncoder(), kind="hnsw")
    assert hnsw.kind == "hnsw"
    assert (hnsw.vectors_of(hnsw.ids) == flat.vectors_of(flat.ids)).all()
    assert build(images, tmp_path / "index", NoEncoder()).kind == "hnsw"
    assert build(images[5:], tmp_path / "index", NoEncoder()).kind == "hnsw"
    assert build(images[5:], tmp_path / "index", rebuild=True).kind == "hnsw"
    assert build(images[5:], tmp_path / "index", NoEncoder(), kind="flat").kind == "flat"


@pytest.mark.skipif(os.name == "nt", reason="no such locks there")
def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    (tmp_path / "1.png").write_bytes(saved(RED))
    images, _ = list_images(tmp_path, "")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom files import locked_folder\n"
        "with locked_folder(Path(sys.argv[1])):\n    print('locked', flush=True)\n    time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "index")]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="another process is building this index; wait") as caught:
            build(images, tmp_path / "index")
        assert "\n" not in str(caught.value)
        other.kill()
    assert build(images, tmp_path / "index").ids == ("1.png",)
    with_lock = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    with with_lock as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        assert build(images, tmp_path / "index").ids == ("1.png",)  # a whole index is opened all the same
        other.kill()


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
