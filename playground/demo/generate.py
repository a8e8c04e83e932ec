"""Writes the demo scenes to disk, in Flickr30k's layout plus the relevant images of every caption.

``playground/data/demo/SPLIT/`` then holds ``images/``, ``images_captions.csv`` (comment numbers 0 to 4,
from precise to vague), ``relevant.csv`` (``image_name,comment_number,relevant_image``: one row for each
image that answers a caption), ``ATTRIBUTION.txt`` and, written last, ``manifest.json``. Splits for training
have ``regions.csv`` instead of the relevant images: what stands where, see `BLIP.training_data`.
"""

from __future__ import annotations

import csv
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import repeat
from pathlib import Path

from tqdm import tqdm

from files import locked_folder
from playground.demo.drawing import ATTRIBUTION, render
from playground.demo.scenes import CELLS, GRID, Scene, make_scene
from playground.demo.wording import LEVELS, Description, describe, matches, mentionable, word

log = logging.getLogger(__name__)

VERSION = 1  # raise it when scenes, drawings or captions change: old files are then made again

# split: first seed, number of scenes, side in pixels. Train is only ever seen by models, at 112 px.
SPLITS = {
    "train": (0, 40_000, 224),
    "train-large": (100_000, 200_000, 224),
    "dev": (1_000_000, 1_000, 448),
    "test": (2_000_000, 1_000, 448),
    "test-medium": (6_000_000, 4_000, 224),  # where feedback is worth something, and minutes are enough
    "dev-large": (5_000_000, 10_000, 224),  # as many that vague words fit a hundred pictures
    "test-large": (4_000_000, 10_000, 224),
}


def captions_of(scene: Scene) -> list[tuple[Description, str]]:
    """Returns what is said of a scene, one description and sentence for each of `LEVELS`."""
    said = []
    for level in LEVELS:
        rng = random.Random(f"{scene.seed} {level}")
        description = describe(scene, level, rng)
        said.append((description, word(description, rng)))
    return said


def ensure_split(root: Path, split: str) -> Path:
    """Generates a split unless it is there already, whole and of this version.

    Args:
        root: Folder of the demo dataset, ``playground/data/demo``.
        split: One of `SPLITS`.

    Returns:
        The split's folder.

    Raises:
        ValueError: If the split is not known, or another process is drawing.
        ModuleNotFoundError: If the demo packages are missing.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of the demo scenes; expected one of {', '.join(SPLITS)}")
    first_seed, count, size = SPLITS[split]
    folder = root / split
    manifest = {"version": VERSION, "first_seed": first_seed, "count": count, "size": size}
    if _holds(folder / "manifest.json", manifest):
        return folder
    with locked_folder(root, "is drawing demo scenes here", "name another --root"):
        if not _holds(folder / "manifest.json", manifest):  # another process may have drawn it just now
            log.info("drawing %d demo scenes into %s", count, folder)
            _draw(folder, manifest)
    return folder


def _draw(folder: Path, manifest: dict[str, int]) -> None:
    split, first_seed, count = folder.name, manifest["first_seed"], manifest["count"]
    unfinished = folder.with_name(f"{split}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "images").mkdir(parents=True)
    scenes = [make_scene(seed) for seed in range(first_seed, first_seed + count)]
    _write_pictures(scenes, unfinished / "images", manifest["size"])
    is_for_training = split.startswith("train")
    _write_texts(scenes, unfinished, with_relevant=not is_for_training)
    if is_for_training:
        header = ("image_name", "label", "left", "top", "right", "bottom")
        _write_csv(unfinished / "regions.csv", header, _region_rows(scenes))
    (unfinished / "ATTRIBUTION.txt").write_text(ATTRIBUTION + "\n", encoding="utf-8")
    (unfinished / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def _holds(path: Path, manifest: dict[str, int]) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8")) == manifest
    except (FileNotFoundError, ValueError):  # not drawn, or damaged: drawn again either way
        return False


def image_name(scene: Scene) -> str:
    """Returns the file name of a scene's picture."""
    return f"{scene.seed:07d}.jpg"


def _write_pictures(scenes: list[Scene], folder: Path, size: int) -> None:
    with ProcessPoolExecutor(os.cpu_count(), initializer=_end_with_parent) as pool:
        done = pool.map(partial(_write_picture, size=size), scenes, repeat(folder), chunksize=50)
        for _ in tqdm(done, total=len(scenes), desc="drawing scenes", unit="image"):
            pass


def _end_with_parent() -> None:
    """Leaves Ctrl-C to the parent, and ends when a kill ends it: nobody else would end a worker then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_picture(scene: Scene, folder: Path, size: int) -> None:
    render(scene, size).save(folder / image_name(scene), quality=95, subsampling=0)


def _write_texts(scenes: list[Scene], folder: Path, with_relevant: bool) -> None:
    said = [captions_of(scene) for scene in scenes]
    captions = (
        (image_name(scene), number, text)
        for scene, all_said in zip(scenes, said, strict=True)
        for number, (_, text) in enumerate(all_said)
    )
    _write_csv(folder / "images_captions.csv", ("image_name", "comment_number", "comment"), captions)
    if with_relevant:
        header = ("image_name", "comment_number", "relevant_image")
        _write_csv(folder / "relevant.csv", header, _relevant_rows(scenes, said))


def _relevant_rows(
    scenes: list[Scene], said: list[list[tuple[Description, str]]]
) -> Iterator[tuple[str, int, str]]:
    holding: dict[str, list[Scene]] = defaultdict(list)  # by noun and by category, what may be mentioned
    for scene in scenes:
        for name in {name for item in scene.items for name in mentionable(item)}:
            holding[name].append(scene)
    bar = tqdm(zip(scenes, said, strict=True), total=len(scenes), desc="relevant images", unit="scene")
    for scene, all_said in bar:
        for number, (description, _) in enumerate(all_said):
            mentioned = (holding[mention.noun or mention.category] for mention in description.mentions)
            for other in min(mentioned, key=len):
                if matches(other, description):
                    yield image_name(scene), number, image_name(other)


def _region_rows(scenes: list[Scene]) -> Iterator[tuple[str | float, ...]]:
    for scene in scenes:
        for item in scene.items:
            for x, y in item.corners:
                corners = (x, y, x + CELLS[item.size], y + CELLS[item.size])
                yield image_name(scene), item.noun, *(round(corner / GRID, 4) for corner in corners)


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
