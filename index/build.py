"""Images to an index: what is new is embedded, what has vanished is dropped, broken pictures are listed.

`build_index` leaves `failed_images.csv` (image_name, reason) beside the index.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import cast

import numpy as np
from tqdm import tqdm

from files import FolderBusy, locked_folder, replace_file
from index.decode import BrokenImage, check_still_there, open_image
from index.encoder import ImageEncoder, embed
from index.faiss_index import FaissIndex
from index.file_states import FileStates
from index.folder import Manifest, finish_swap, is_half_swapped, read_sizes, write_folder
from index.scores import ROWS_AT_ONCE, check_ids
from index.shards import Shard, ShardStore
from records import Image, Skip
from settings import IndexKind

log = logging.getLogger(__name__)

FAILED_FILE = "failed_images.csv"
PARTIAL_FOLDER = ".partial"
SHARD_SIZE = 4096  # images of a part: a multiple of the usual batch sizes
KEEP_SECONDS = 60  # what is embedded is kept at least so often

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
    max_failed_share: float = 0.1,
    rebuild: bool = False,
    embed_parts: EmbedParts | None = None,
) -> FaissIndex:
    """Makes the index of a collection, brings the one that is there up to date, or opens it as it is.

    Vectors of the same model are used again, from the folder's index and from the parts that a killed build
    left: only images that have none, or whose file has changed since, are embedded. Broken ones are
    tried again, and vectors of images that have vanished are dropped.

    Args:
        images: With unique ids.
        encoder: Makes the vectors.
        folder: Where the index goes.
        model_name: For people, as `dataset` and `image_folder`, which the ids are relative to.
        dataset: Name of the dataset.
        image_folder: See `model_name`.
        batch_size: Pictures to one call of the encoder.
        workers: Threads that decode.
        kind: "auto" keeps the kind of the index that is there, and picks one for a new index.
        shard_size: After so many images, or after a minute, the work so far is safe from a kill.
        max_failed_share: With more broken images than this share, something else is wrong.
        rebuild: Embed everything again, whatever is there.
        embed_parts: Does the embedding elsewhere, with the same model; here, part by part, when None.

    Raises ValueError if there are no images, ids repeat, all or too many are broken, the encoder's output
    does not fit, the folder holds another model's index and `rebuild` is not given, or another process builds
    in the folder; WriteFailed (an OSError) if it cannot be written, or is not ours (`files.make_folder`).
    """
    if not images:
        raise ValueError("embedding: got no images, expected at least one; check the dataset's image folder")
    check_ids(image.id for image in images)
    if is_half_swapped(folder):
        with locked_folder(folder):
            finish_swap(folder)
    if kind == "auto":
        kind = _kind_there(folder)
    states = FileStates(images)
    source = None
    store = ShardStore(folder / PARTIAL_FOLDER, encoder.fingerprint, encoder.dimension)
    if not rebuild and (index := _open_old(encoder, folder)):
        source = Shard(index.ids, index.vectors, sizes=read_sizes(folder, len(index)))
        reason = _why_not_current(index, source, images, states, folder, kind)
        if not reason:
            log.info("%s: reusing the index of %d images", folder, len(index))
            _clear_left_over(store, folder)
            return index
        log.warning("%s: %s", folder, reason)
    with locked_folder(folder):
        if rebuild:
            store.clear()
        shards = store.load_all()
        sources = [*([source] if source else []), *shards.values()]
        indexed = {image_id for _, image_id in source.current(states)} if source else set()
        done = {image_id for shard in shards.values() for _, image_id in shard.current(states)}
        broken = {image_id for shard in shards.values() for image_id in shard.broken}
        parts = _parts(images, indexed, done, broken, shard_size)
        left = sum(map(len, parts))
        if sources and left:
            log.info("%s: continuing: %d of %d images are to be embedded", folder, left, len(images))
        with tqdm(
            total=len(images), initial=len(images) - left, desc="embedding", unit="image", disable=None
        ) as bar:
            fresh = _embedded(parts, encoder, batch_size, workers, bar, embed_parts)
            skipped = _keep(fresh, store, max(shards, default=-1) + 1, states, sources, bar)
        place_of = {image.id: place for place, image in enumerate(images)}
        skipped.sort(key=lambda skip: place_of[skip.what])
        if skipped:
            check_still_there(image.path for image in images)
        write_failed(folder, skipped)
        _check_failures(len(images), skipped, max_failed_share)
        ids, where = _places(place_of, sources, states)
        if source is not None:
            old, new = set(source.ids), set(ids)
            log.info("%s: %d images are new, %d have vanished", folder, len(new - old), len(old - new))
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
            sizes=[
                states.now(image_id, sources[source].sizes[row] if sources[source].sizes else None)
                for image_id, (source, row) in zip(ids, where.tolist(), strict=True)
            ],
        )
        store.clear()
        log.info("%s: wrote the index of %d images, %d left out", folder, len(ids), len(skipped))
    return FaissIndex.open(folder, encoder.fingerprint, encoder.dimension)


def read_failed(folder: Path) -> frozenset[str]:
    """Returns the names in the list of broken images; none if it is not there or not such a list."""
    try:
        with (folder / FAILED_FILE).open(encoding="utf-8", newline="") as file:
            return frozenset(row["image_name"] for row in csv.DictReader(file))
    except (FileNotFoundError, KeyError, ValueError, csv.Error) as error:
        log.warning("%s: cannot be used, trying its images again: %s", folder / FAILED_FILE, error)
        return frozenset()


def write_failed(folder: Path, skipped: Sequence[Skip]) -> None:
    """Writes the list into an index's folder; an empty one when nothing was left out."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["image_name", "reason"])
    writer.writerows((skip.what, skip.why) for skip in skipped)
    replace_file(folder / FAILED_FILE, lambda path: path.write_text(text.getvalue(), "utf-8", newline=""))


