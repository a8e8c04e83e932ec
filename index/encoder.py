"""What an encoder must offer, and how pictures reach it: decoded ahead while the model computes."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image as PILImage
from tqdm import tqdm

from index import decode
from index.decode import BrokenImage, open_image
from index.scores import unit_rows
from index.shards import Shard
from records import Image, Skip


class ImageEncoder(Protocol):
    """Pictures to vectors.

    So that `encode_images` finds less to do, it may also have an ``image_size``: pictures are then squares of
    that side (`index.decode.squared`); or else a method ``prepare_image`` from one picture to another, which
    threads call. The fingerprint differs when the weights or the preprocessing differ.
    """

    dimension: int
    fingerprint: str

    def encode_images(self, images: list[PILImage.Image]) -> np.ndarray:
        """Encodes n RGB pictures as (n, dimension) float32, rows of unit length."""
        ...


class Encoder(ImageEncoder, Protocol):
    """Pictures and texts to vectors of one space."""

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Encodes n texts as (n, dimension) float32, rows of unit length."""
        ...


def checked_rows(vectors: np.ndarray, count: int, encoder: ImageEncoder, what: str) -> np.ndarray:
    """Rounds what an encoder gave for `count` inputs to the grid, (count, dimension) float32.

    Raises ValueError, naming the vectors, if the shape, a value or a row's length is wrong.
    """
    rows = unit_rows(vectors, encoder.dimension, what)
    if len(rows) != count:
        raise ValueError(f"{what}: got {len(rows)} rows from the encoder, expected {count}, one an input")
    return rows


def embed(
    images: Sequence[Image],
    encoder: ImageEncoder,
    batch_size: int,
    workers: int,
    bar: tqdm,
    keep_seconds: float = math.inf,
) -> Generator[tuple[Shard, list[Skip]], None, None]:
    """Decodes with `workers` threads, and encodes images; the bar moves on by one an image.

    At most a batch and a picture a thread wait for the model: memory does not grow with the collection.

    Yields:
        The vectors of the images that could be read, in order, and the others with the reason; what is done
        after `keep_seconds`, between two batches, and the rest at the end.
    """
    ids: list[str] = []
    skipped: list[Skip] = []
    vectors = [np.empty((0, encoder.dimension), dtype=np.float32)]
    waiting: list[PILImage.Image] = []

    def encode() -> None:
        rows = checked_rows(encoder.encode_images(list(waiting)), len(waiting), encoder, "image vectors")
        vectors.append(rows)
        bar.update(len(waiting))
        waiting.clear()

    def finished() -> tuple[Shard, list[Skip]]:
        done = Shard(list(ids), np.concatenate(vectors), [skip.what for skip in skipped]), list(skipped)
        ids.clear()
        skipped.clear()
        del vectors[1:]
        return done

    since = time.monotonic()
    with closing(_decoded(images, encoder, workers, ahead=batch_size + workers)) as decoded:
        for image, picture in decoded:
            if isinstance(picture, BrokenImage):
                skipped.append(Skip(image.id, picture.reason))
                bar.update()
                continue
            ids.append(image.id)
            waiting.append(picture)
            if len(waiting) == batch_size:
                encode()
                if time.monotonic() - since >= keep_seconds:
                    yield finished()
                    since = time.monotonic()
    if waiting:
        encode()
    yield finished()


def _decoded(
    images: Sequence[Image], encoder: ImageEncoder, workers: int, ahead: int
) -> Generator[tuple[Image, PILImage.Image | BrokenImage], None, None]:
    """Yields each image with its picture, in order, while at most `ahead` are decoded in advance.

    Each thread has a process decode and resize for it (`index.limited`).
    """
    # What is resized at once needs no reduction before, whose rounding would cost half a grey level.
    side, prepare = getattr(encoder, "image_size", 0), getattr(encoder, "prepare_image", None)

    def opened(path: Path) -> PILImage.Image:
        return prepare(open_image(path, whole=True)) if prepare else open_image(path, side=side)

    queue: deque[tuple[Image, Future[PILImage.Image]]] = deque()
    upcoming = iter(images)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            while True:
                for image in islice(upcoming, ahead - len(queue)):
                    queue.append((image, pool.submit(opened, image.path)))
                if not queue:
                    return
                image, future = queue.popleft()
                try:
                    picture = future.result()
                except BrokenImage as error:
                    picture = error
                yield image, picture
        except BaseException:  # who stops the command does not wait for a picture without an end
            pool.shutdown(wait=False, cancel_futures=True)
            decode.stop()
            raise
