"""`python -m playground.NAME`: says what of a dataset is there, what is missing, and what to do next."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from records import Dataset
from settings import DATA_FOLDER, DEFAULT_SPLITS

log = logging.getLogger(__name__)

_LISTED = 10


@dataclass(frozen=True)
class Check:
    """How a dataset is checked."""

    name: str  # the dataset's, and its module's
    read: Callable[[Path, str], Dataset]
    how_to_get: str  # where its files come from and go; printed when it is not usable
    pieces: Mapping[str, str]  # what may lie in its folder, and its use; a folder's path ends in a slash
    sizes: Mapping[str, str] = field(default_factory=dict)  # of whole splits, by the word of their authors
    download: str = ""  # command that gets it, if there is one

    def parser(self) -> argparse.ArgumentParser:
        """Returns the command line; a dataset may add to it."""
        parser = argparse.ArgumentParser(
            prog=f"python -m playground.{self.name}",
            description="Says what of the dataset is there, what is missing, and what to do next.",
            epilog=self.how_to_get,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        root, split = DATA_FOLDER / self.name, DEFAULT_SPLITS.get(self.name, "all")
        parser.add_argument("--root", type=Path, default=root, help=f"its folder (default: {root})")
        parser.add_argument("--split", default=split, help=f"the part to read (default: {split})")
        return parser

    def main(self) -> int:
        """Runs from the command line."""
        options = self.parser().parse_args()
        return self.run(options.root, options.split)

    def run(self, root: Path, split: str) -> int:
        """Reads the dataset and reports on it; returns the exit status: 0 when it is usable, else 1."""
        start_log()
        log.info("%s in %s", self.name, root)
        for path, use in self.pieces.items():
            log.info("  %-8s %s: %s", "there" if (root / path).exists() else "missing", path, use)
        try:
            dataset = self.read(root, split)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            log.error("not usable: %s\n\n%s", error, self.how_to_get)
            if self.download:
                log.info("next: %s", self.download)
            return 1
        skipped = dataset.skipped
        bare = sum(not image.captions for image in dataset.images)
        log.info(
            f"usable: {len(dataset.images)} images ({bare} without a caption), {len(dataset.queries)} "
            f"queries, {len(skipped)} left out (split {split})"
        )
        for skip in skipped[:_LISTED]:
            log.info("  left out: %s: %s", skip.what, skip.why)
        if len(skipped) > _LISTED:
            log.info("  and %d more", len(skipped) - _LISTED)
        if split in self.sizes:
            log.info("the whole split has %s", self.sizes[split])
        log.info("next: %s", embedding_command(self.name, root, split))
        return 0


def embedding_command(dataset: str, root: Path, split: str) -> str:
    """Returns the command that embeds a dataset; of one's own pictures with models for this machine."""
    words = ["python embed_image_as_faiss.py", f"--dataset {dataset}"]
    if root != DATA_FOLDER / dataset:
        words.append(f"--root {shlex.quote(str(root))}")
    if split != DEFAULT_SPLITS.get(dataset, "all"):
        words.append(f"--split {split}")
    if dataset == "image_folder":
        import torch

        if not torch.cuda.is_available():
            words.append("--preset laptop")
    return " ".join(words)


def start_log() -> None:
    """Sends what a check says to standard output; the readers' own warnings would only say it twice."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stdout)
    logging.getLogger(__name__).setLevel(logging.INFO)
