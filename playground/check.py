"""`python -m playground.NAME`: says what of a dataset is there, what is missing, and what to do next."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from records import Dataset

_LISTED = 10


@dataclass(frozen=True)
class Piece:
    """A file or folder of a dataset.

    Attributes:
        path: Relative to the dataset's folder; a folder ends in a slash.
        use: What it is for.
    """

    path: str
    use: str


@dataclass(frozen=True)
class Size:
    """How much a whole dataset holds, by the word of its authors."""

    images: int
    queries: int


def check_command(
    module: str,
    read: Callable[[Path, str], Dataset],
    how_to_get: str,
    pieces: Sequence[Piece],
    *,
    sizes: dict[str, Size] | None = None,
    default_split: str = "all",
    download: str = "",
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs `python -m playground.<module>`.

    Args:
        module: Name of the dataset.
        read: Its reader.
        how_to_get: Where its files come from and go; printed when it is not usable.
        pieces: What may lie in its folder.
        sizes: Of its splits, where known.
        default_split: Checked when none is asked for.
        download: Command that gets it, if there is one.
        arguments: The command line; `sys.argv`'s when None.

    Returns:
        The exit status: 0 when the dataset is usable, else 1.
    """
    from playground import DATA_FOLDER

    parser = argparse.ArgumentParser(
        prog=f"python -m playground.{module}",
        description="Says what of the dataset is there, what is missing, and what to do next.",
        epilog=how_to_get,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default_root = DATA_FOLDER / module
    parser.add_argument(
        "--root", type=Path, default=default_root, help=f"its folder (default: {default_root})"
    )
    parser.add_argument("--split", default=default_split, help=f"the part to read (default: {default_split})")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stdout)
    log = logging.getLogger(f"playground.{module}")
    log.setLevel(logging.INFO)
    log.info("%s in %s", module, options.root)
    for piece in pieces:
        log.info("  %-8s %s: %s", _state(options.root / piece.path), piece.path, piece.use)
    try:
        dataset = read(options.root, options.split)
    except (ValueError, OSError) as error:
        log.error("not usable: %s\n\n%s", error, how_to_get)
        if download:
            log.info("next: %s", download)
        return 1
    _report(log, dataset, options.split, (sizes or {}).get(options.split))
    flags = f" --dataset {module}"
    flags += f" --root {options.root}" if options.root != default_root else ""
    flags += f" --split {options.split}" if options.split != default_split else ""
    log.info("next: python embed_image_as_faiss.py%s", flags)
    return 0


def _state(path: Path) -> str:
    return "there" if path.exists() else "missing"


def _report(log: logging.Logger, dataset: Dataset, split: str, size: Size | None) -> None:
    log.info(
        "usable: %d images (%d without a caption), %d queries, %d left out (split %s)",
        len(dataset.images),
        sum(not image.captions for image in dataset.images),
        len(dataset.queries),
        len(dataset.skipped),
        split,
    )
    for skip in dataset.skipped[:_LISTED]:
        log.info("  left out: %s: %s", skip.what, skip.why)
    if len(dataset.skipped) > _LISTED:
        log.info("  and %d more", len(dataset.skipped) - _LISTED)
    if size and size != Size(len(dataset.images), len(dataset.queries)):
        log.info("the whole split has %d images and %d queries", size.images, size.queries)