def _check_failures(count: int, skipped: Sequence[Skip], max_failed_share: float) -> None:
    """Refuses a build of which too much was left out, and warns of the rest."""
    if not skipped:
        return
    first = f"the first is {skipped[0].what!r}: {skipped[0].why}"
    if len(skipped) == count:
        raise ValueError(f"embedding: all {count} images are broken; {first}; check the image folder")
    if len(skipped) > max_failed_share * count:
        raise ValueError(
            f"embedding: {len(skipped)} of {count} images are broken, expected at most "
            f"{max_failed_share:.0%}; {first}; all are in {FAILED_FILE}; repair or remove them, or allow "
            "a larger share with --max-failed-share"
        )
    log.warning("%d of %d images are broken and left out; %s", len(skipped), count, first)


def _kind_there(folder: Path) -> IndexKind:
    """Returns the kind of the folder's index, "auto" if there is none that can be read."""
    try:
        return cast(IndexKind, Manifest.read(folder).kind)
    except (ValueError, FileNotFoundError):
        return "auto"


def _open_old(encoder: ImageEncoder, folder: Path) -> FaissIndex | None:
    """Opens the folder's index if it is whole, else says why not; another model's is a ValueError."""
    if not any(folder.glob("*.json")):
        return None
    try:
        there = Manifest.read(folder)
    except (ValueError, FileNotFoundError):
        pass  # opening says why
    else:
        if there.model_fingerprint != encoder.fingerprint:
            raise ValueError(
                f"{folder}: holds the index of another model: got {there.model_fingerprint} "
                f"({there.model_name}), expected {encoder.fingerprint}; name another folder with --index, or "
                "replace it with --rebuild"
            )
    try:
        return FaissIndex.open(folder, encoder.fingerprint, encoder.dimension)
    except (ValueError, FileNotFoundError) as error:
        log.warning("building a new index, since the old one cannot be used: %s", error)
        return None


def _why_not_current(
    index: FaissIndex,
    source: Shard,
    images: Sequence[Image],
    states: FileStates,
    folder: Path,
    kind: IndexKind,
) -> str:
    """Tells why the index is not of these images but broken ones, in this order; empty if it is."""
    if index.kind != kind:
        return f"writing a new index, since the old one is {index.kind}"
    failed = read_failed(folder)
    if index.ids != tuple(image.id for image in images if image.id not in failed):
        return "the index is of other images"
    if not failed <= {image.id for image in images}:
        return f"{FAILED_FILE} lists broken images that have vanished"
    replaced = len(index) - sum(1 for _ in source.current(states))
    if replaced:
        return f"{replaced} pictures have been replaced since they were embedded"
    for image in images:
        if image.id in failed:
            with suppress(BrokenImage):
                open_image(image.path)
                return f"{image.id!r}, which was broken, can be read now"
    return ""


