"""Images to an index: what is new is embedded, what has vanished is dropped, broken pictures are listed.

`build_index` goes shard by shard, so that a build that was killed continues where it stopped, and leaves
`failed_images.csv` (image_name, reason) beside the index.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from files import FolderBusy, locked_folder
from index.decode import BrokenImage, check_still_there, open_image
from index.encoder import ImageEncoder
from index.failures import FAILED_FILE, check_failures, put_in_order, read_failed, write_failed
from index.faiss_index import FaissIndex
from index.folder import Manifest, write_folder
from index.pipeline import embed
from index.scores import ROWS_AT_ONCE, unit_rows
from index.shards import Shard, ShardStore
from records import Image, Skip
from settings import IndexKind, IndexSettings

log = logging.getLogger(__name__)

PARTIAL_FOLDER = ".partial"
SHARD_SIZE = 4096  # images of a part: a multiple of the usual batch sizes
SAMPLED_CAPTIONS = 200

# Embeds parts of a collection, and yields what came of each as soon as it is there, in any order.
Done = Generator[tuple[Shard, list[Skip]], None, None]
EmbedParts = Callable[[Sequence[Sequence[Image]]], Done]


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
    kind: IndexKind = "auto",
    shard_size: int = SHARD_SIZE,
    max_failed_share: float = IndexSettings.max_failed_share,
    rebuild: bool = False,
    embed_parts: EmbedParts | None = None,
) -> FaissIndex:
    """Makes the index of a collection, brings the one that is there up to date, or opens it as it is.

    Vectors of the same model are used again, from the folder's index and from the parts that a killed build
    left: only images that have none are embedded, broken ones are tried again, and vectors of images that
    have vanished are dropped. A picture replaced under its old name is not noticed: use `rebuild`.

    Args:
        images: With unique ids.
        encoder: Makes the vectors.
        folder: Where the index goes.
        model_name: For people; the fingerprint is the encoder's.
        dataset: Name of the dataset.
        image_folder: The folder that the ids are relative to.
        batch_size: Pictures to one call of the encoder.
        workers: Threads that decode.
        kind: Of the index; "auto" keeps the kind of the index that is there, and picks one for a new index by
            the number of images and the memory.
        shard_size: After so many images the work so far is safe from a kill.
        max_failed_share: With more broken images than this share, something else is wrong.
        rebuild: Embed everything again, whatever is there.
        embed_parts: Does the embedding elsewhere, with the same model (see `scale.ray_jobs`); here, part
            by part, when None.

    Raises:
        ValueError: If there are no images, ids repeat, all images or too many are broken
            (`failed_images.csv` is written all the same), the encoder's output does not fit, or another
            process builds in the folder.
    """
    _check_images(images, batch_size, workers, shard_size)
    if kind == "auto":
        kind = _kind_there(folder)
    old = None if rebuild else _open_old(encoder, folder)
    store = ShardStore(folder / PARTIAL_FOLDER, encoder.fingerprint, encoder.dimension)
    if old is not None and _is_current(old, images, folder, kind):
        log.info("%s: reusing the index of %d images", folder, len(old))
        _clear_left_over(store, folder)
        return old
    with locked_folder(folder), logging_redirect_tqdm():
        if rebuild:
            store.clear()
        shards = store.load_all()
        sources = [*([Shard(old.ids, old.vectors)] if old else []), *shards.values()]
        parts = _parts(images, frozenset(old.ids if old else ()), list(shards.values()), shard_size)
        left = sum(map(len, parts))
        if sources and left:
            log.info("%s: continuing: %d of %d images are to be embedded", folder, left, len(images))
        with tqdm(
            total=len(images), initial=len(images) - left, desc="embedding", unit="image", disable=None
        ) as bar:
            if embed_parts is None:
                done = _embedded_here(parts, encoder, batch_size, workers, bar)
            else:
                done = _counted(embed_parts(parts), bar)
            skipped = _kept(done, store, max(shards, default=-1) + 1, sources, bar)
        put_in_order(skipped, images)
        if skipped:
            check_still_there(image.path for image in images)
        write_failed(folder, skipped)
        check_failures(len(images), skipped, max_failed_share)
        ids, where = _places(images, sources)
        if old is not None:
            dropped = len(set(old.ids) - set(ids))
            log.info(
                "%s: %d images are new, %d have vanished", folder, len(ids) - len(old) + dropped, dropped
            )
        write_folder(
            folder,
            ids,
            _collected(sources, where),
            dimension=encoder.dimension,
            model_name=model_name,
            model_fingerprint=encoder.fingerprint,
            dataset=dataset,
            image_folder=image_folder,
            kind=kind,
            sampled=lambda: _encoded_captions(images, encoder),
        )
        store.clear()
        log.info("%s: wrote the index of %d images, %d left out", folder, len(ids), len(skipped))
    return FaissIndex.open(folder, encoder.fingerprint, encoder.dimension)


def _parts(
    images: Sequence[Image], indexed: Container[str], shards: Sequence[Shard], shard_size: int
) -> list[list[Image]]:
    """Cuts a collection into parts, and takes out what an earlier build has done.

    A part's images, and so its batches, depend on the collection and the old index alone. Whoever does them,
    in whatever order and after however many kills, gives the encoder the same batches.

    Args:
        images: The collection.
        indexed: Ids of the old index.
        shards: Finished parts.
        shard_size: Images of a part.

    Returns:
        The images to embed, in the order of the collection; last those that were broken, which somebody may
        have mended.
    """
    done = {image_id for shard in shards for image_id in shard.ids}
    broken = {image_id for shard in shards for image_id in shard.broken} - done
    new = [image for image in images if image.id not in indexed]
    again = [image for image in new if image.id in broken]
    tried = done | broken
    parts = [[image for image in part if image.id not in tried] for part in _cut(new, shard_size)]
    return [part for part in parts if part] + _cut(again, shard_size)


def _cut(images: list[Image], size: int) -> list[list[Image]]:
    return [images[first : first + size] for first in range(0, len(images), size)]


def _embedded_here(
    parts: Sequence[Sequence[Image]], encoder: ImageEncoder, batch_size: int, workers: int, bar: tqdm
) -> Done:
    for part in parts:
        yield embed(part, encoder, batch_size, workers, bar)


def _counted(done: Done, bar: tqdm) -> Done:
    with closing(done):
        for part in done:
            bar.update(len(part[0].ids) + len(part[1]))
            yield part


def _kept(
    done: Done,
    store: ShardStore,
    number: int,
    sources: list[Shard],
    bar: tqdm,
) -> list[Skip]:
    """Writes each part as soon as it is there, from the number given on, and adds it to the sources."""
    skipped: list[Skip] = []
    with closing(done):
        for shard, broken in done:
            if shard.ids:
                sources.append(store.save(number, shard))
                number += 1
            skipped += broken
            bar.set_postfix(failed=len(skipped), refresh=False)
            del shard  # else two parts are in memory while the next one is made
    return skipped


def _places(images: Sequence[Image], sources: Sequence[Shard]) -> tuple[list[str], np.ndarray]:
    """Finds where each image's vector is.

    Returns:
        The ids of the n images that have one, in order; and (n, 2) int64, source and row.
    """
    number_of = {image.id: number for number, image in enumerate(images)}
    where = np.full((len(images), 2), -1, dtype=np.int64)
    for number, source in enumerate(sources):
        for row, image_id in enumerate(source.ids):
            if image_id in number_of:
                where[number_of[image_id]] = number, row
    there = where[:, 0] >= 0
    return [image.id for image, has in zip(images, there, strict=True) if has], where[there]


def _collected(sources: Sequence[Shard], where: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the vectors block by block."""
    for first in range(0, len(where), ROWS_AT_ONCE):
        numbers, rows = where[first : first + ROWS_AT_ONCE].T
        block = np.empty((len(rows), sources[0].vectors.shape[1]), dtype=np.float32)
        for number in np.unique(numbers):
            block[numbers == number] = sources[number].vectors[rows[numbers == number]]
        yield block


