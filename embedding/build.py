"""Images to an index: threads decode ahead while the model encodes; broken pictures are counted and listed.

`build_index` goes shard by shard, so that a build that was killed continues where it stopped, and leaves
`failed_images.csv` (image_name, reason) beside the index.
"""

from __future__ import annotations

import csv
import io
import logging
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from embedding.decode import BrokenImage, open_image
from embedding.encoder import ImageEncoder, checked_rows
from embedding.shards import Shard, ShardStore
from indexes.faiss_index import FaissIndex
from indexes.replace_file import replace_file
from records import Image, Skip

log = logging.getLogger(__name__)

FAILED_FILE = "failed_images.csv"
PARTIAL_FOLDER = ".partial"
MAXIMUM_FAILED_SHARE = 0.1
SHARD_SIZE = 4096


def embed_images(
    images: Sequence[Image],
    encoder: ImageEncoder,
    *,
    batch_size: int,
    workers: int,
    maximum_failed_share: float = MAXIMUM_FAILED_SHARE,
) -> tuple[tuple[str, ...], np.ndarray, tuple[Skip, ...]]:
    """Decodes and encodes images.

    Args:
        images: With unique ids.
        encoder: Makes the vectors.
        batch_size: Pictures to one call of the encoder.
        workers: Threads that decode.
        maximum_failed_share: With more broken images than this share, something else is wrong.

    Returns:
        The ids of the n images that could be read, in order; their vectors (n, d) float32, rows of unit
        length; and the others with the reason.

    Raises:
        ValueError: If there are no images, ids repeat, all images or too many are broken, or the encoder's
            output does not fit.
    """
    _check_images(images, batch_size, workers)
    with _progress(len(images)) as bar, logging_redirect_tqdm():
        shard = _embed(images, encoder, batch_size, workers, bar, failed_before=0)
    _check_failures(len(images), shard.skipped, maximum_failed_share)
    return shard.ids, shard.vectors, shard.skipped


def build_index(
    images: Sequence[Image],
    encoder: ImageEncoder,
    folder: Path,
    *,
    model_name: str,
    dataset: str,
    image_folder: Path,
    batch_size: int,
    workers: int,
    shard_size: int = SHARD_SIZE,
    maximum_failed_share: float = MAXIMUM_FAILED_SHARE,
    rebuild: bool = False,
) -> FaissIndex:
    """Makes the index of a collection, or opens the one that is there when it is the same.

    The same means: whole, from the model with this fingerprint, over these ids in this order (images that
    were broken then are tried again). A picture replaced under its old name is not noticed: use `rebuild`.

    Args:
        images: With unique ids.
        encoder: Makes the vectors.
        folder: Where the index goes.
        model_name: For people; the fingerprint is the encoder's.
        dataset: Name of the dataset.
        image_folder: The folder that the ids are relative to.
        batch_size: Pictures to one call of the encoder.
        workers: Threads that decode.
        shard_size: After so many images the work so far is safe from a kill.
        maximum_failed_share: As in `embed_images`.
        rebuild: Encode everything again, whatever is there.

    Raises:
        ValueError: As `embed_images`; `failed_images.csv` is written all the same.
    """
    _check_images(images, batch_size, workers)
    if shard_size < 1:
        raise ValueError(f"shard size: got {shard_size}, expected at least 1")
    store = ShardStore(folder / PARTIAL_FOLDER, encoder.fingerprint, encoder.dimension)
    if rebuild:
        store.clear()
    else:
        existing = _open_same(images, encoder, folder)
        if existing is not None:
            log.info("%s: reusing the index of %d images", folder, len(existing))
            store.clear()
            return existing
    shards: list[Shard] = []
    with _progress(len(images)) as bar, logging_redirect_tqdm():
        for number, first in enumerate(range(0, len(images), shard_size)):
            part = images[first : first + shard_size]
            shard = store.load(number, part)
            if shard is not None and _still_broken(part, shard.skipped):
                log.info("%s: continuing: images %d to %d are done", folder, first + 1, first + len(part))
                bar.update(len(part))
            else:
                failed = sum(len(shard.skipped) for shard in shards)
                shard = _embed(part, encoder, batch_size, workers, bar, failed)
                store.save(number, part, shard)
            shards.append(shard)
    skipped = [skip for shard in shards for skip in shard.skipped]
    _write_failed(folder, skipped)
    _check_failures(len(images), skipped, maximum_failed_share)
    index = FaissIndex(encoder.dimension)
    for shard in shards:
        index.add(shard.ids, shard.vectors)
    index.save(
        folder,
        model_name=model_name,
        model_fingerprint=encoder.fingerprint,
        dataset=dataset,
        image_folder=image_folder,
    )
    store.clear()
    log.info("%s: wrote the index of %d images, %d left out", folder, len(index), len(skipped))
    return index


