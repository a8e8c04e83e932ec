"""Flickr30k: 31,783 photographs with five captions each. Check it: ``python -m playground.flickr30k``."""

from __future__ import annotations

import sys
from pathlib import Path

from playground import DATA_FOLDER
from playground.image_folder import CAPTIONS_FILE, check_command, read_folder
from records import Dataset

HOW_TO_GET = """Flickr30k: unpack https://www.kaggle.com/datasets/hsankesara/flickr-image-dataset into
  playground/data/flickr30k/flickr30k_images/        the pictures
  playground/data/flickr30k/images_captions.csv      its results.csv, renamed
Step by step: playground/data/flickr30k/README.md"""


def read(root: Path, split: str) -> Dataset:
    """Reads Flickr30k.

    Args:
        root: Holds `flickr30k_images/` and `images_captions.csv`.
        split: "all".

    Raises:
        FileNotFoundError: If the folder or the captions file is missing.
        ValueError: If the split is another, or the data is of no use.
    """
    advice = "see how to get it with: python -m playground.flickr30k"
    folder, captions = root / "flickr30k_images", root / CAPTIONS_FILE
    return read_folder("flickr30k", folder, captions, split, advice, captions_required=True)


if __name__ == "__main__":
    sys.exit(check_command("flickr30k", DATA_FOLDER / "flickr30k", HOW_TO_GET, read))
