"""A folder of pictures, captioned or not. Check it: ``python -m playground.image_folder --root FOLDER``."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from playground.captions_csv import read_captions
from playground.check import Check, Piece
from records import Dataset, Image, Skip
from scale.places import address_of, is_remote, list_stored, naming_place, read_range

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
CAPTIONS_FILE = "images_captions.csv"
HOW_TO_GET = """Put pictures there, at any depth, or name another folder with --root. To play rounds, write
what they show into an images_captions.csv beside them; first line: image_name,comment_number,comment"""
_ADVICE = "put pictures there, or name another folder"


def read(root: Path, split: str) -> Dataset:
    """Reads a folder of your own.

    Args:
        root: Holds the pictures, at any depth, and perhaps `images_captions.csv`; without that file there are
            no queries. A folder here or in an object store.
        split: "all".

    Raises:
        FileNotFoundError: If the folder is missing.
        ValueError: If it holds no pictures, the captions file is of no use, or the split is another.
    """
    if split != "all":
        raise ValueError(
            f"image_folder: got split {split!r}, expected 'all': the dataset has no split file; use all"
        )
    if is_remote(root):
        return _read_remote(root)
    images, skipped = list_images(root, _ADVICE)
    if not (root / CAPTIONS_FILE).exists():
        return Dataset("image_folder", root, images, (), skipped)
    captions = read_captions(root / CAPTIONS_FILE, images, _ADVICE)
    return Dataset("image_folder", root, captions.images, captions.queries, skipped + captions.skipped)


def _read_remote(root: Path) -> Dataset:
    with naming_place(root):
        names = list_stored(root)
    names, skipped = plain_names(names)
    images = tuple(Image(name, root / name) for name in names if Path(name).suffix.lower() in SUFFIXES)
    if not images:
        kinds = ", ".join(sorted(SUFFIXES))
        raise ValueError(f"{address_of(root)}: got no pictures, expected files ending in {kinds}; {_ADVICE}")
    if CAPTIONS_FILE not in names:
        return Dataset("image_folder", root, images, (), skipped)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / CAPTIONS_FILE
        with naming_place(root / CAPTIONS_FILE):
            copy.write_bytes(read_range(root / CAPTIONS_FILE))
        captions = read_captions(copy, images, _ADVICE)
    return Dataset("image_folder", root, captions.images, captions.queries, skipped + captions.skipped)


def plain_names(names: Sequence[str]) -> tuple[list[str], tuple[Skip, ...]]:
    """Leaves out a store's hidden names, and those of which a path would make another object's."""
    odd = {name for name in names if any(not part or part.startswith(".") for part in name.split("/"))}
    why = "the name has an empty, a '.' or a hidden part"
    return [name for name in names if name not in odd], tuple(Skip(name, why) for name in sorted(odd))


def list_images(
    folder: Path, next_command: str, suffixes: frozenset[str] = SUFFIXES
) -> tuple[tuple[Image, ...], tuple[Skip, ...]]:
    """Lists the pictures of a folder, at any depth, by id, as `list_files` does.

    Raises:
        FileNotFoundError: If the folder is missing.
        ValueError: If there is no picture in it.
    """
    images, skipped = list_files(folder, next_command, suffixes)
    if not images:
        kinds = ", ".join(sorted(suffixes))
        raise ValueError(f"{folder}: got no pictures, expected files ending in {kinds}; {next_command}")
    return images, skipped


def list_files(
    folder: Path, next_command: str, suffixes: frozenset[str]
) -> tuple[tuple[Image, ...], tuple[Skip, ...]]:
    """Lists the files of a folder that have one of some suffixes, at any depth, by id.

    A file counts by its suffix, in either case; it is not opened. Names that begin with a dot do not count.
    The folder itself may be a link. Links in it are followed while they stay in it, each folder once, so that
    a link to a folder above ends there; a link that leads out is left out, so that an archive from somewhere
    else cannot bring the reader's own files into an index and a report.

    Args:
        folder: Where to look.
        next_command: What to do when the folder is missing; ends the error message.
        suffixes: Of the files that count, in lower case.

    Returns:
        The files, sorted by id, and what was left out: links that lead nowhere or out of the folder, folders
        that cannot be read, names that are not UTF-8.

    Raises:
        FileNotFoundError: If the folder is missing.
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
            if entry.name.startswith("."):
                continue
            why_not = _flaw_of_link(path, home) if entry.is_symlink() else ""
            if not why_not and entry.is_dir():  # asks the disk for links only
                (linked if entry.is_symlink() else folders).append(path)
            elif path.suffix.lower() in suffixes or why_not == _LEADS_OUT:
                if not why_not and not entry.is_file():
                    why_not = _NO_FILE
                name = path.relative_to(folder).as_posix()
                if not why_not and not _is_utf8(name):
                    why_not = "the file name is not UTF-8"
                if why_not:
                    skipped.append(Skip(_printable(path, folder), why_not))
                else:
                    images.append(Image(name, path))
    return tuple(sorted(images, key=lambda image: image.id)), tuple(skipped)


_NO_FILE = "not a file, or a link that leads nowhere"
_LEADS_OUT = "a link that leads out of the folder; copy what it names, or name that as the folder"


def _flaw_of_link(path: Path, home: Path) -> str:
    goal = Path(os.path.realpath(path))
    if not goal.is_relative_to(home):
        return _LEADS_OUT
    return "" if goal.exists() else _NO_FILE


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _printable(path: Path, folder: Path) -> str:
    name = path.relative_to(folder).as_posix()
    return name.encode("utf-8", "replace").decode("utf-8")  # a byte that is no UTF-8 becomes "?"


if __name__ == "__main__":
    sys.exit(Check("image_folder", read, HOW_TO_GET, [Piece(CAPTIONS_FILE, "needed to play rounds")]).main())
