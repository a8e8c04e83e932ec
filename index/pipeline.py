"""Image files to vectors: threads decode and resize ahead while the model encodes.

At most a batch and a picture a thread wait for the model: the memory does not grow with the collection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from tqdm import tqdm

from index.decode import BrokenImage, open_image
from index.encoder import ImageEncoder, checked_rows
from index.shards import Shard
from records import Image, Skip

Prepare = Callable[[PILImage.Image], PILImage.Image]


def embed(
    images: Sequence[Image],
    encoder: ImageEncoder,
    batch_size: int,
    workers: int,
    bar: tqdm,
) -> tuple[Shard, list[Skip]]:
    """Decodes and encodes images.

    Args:
        images: Any number.
        encoder: Makes the vectors. If it has a method `prepare_image`, from picture to picture (resizing,
            say), the threads that decode call it.
        batch_size: Pictures to one call of the encoder.
        workers: Threads that decode.
        bar: Moves on by one an image.

    Returns:
        The vectors of the images that could be read, in order; and the others with the reason.

    Raises:
        ValueError: If the encoder's output does not fit.
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

    prepare: Prepare | None = getattr(encoder, "prepare_image", None)
    with closing(_decoded(images, prepare, workers, ahead=batch_size + workers)) as decoded:
        for image, picture in decoded:
            if isinstance(picture, BrokenImage):
                skipped.append(Skip(image.id, picture.reason))
                bar.update()
                continue
            ids.append(image.id)
            waiting.append(picture)
            if len(waiting) == batch_size:
                encode()
    if waiting:
        encode()
    return Shard(ids, np.concatenate(vectors), [skip.what for skip in skipped]), skipped


def _decoded(
    images: Sequence[Image], prepare: Prepare | None, workers: int, ahead: int
) -> Generator[tuple[Image, PILImage.Image | BrokenImage], None, None]:
    """Yields each image with its picture, in order, while threads decode at most `ahead` in advance."""

    def decode(path: Path) -> PILImage.Image:
        picture = open_image(path)
        return prepare(picture) if prepare else picture

    queue: deque[tuple[Image, Future[PILImage.Image]]] = deque()
    upcoming = iter(images)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            while True:
                while len(queue) < ahead and (image := next(upcoming, None)) is not None:
                    queue.append((image, pool.submit(decode, image.path)))
                if not queue:
                    return
                image, future = queue.popleft()
                try:
                    picture = future.result()
                except BrokenImage as error:
                    yield image, error
                else:
                    yield image, picture
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
