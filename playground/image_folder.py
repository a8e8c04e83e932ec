"""Any folder of pictures, with or without an `images_captions.csv`; named datasets are read through it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from playground.captions_csv import read_captions
from records import Dataset, Image, Skip

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
CAPTIONS_FILE = "images_captions.csv"
_ADVICE = "put pictures there, or name another folder"


def read(root: Path, split: str) -> Dataset:
    """Reads a folder of your own.

    Args:
        root: Holds the pictures, at any depth, and perhaps `images_captions.csv`; without that file there are
            no queries.
        split: "all".

    Raises:
        FileNotFoundError: If the folder is missing.
        ValueError: If it holds no pictures, or the captions file is of no use.
    """
    return read_folder("image_folder", root, root / CAPTIONS_FILE, split, _ADVICE, captions_required=False)


def read_folder(
    name: str, folder: Path, captions_file: Path, split: str, next_command: str, *, captions_required: bool
) -> Dataset:
    """Reads pictures and the captions of them.

    Args:
        name: The dataset's.
        folder: Holds the pictures.
        captions_file: As `playground.captions_csv` reads it.
        split: "all": there is no file that says which image belongs to which split.
        next_command: What to do when data is missing; ends the error messages.
        captions_required: Whether a missing captions file is an error; else there are no queries.

    Raises:
        FileNotFoundError: If the folder or a required captions file is missing.
        ValueError: If the split is not "all", there are no pictures, or the captions are of no use.
    """
    if split != "all":
        raise ValueError(
            f"{name}: got split {split!r}, expected 'all': the dataset has no split file; use all"
        )
    images, skipped = list_images(folder, next_command)
    if not captions_required and not captions_file.exists():
        return Dataset(name, folder, images, (), skipped)
    captions = read_captions(captions_file, images, next_command)
    return Dataset(name, folder, captions.images, captions.queries, skipped + captions.skipped)


def list_images(folder: Path, next_command: str) -> tuple[tuple[Image, ...], tuple[Skip, ...]]:
    """Lists the pictures of a folder, at any depth, by id.

    A file counts by its suffix, in either case; it is not opened. Names that begin with a dot do not count.
    Linked folders are entered, each folder once, so that a link to a folder above ends there.

    Args:
        folder: Where to look.
        next_command: What to do when there are none; ends the error messages.

    Returns:
        Images, sorted by id, and links that lead nowhere.

    Raises:
        FileNotFoundError: If the folder is missing.
        ValueError: If there is no picture in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such image folder; {next_command}")
    images: list[Image] = []
    skipped: list[Skip] = []
    entered: set[tuple[int, int]] = set()
    folders, linked = [folder], []
    while folders or linked:
        current = folders.pop() if folders else linked.pop(0)  # links last: a folder's own name is better
        identity = (current.stat().st_dev, current.stat().st_ino)
        if identity in entered:
            continue
        entered.add(identity)
        with os.scandir(current) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = current / entry.name
            if entry.is_dir():
                (linked if entry.is_symlink() else folders).append(path)
            elif path.suffix.lower() in SUFFIXES:
                image_id = path.relative_to(folder).as_posix()
                if entry.is_file():
                    images.append(Image(image_id, path))
                else:
                    skipped.append(Skip(image_id, "not a file, or a link that leads nowhere"))
    if not images:
        kinds = ", ".join(sorted(SUFFIXES))
        raise ValueError(f"{folder}: got no pictures, expected files ending in {kinds}; {next_command}")
    return tuple(sorted(images, key=lambda image: image.id)), tuple(skipped)


def check_command(
    module: str, default_root: Path, how_to_get: str, read_dataset: Callable[[Path, str], Dataset]
) -> int:
    """Runs `python -m playground.<module>`: says how to get the data, and what is there.

    Returns:
        The exit status: 0 when the dataset is usable, else 1.
    """
    parser = argparse.ArgumentParser(prog=f"python -m playground.{module}", description="Check the dataset.")
    parser.add_argument(
        "--root", type=Path, default=default_root, help=f"its folder (default: {default_root})"
    )
    root = parser.parse_args().root
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    log = logging.getLogger(f"playground.{module}")
    log.info("%s\n", how_to_get)
    try:
        dataset = read_dataset(root, "all")
    except (ValueError, FileNotFoundError) as error:
        log.error("not usable: %s", error)
        return 1
    uncaptioned = sum(not image.captions for image in dataset.images)
    log.info(
        "usable: %d images (%d without a caption), %d queries, %d left out",
        len(dataset.images),
        uncaptioned,
        len(dataset.queries),
        len(dataset.skipped),
    )
    for skip in dataset.skipped[:10]:
        log.info("  left out: %s: %s", skip.what, skip.why)
    return 0
