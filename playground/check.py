"""`python -m playground.NAME`: says what of a dataset is there, what is missing, and what to do next."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from records import Dataset
from scale.places import address_of, is_remote
from settings import DATA_FOLDER, DEFAULT_SPLITS

log = logging.getLogger(__name__)

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
    """How much a whole split holds, by the word of its authors."""

    images: int
    queries: int


@dataclass(frozen=True)
class Check:
    """How a dataset is checked.

    Attributes:
        name: The dataset's, and its module's.
        read: Its reader.
        how_to_get: Where its files come from and go; printed when it is not usable.
        pieces: What may lie in its folder.
        sizes: Of its splits, where known.
        download: Command that gets it, if there is one.
    """

    name: str
    read: Callable[[Path, str], Dataset]
    how_to_get: str
    pieces: Sequence[Piece]
    sizes: Mapping[str, Size] = field(default_factory=dict)
    download: str = ""

    @property
    def default_split(self) -> str:
        """Read when none is asked for."""
        return DEFAULT_SPLITS.get(self.name, "all")

    def parser(self) -> argparse.ArgumentParser:
        """Returns the command line; a dataset may add to it."""
        parser = argparse.ArgumentParser(
            prog=f"python -m playground.{self.name}",
            description="Says what of the dataset is there, what is missing, and what to do next.",
            epilog=self.how_to_get,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        root = DATA_FOLDER / self.name
        parser.add_argument("--root", type=Path, default=root, help=f"its folder (default: {root})")
        parser.add_argument(
            "--split", default=self.default_split, help=f"the part to read (default: {self.default_split})"
        )
        return parser

    def run(self, root: Path, split: str) -> int:
        """Reads the dataset and says what came of it.

        Returns:
            The exit status: 0 when the dataset is usable, else 1.
        """
        start_log()
        log.info("%s in %s", self.name, address_of(root))
        for piece in () if is_remote(root) else self.pieces:
            state = "there" if (root / piece.path).exists() else "missing"
            log.info("  %-8s %s: %s", state, piece.path, piece.use)
        try:
            dataset = self.read(root, split)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            log.error("not usable: %s\n\n%s", error, self.how_to_get)
            if self.download:
                log.info("next: %s", self.download)
            return 1
        self._report(dataset, split)
        flags = f" --dataset {self.name}"
        flags += f" --root {shlex.quote(address_of(root))}" if root != DATA_FOLDER / self.name else ""
        flags += f" --split {split}" if split != self.default_split else ""
        log.info("next: python embed_image_as_faiss.py%s", flags)
        return 0

    def main(self) -> int:
        """Runs from the command line."""
        options = self.parser().parse_args()
        return self.run(options.root, options.split)

    def _report(self, dataset: Dataset, split: str) -> None:
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
        whole = self.sizes.get(split)
        if whole and whole != Size(len(dataset.images), len(dataset.queries)):
            log.info("the whole split has %d images and %d queries", whole.images, whole.queries)


def start_log() -> None:
    """Sends what a check says to standard output; the readers' own warnings would only say it twice."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stdout)
    logging.getLogger(__name__).setLevel(logging.INFO)
