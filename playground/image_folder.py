"""A folder of pictures, captioned or not. Check it: ``python -m playground.image_folder --root FOLDER``."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

from index.formats import BEGINNINGS
from playground.captions import CAPTIONS_FILE, captioned_dataset, table_lines
from playground.check import Check
from records import Dataset, Image, Skip

log = logging.getLogger(__name__)

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
)
HOW_TO_GET = """Put pictures there, at any depth, or name another folder with --root. For experiments,
write what they show into an images_captions.csv beside them; first line: image_name,comment_number,comment
Tars, Parquet files and data at an address are copied into such a folder by: python -m scale.import_dataset"""
_ADVICE = "put pictures there, or name another folder"
_IMPORT = "copy it here first: python -m scale.import_dataset ADDRESS --root FOLDER"
_NOT_A_FILE = "not a file, or a link that leads nowhere"
_HIDDEN = "hidden: a name that begins with a dot; rename what is meant"
_LEADS_OUT = "a link that leads out of the folder; copy what it names, or name that as the folder"


def read(root: Path, split: str) -> Dataset:
    """Reads a folder of your own.

    Args:
        root: Holds the pictures, at any depth, and perhaps `images_captions.csv`; without that file there are
            no queries.
        split: "all".

    Raises:
        FileNotFoundError: If the folder is missing.
        ValueError: If it holds no pictures, the captions file is of no use, or the split is another.
    """
    if split != "all":
        raise ValueError(
            f"image_folder: got split {split!r}, expected 'all': the dataset has no split file; use all"
        )
    if re.match(r"\w{2,}:/", root.as_posix()) and not root.exists():
        raise ValueError(f"image_folder: got the address {root}, expected a folder; {_IMPORT}")
    images, skipped = list_images(root, _ADVICE)
    if not (root / CAPTIONS_FILE).exists():
        return Dataset("image_folder", root, images, (), skipped)
    path = root / CAPTIONS_FILE
    return captioned_dataset("image_folder", root, images, skipped, path, table_lines(path, _ADVICE), _ADVICE)


def list_images(
    folder: Path, next_command: str, suffixes: frozenset[str] = SUFFIXES
) -> tuple[tuple[Image, ...], tuple[Skip, ...]]:
    """Lists the pictures of a folder, at any depth, by id.

    A file counts by its suffix, in either case, and one without a suffix by its first bytes. What is hidden,
    its name or a folder's beginning with a dot, is left out. The folder itself may be a link. Links in it are
    followed while they stay in it, each folder once, so that a link to a folder above ends there; a link that
    leads out is left out, so that an archive from somewhere else cannot bring the reader's own files into an
    index and a report.

    Args:
        folder: Where to look.
        next_command: What to do when there are none; ends the error message.
        suffixes: Of the files that count, in lower case.

    Returns:
        The pictures, sorted by id; and what was left out: hidden pictures, links that lead nowhere or out of
        the folder, folders that cannot be read, names that are not UTF-8.

    Raises:
        FileNotFoundError: If the folder is missing.
        ValueError: If there is no picture in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such image folder; {next_command}")
    home = Path(os.path.realpath(folder))
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
        try:
            with os.scandir(current) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except PermissionError:
            if current == folder:
                raise
            skipped.append(Skip(_printable(current, folder), "the folder cannot be read"))
            continue
        for entry in entries:
            path = current / entry.name
            flaw = _flaw_of_link(path, home) if entry.is_symlink() else ""
            name = path.relative_to(folder).as_posix()
            hidden = "/." in f"/{name}"
            if not flaw and entry.is_dir():  # asks the disk for links only
                (linked if entry.is_symlink() else folders).append(path)
            elif path.suffix.lower() in suffixes or (
                not hidden and (flaw == _LEADS_OUT or (not path.suffix and (flaw or _begins_well(entry))))
            ):
                flaw = _HIDDEN if hidden else flaw
                if not flaw and not entry.is_file():
                    flaw = _NOT_A_FILE
                if not flaw and _printable(path, folder) != name:
                    flaw = "the file name is not UTF-8"
                if flaw:
                    skipped.append(Skip(_printable(path, folder), flaw))
                else:
                    images.append(Image(name, path))
    if not images:
        kinds = ", ".join(sorted(suffixes))
        raise ValueError(f"{folder}: got no pictures, expected files ending in {kinds}; {next_command}")
    if skipped:
        log.warning("%s: left out %d, first %s: %s", folder, len(skipped), skipped[0].what, skipped[0].why)
    return tuple(sorted(images, key=lambda image: image.id)), tuple(skipped)


def _flaw_of_link(path: Path, home: Path) -> str:
    goal = Path(os.path.realpath(path))
    if not goal.is_relative_to(home):
        return _LEADS_OUT
    return "" if goal.exists() else _NOT_A_FILE


def _begins_well(entry: os.DirEntry[str]) -> bool:
    """Tells whether a file begins as a picture does; one that cannot be read may be one."""
    if not entry.is_file():
        return False
    try:
        with Path(entry.path).open("rb") as file:
            return BEGINNINGS.match(file.read(16)) is not None
    except OSError:
        return True


def _printable(path: Path, folder: Path) -> str:
    name = path.relative_to(folder).as_posix()
    return name.encode("utf-8", "replace").decode("utf-8")  # a byte that is not UTF-8 becomes "?"


if __name__ == "__main__":
    sys.exit(Check("image_folder", read, HOW_TO_GET, {CAPTIONS_FILE: "needed to run experiments"}).main())