def _progress(count: int) -> tqdm:
    return tqdm(total=count, desc="embedding", unit="image", disable=None)


def _check_images(images: Sequence[Image], batch_size: int, workers: int) -> None:
    if not images:
        raise ValueError("embedding: got no images, expected at least one; check the dataset's image folder")
    if batch_size < 1 or workers < 1:
        raise ValueError(
            f"embedding: got batch size {batch_size} and {workers} workers, expected at least 1 each"
        )
    seen: set[str] = set()
    for image in images:
        if image.id in seen:
            raise ValueError(f"embedding: image id {image.id!r} occurs twice; ids must be unique")
        seen.add(image.id)


def _check_failures(count: int, skipped: Sequence[Skip], maximum_failed_share: float) -> None:
    if not skipped:
        return
    first = f"the first is {skipped[0].what}: {skipped[0].why}"
    if len(skipped) == count:
        raise ValueError(f"embedding: all {count} images are broken; {first}; check the image folder")
    if len(skipped) > maximum_failed_share * count:
        raise ValueError(
            f"embedding: {len(skipped)} of {count} images are broken, expected at most "
            f"{maximum_failed_share:.0%}; {first}; repair or remove them, or allow a larger share"
        )
    log.warning("%d of %d images are broken and left out; %s", len(skipped), count, first)


def _embed(
    images: Sequence[Image],
    encoder: ImageEncoder,
    batch_size: int,
    workers: int,
    bar: tqdm,
    failed_before: int,
) -> Shard:
    ids: list[str] = []
    skipped: list[Skip] = []
    vectors: list[np.ndarray] = []
    waiting: list[PILImage.Image] = []

    def encode() -> None:
        vectors.append(
            checked_rows(encoder.encode_images(list(waiting)), len(waiting), encoder, "image vectors")
        )
        bar.update(len(waiting))
        waiting.clear()

    with closing(_decoded(images, workers, ahead=batch_size + workers)) as decoded:
        for image, picture in decoded:
            if isinstance(picture, BrokenImage):
                skipped.append(Skip(image.id, picture.reason))
                bar.update()
                bar.set_postfix(failed=failed_before + len(skipped), refresh=False)
                continue
            ids.append(image.id)
            waiting.append(picture)
            if len(waiting) == batch_size:
                encode()
    if waiting:
        encode()
    empty = np.empty((0, encoder.dimension), dtype=np.float32)
    return Shard(tuple(ids), np.concatenate([empty, *vectors]), tuple(skipped))


def _decoded(
    images: Sequence[Image], workers: int, ahead: int
) -> Generator[tuple[Image, PILImage.Image | BrokenImage], None, None]:
    """Yields each image with its picture, in order, while threads decode at most `ahead` in advance."""
    queue: deque[tuple[Image, Future[PILImage.Image]]] = deque()
    upcoming = iter(images)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            while True:
                while len(queue) < ahead and (image := next(upcoming, None)) is not None:
                    queue.append((image, pool.submit(open_image, image.path)))
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


def _open_same(images: Sequence[Image], encoder: ImageEncoder, folder: Path) -> FaissIndex | None:
    """Opens the folder's index if it is of these images and this model; says why when it is not."""
    if not folder.is_dir() or not any(folder.glob("*.json")):
        return None
    try:
        index = FaissIndex.open(folder, encoder.fingerprint, encoder.dimension)
        failed = _read_failed(folder)
    except (ValueError, FileNotFoundError) as error:
        log.warning("building a new index, since the old one cannot be used: %s", error)
        return None
    names = {skip.what for skip in failed}
    if index.ids != tuple(image.id for image in images if image.id not in names):
        log.warning("%s: building a new index, since the old one is of other images", folder)
        return None
    if not _still_broken(images, failed):
        log.warning("%s: building a new index, since an image that was broken can be read now", folder)
        return None
    return index


def _still_broken(images: Sequence[Image], skipped: Sequence[Skip]) -> bool:
    names = {skip.what for skip in skipped}
    for image in images:
        if image.id in names:
            try:
                open_image(image.path)
            except BrokenImage:
                continue
            return False
    return True


def _write_failed(folder: Path, skipped: Sequence[Skip]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["image_name", "reason"])
    writer.writerows((skip.what, skip.why) for skip in skipped)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / FAILED_FILE, lambda path: path.write_text(text.getvalue(), "utf-8", newline=""))


def _read_failed(folder: Path) -> list[Skip]:
    with (folder / FAILED_FILE).open(encoding="utf-8", newline="") as file:
        return [Skip(row["image_name"], row["reason"]) for row in csv.DictReader(file)]
