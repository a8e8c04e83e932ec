"""The conftest's world with pictures, for a person's session: 150 small files, and an encoder for them."""

import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import COLOURS, IMAGE_IDS, KnownCaptions, Merger, WordEncoder
from PIL import Image, ImageDraw

from feedback.strategies import make_strategy
from feedback.strategies.collection import Collection
from index.faiss_index import FaissIndex
from interactive.session import Options, SearchContext
from interactive.study import Study
from retriever import Retriever

PAINT = {
    "red": (200, 60, 50),
    "green": (70, 150, 80),
    "blue": (60, 100, 190),
    "white": (240, 240, 240),
    "black": (30, 30, 30),
}


class ColourEncoder(WordEncoder):
    """Encodes a picture as its colour's word."""

    def encode_images(self, images):
        return self.encode_texts([colour_of(image) for image in images])


def colour_of(picture):
    pixel = np.array(picture.resize((1, 1)), dtype=int)[0, 0]
    return min(COLOURS, key=lambda name: np.abs(pixel - PAINT[name]).sum())


class Gate:
    """Captions that wait while the gate is closed; a picture from outside is called by its colour."""

    def __init__(self):
        self.known = KnownCaptions()
        self.is_open = True

    def captions_of(self, image_ids):
        if image_ids:
            self._wait()
        return self.known.captions_of(image_ids)

    def _wait(self):
        until = time.monotonic() + 30
        while not self.is_open and time.monotonic() < until:
            time.sleep(0.005)

    def describe(self, picture):
        self._wait()
        return f"a {colour_of(picture)} picture"


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secret-folder-name")
    for image_id in IMAGE_IDS:
        colour, animal, place = image_id.split("-")
        picture = Image.new("RGB", (96, 96), PAINT[colour])
        ImageDraw.Draw(picture).text((6, 40), f"{animal} {place}", fill=(255, 200, 0))
        picture.save(folder / f"{image_id}.png")
    return folder


@pytest.fixture
def context(picture_folder):
    encoder = ColourEncoder()
    retriever = Retriever(encoder, FaissIndex.build(IMAGE_IDS, encoder.encode_texts(IMAGE_IDS)))
    merger = Merger()
    return SearchContext(
        name="the little world",
        retriever=retriever,
        captions=Gate(),
        strategy=lambda name: make_strategy(name, merger, Collection(retriever)),
        paths={image_id: picture_folder / f"{image_id}.png" for image_id in IMAGE_IDS},
    )


@pytest.fixture
def study(context, tmp_path):
    def open_folder():
        (tmp_path / "study").mkdir(exist_ok=True)
        return tmp_path / "study"

    return Study(context, open_folder, ("append",))


@pytest.fixture
def options():
    return Options("append")


def with_failing(context, error):
    """The same context, whose captions fail."""

    class Failing:
        def captions_of(self, image_ids):
            raise error

    return replace(context, captions=Failing())
