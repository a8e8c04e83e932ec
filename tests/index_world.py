"""What the tests of the index share: unit rows, saved indexes, pictures, and an encoder of colours."""

import csv
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from index.build import build_index
from index.faiss_index import FaissIndex
from index.folder import write_folder
from index.scores import unit_rows
from records import Image


def random_rows(seed, count, dimension=8, distinct=None):
    """Unit rows; with `distinct`, only so many different ones, so that most scores tie."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((distinct or count, dimension)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[generator.integers(len(rows), size=count)] if distinct else rows


def save_index(folder, ids, vectors, kind="auto", image_folder="toy/images", fingerprint="f00d"):
    """Writes an index folder; returns the same index in memory."""
    rows = unit_rows(vectors, vectors.shape[1], "rows")
    write_folder(
        folder,
        ids,
        [rows],
        dimension=rows.shape[1],
        model_name="small",
        model_fingerprint=fingerprint,
        dataset="toy",
        image_folder=Path(image_folder),
        kind=kind,
    )
    return FaissIndex.build(ids, rows)


class ColourEncoder:
    """Mean colour of a 2 x 2 grid, projected to 16 dimensions; keeps count of what it encodes."""

    dimension = 16

    def __init__(self, fingerprint="colours-1", fail_after=None):
        self.fingerprint = fingerprint
        self.batch_sizes = []
        self.fail_after = fail_after
        self.projection = np.random.default_rng(0).standard_normal((13, 16))

    @property
    def encoded(self):
        return sum(self.batch_sizes)

    def encode_images(self, images):
        if self.fail_after is not None and self.encoded + len(images) > self.fail_after:
            raise RuntimeError("the power went out")
        self.batch_sizes.append(len(images))
        cells = [np.asarray(image.resize((2, 2), PILImage.Resampling.BOX)).ravel() / 255 for image in images]
        rows = np.hstack([np.array(cells), np.ones((len(images), 1))]) @ self.projection
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_images(folder, count, broken=()):
    """Pictures of different colours and sizes; those whose number is `broken` are none."""
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


def build(images, encoder, folder, **options):
    """`build_index` with small numbers."""
    settings = {"batch_size": 4, "workers": 2, "shard_size": 10, "max_failed_share": 0.2} | options
    return build_index(
        images, encoder, folder, model_name="colours", dataset="toy", image_folder=folder.parent, **settings
    )


def failures(folder):
    """The names in a folder's list of broken images, with the reasons."""
    with (folder / "failed_images.csv").open(encoding="utf-8", newline="") as file:
        return {row["image_name"]: row["reason"] for row in csv.DictReader(file)}


def png(width, height):
    """A PNG that claims a size, and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
