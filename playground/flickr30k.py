"""Flickr30k: 31,783 photographs with five captions each. Check it: ``python -m playground.flickr30k``."""

from __future__ import annotations

import sys
from pathlib import Path

from playground.captions import Captions, caption_images
from playground.captions_csv import read_captions
from playground.captions_json import split_images, split_lines
from playground.check import Check, Piece, Size
from playground.image_folder import CAPTIONS_FILE, list_images
from records import Dataset, Image

IMAGE_FOLDER = "flickr30k_images"
CAPTIONS_FILES = (CAPTIONS_FILE, "results.csv", "captions.txt", "results_20130124.token")
SPLIT_FILE = "dataset_flickr30k.json"
SPLITS = ("train", "val", "test")
# The 158,915th caption of "all" is line 20,001 of Kaggle's results.csv, which lacks a separator.
SIZES = {
    "all": Size(31_783, 158_915),
    "train": Size(29_000, 145_000),
    "val": Size(1_014, 5_070),
    "test": Size(1_000, 5_000),
}
DOWNLOAD = "bash playground/download_flickr30k.sh"
HOW_TO_GET = f"""Flickr30k: {DOWNLOAD}
or unpack https://www.kaggle.com/datasets/hsankesara/flickr-image-dataset into
  playground/data/flickr30k/flickr30k_images/        the pictures
  playground/data/flickr30k/results.csv              or images_captions.csv, or captions.txt
  playground/data/flickr30k/dataset_flickr30k.json   Karpathy's splits, for --split train, val and test
More: docs/datasets.md"""
_ADVICE = "see how to get it with: python -m playground.flickr30k"


def read(root: Path, split: str) -> Dataset:
    """Reads Flickr30k.

    Args:
        root: Holds `flickr30k_images/` and a captions file, the first there is of `CAPTIONS_FILES` and
            Karpathy's.
        split: "all", or one of Karpathy's: "train", "val", "test".

    Raises:
        FileNotFoundError: If the folder, or the file with captions or splits, is missing.
        ValueError: If the split is another, or the data is of no use.
    """
    if split not in ("all", *SPLITS):
        raise ValueError(f"flickr30k: got split {split!r}, expected one of all, {', '.join(SPLITS)}")
    folder = root / IMAGE_FOLDER
    if (folder / IMAGE_FOLDER).is_dir():  # as Kaggle's archive has it
        folder = folder / IMAGE_FOLDER
    images, skipped = list_images(folder, _ADVICE)
    captions = _all_captions(root, images) if split == "all" else _split_captions(root, images, split)
    return Dataset("flickr30k", folder, captions.images, captions.queries, skipped + captions.skipped)


def _all_captions(root: Path, images: tuple[Image, ...]) -> Captions:
    for folder in (root, root / IMAGE_FOLDER):
        for name in CAPTIONS_FILES:
            if (folder / name).exists():
                return read_captions(folder / name, images, _ADVICE)
    path = root / SPLIT_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{root}: no captions file, expected one of {', '.join((*CAPTIONS_FILES, SPLIT_FILE))}; {_ADVICE}"
        )
    lines = split_lines(split_images(path, _ADVICE), lambda image: image.name)
    return caption_images(path, lines, images, _ADVICE)


def _split_captions(root: Path, images: tuple[Image, ...], split: str) -> Captions:
    path = root / SPLIT_FILE
    wanted = [image for image in split_images(path, _ADVICE) if image.split == split]
    names = {image.name for image in wanted}
    there = [image for image in images if image.id in names]
    return caption_images(path, split_lines(wanted, lambda image: image.name), there, _ADVICE)


if __name__ == "__main__":
    PIECES = [
        Piece(f"{IMAGE_FOLDER}/", "the pictures"),
        *(Piece(name, "captions, one of these files is enough") for name in CAPTIONS_FILES),
        Piece(SPLIT_FILE, "Karpathy's captions and splits"),
    ]
    sys.exit(Check("flickr30k", read, HOW_TO_GET, PIECES, sizes=SIZES, download=DOWNLOAD).main())
