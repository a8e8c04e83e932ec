"""Flickr30k: 31,783 photographs with five captions each. Check it: ``python -m playground.flickr30k``.

Flickr8k, its smaller sibling, comes in nearly the same layouts, and is read too: name its folder with --root.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playground.captions import CAPTIONS_FILE, Line, caption_images, table_lines
from playground.captions_json import split_images, split_lines
from playground.check import Check, Size
from playground.image_folder import list_images
from records import Dataset

IMAGE_FOLDERS = ("flickr30k_images", "Images", "Flicker8k_Dataset")
CAPTIONS_FILES = (
    CAPTIONS_FILE, "results.csv", "captions.txt", "results_20130124.token", "Flickr8k.token.txt",
)  # fmt: skip
SPLIT_FILE = "dataset_flickr30k.json"
SPLIT_LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
# The 158,915th caption of "all" is line 20,001 of Kaggle's results.csv, which lacks a separator.
SIZES = {
    "all": (Size(31_783, 158_915, "Flickr30k"), Size(8_091, 40_455, "Flickr8k")),
    "train": (Size(29_000, 145_000, "Flickr30k's split"), Size(6_000, 30_000, "Flickr8k's split")),
    "val": (Size(1_014, 5_070, "Flickr30k's split"), Size(1_000, 5_000, "Flickr8k's split")),
    "test": (Size(1_000, 5_000),),
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
    """Reads Flickr30k, or Flickr8k.

    Args:
        root: Holds one of `IMAGE_FOLDERS`, and the first there is of `CAPTIONS_FILES` and Karpathy's file.
        split: "all"; or, with Karpathy's file or Flickr8k's `SPLIT_LISTS`, "train", "val" or "test".

    Raises:
        FileNotFoundError: If the folder, or the file with captions or splits, is missing.
        ValueError: If the split is another, or the data is of no use.
    """
    if split not in ("all", *SPLIT_LISTS):
        raise ValueError(f"flickr30k: got split {split!r}, expected one of all, {', '.join(SPLIT_LISTS)}")
    folder = next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), root / IMAGE_FOLDERS[0])
    if (folder / folder.name).is_dir():  # as archives have it
        folder = folder / folder.name
    images, skipped = list_images(folder, _ADVICE)
    path, lines = _captions_file(root, split)
    if split != "all":
        if path.name == SPLIT_FILE:
            names = {image.name for image in split_images(path, _ADVICE) if image.split == split}
        else:
            names = set((root / SPLIT_LISTS[split]).read_text(encoding="utf-8-sig").split())
            lines = [line for line in lines if line.image_name in names]
        images = tuple(image for image in images if image.id in names)
    captions = caption_images(path, lines, images, _ADVICE)
    return Dataset("flickr30k", folder, captions.images, captions.queries, skipped + captions.skipped)


def _captions_file(root: Path, split: str) -> tuple[Path, list[Line]]:
    """Finds the captions; Karpathy's where a split is asked for that Flickr8k's lists do not name."""
    places = (root, *(root / name for name in IMAGE_FOLDERS))
    tables = [place / name for place in places for name in CAPTIONS_FILES if (place / name).exists()]
    path = root / SPLIT_FILE
    if tables and (split == "all" or ((root / SPLIT_LISTS[split]).exists() and not path.exists())):
        return tables[0], list(table_lines(tables[0], _ADVICE))
    if split == "all" and not path.exists():
        raise FileNotFoundError(
            f"{root}: no captions file, expected one of {', '.join((*CAPTIONS_FILES, SPLIT_FILE))}; {_ADVICE}"
        )
    wanted = [image for image in split_images(path, _ADVICE) if split in ("all", image.split)]
    return path, list(split_lines(wanted, lambda image: image.name))


if __name__ == "__main__":
    PIECES = {
        f"{IMAGE_FOLDERS[0]}/": "the pictures",
        **dict.fromkeys(CAPTIONS_FILES, "captions, one of these files is enough"),
        SPLIT_FILE: "Karpathy's captions and splits",
    }
    sys.exit(Check("flickr30k", read, HOW_TO_GET, PIECES, sizes=SIZES, download=DOWNLOAD).main())