def _clear_left_over(store: ShardStore, folder: Path) -> None:
    """Removes the parts that a kill left beside a whole index."""
    if not store.folder.exists() or not os.access(folder, os.W_OK):
        return
    try:
        with locked_folder(folder):
            store.clear()
    except FolderBusy:
        log.debug("%s: its builder uses the parts", folder)


def _parts(
    images: Sequence[Image], indexed: set[str], done: set[str], broken: set[str], size: int
) -> list[list[Image]]:
    """Cuts what the old index lacks into parts, and takes out what finished parts did or found broken.

    A part's images, and so its batches, depend on the collection and the old index alone. Whoever does them,
    in whatever order and after however many kills, gives the encoder the same batches: what is kept of a part
    ends where a batch does. Last come those that were broken, which somebody may have mended.
    """
    new = [image for image in images if image.id not in indexed]
    again = [image for image in new if image.id in broken - done]
    finished = done | broken
    parts = [[image for image in part if image.id not in finished] for part in _cut(new, size)]
    return [part for part in parts if part] + _cut(again, size)


def _cut(images: list[Image], size: int) -> list[list[Image]]:
    return [images[first : first + size] for first in range(0, len(images), size)]


def _embedded(
    parts: Sequence[Sequence[Image]],
    encoder: ImageEncoder,
    batch_size: int,
    workers: int,
    bar: tqdm,
    elsewhere: EmbedParts | None,
) -> Done:
    """Embeds the parts, here or elsewhere, and moves the bar."""
    if elsewhere is None:
        for part in parts:
            yield from embed(part, encoder, batch_size, workers, bar, KEEP_SECONDS)
        return
    with closing(elsewhere(parts)) as done:
        for part in done:
            bar.update(len(part[0].ids) + len(part[1]))
            yield part


def _keep(
    done: Done, store: ShardStore, number: int, states: FileStates, sources: list[Shard], bar: tqdm
) -> list[Skip]:
    """Writes each part as soon as it is there, from this number on, and adds it to the sources."""
    skipped: list[Skip] = []
    count = int(bar.n)
    with closing(done):
        for shard, broken in done:
            count += len(shard.ids) + len(broken)
            if shard.ids:
                sized = dataclasses.replace(shard, sizes=[states.now(image_id) for image_id in shard.ids])
                sources.append(store.save(number, sized))
                number += 1
                del sized
            skipped += broken
            bar.set_postfix(failed=len(skipped), refresh=False)
            if bar.disable:  # no terminal: a line now and then in its place
                log.info("embedded %d of %d images, %d failed", count, bar.total, len(skipped))
            del shard  # else two parts are in memory while the next one is made
    return skipped


def _places(
    place_of: Mapping[str, int], sources: Sequence[Shard], states: FileStates
) -> tuple[list[str], np.ndarray]:
    """Returns the ids of the n images that have a vector, in order, and its source and row, (n, 2) int64."""
    where = np.full((len(place_of), 2), -1, dtype=np.int64)
    for number, source in enumerate(sources):
        for row, image_id in source.current(states):
            if image_id in place_of:
                where[place_of[image_id]] = number, row
    there = where[:, 0] >= 0
    return [image_id for image_id, has in zip(place_of, there, strict=True) if has], where[there]


def _collected(sources: Sequence[Shard], where: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the vectors block by block."""
    for first in range(0, len(where), ROWS_AT_ONCE):
        numbers, rows = where[first : first + ROWS_AT_ONCE].T
        block = np.empty((len(rows), sources[0].vectors.shape[1]), dtype=np.float32)
        for number in np.unique(numbers):
            block[numbers == number] = sources[number].vectors[rows[numbers == number]]
        yield block