def _encoded_captions(images: Sequence[Image], encoder: ImageEncoder) -> np.ndarray | None:
    """Encodes some captions, spread over the images: an approximate index is measured with such questions."""
    encode_texts = getattr(encoder, "encode_texts", None)
    captioned = [image for image in images if image.captions]
    if encode_texts is None or not captioned:
        return None
    step = max(1, len(captioned) // SAMPLED_CAPTIONS)
    texts = [image.captions[0] for image in captioned[::step][:SAMPLED_CAPTIONS]]
    return unit_rows(encode_texts(texts), encoder.dimension, "text vectors")


def _check_images(images: Sequence[Image], batch_size: int, workers: int, shard_size: int) -> None:
    if not images:
        raise ValueError("embedding: got no images, expected at least one; check the dataset's image folder")
    for name, value in (("batch size", batch_size), ("workers", workers), ("shard size", shard_size)):
        if value < 1:
            raise ValueError(f"embedding: got {name} {value}, expected at least 1")
    seen: set[str] = set()
    for image in images:
        if image.id in seen:
            raise ValueError(f"embedding: image id {image.id!r} occurs twice; ids must be unique")
        seen.add(image.id)


def _open_old(encoder: ImageEncoder, folder: Path) -> FaissIndex | None:
    """Opens the folder's index if it is of this model; says why when it is not."""
    if not folder.is_dir() or not any(folder.glob("*.json")):
        return None
    try:
        return FaissIndex.open(folder, encoder.fingerprint, encoder.dimension)
    except (ValueError, FileNotFoundError) as error:
        log.warning("building a new index, since the old one cannot be used: %s", error)
        return None


def _kind_there(folder: Path) -> IndexKind:
    """Returns the kind of the folder's index, "auto" if there is none that can be read."""
    try:
        return cast(IndexKind, Manifest.read(folder).kind)
    except (ValueError, FileNotFoundError):
        return "auto"


def _is_current(old: FaissIndex, images: Sequence[Image], folder: Path, kind: IndexKind) -> bool:
    """Tells whether the index is of these images but broken ones, in this order, and of this kind."""
    if old.kind != kind:
        log.warning("%s: writing a new index, since the old one is %s", folder, old.kind)
        return False
    failed = read_failed(folder)
    if old.ids != tuple(image.id for image in images if image.id not in failed):
        log.warning("%s: the index is of other images", folder)
        return False
    if not failed <= {image.id for image in images}:
        log.warning("%s: lists broken images that have vanished", folder / FAILED_FILE)
        return False
    for image in images:
        if image.id in failed:
            try:
                open_image(image.path)
            except BrokenImage:
                continue
            log.warning("%s: %r, which was broken, can be read now", folder, image.id)
            return False
    return True


def _clear_left_over(store: ShardStore, folder: Path) -> None:
    """Removes the parts that a kill left beside a whole index."""
    if not store.folder.exists() or not os.access(folder, os.W_OK):
        return
    try:
        with locked_folder(folder):
            store.clear()
    except FolderBusy:
        log.debug("%s: its builder uses the parts", folder)
