"""Flickr30k: 31,783 photographs with five captions each. Check it: ``python -m playground.flickr30k``.

Flickr8k, its smaller sibling, comes in nearly the same layouts, and is read too: name its folder with --root.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playground.captions import CAPTIONS_FILE, captioned_dataset, table_lines
from playground.captions_json import split_images, split_lines
from playground.check import Check
from playground.image_folder import list_images
from records import Dataset

IMAGE_FOLDERS = ("flickr30k_images", "Images", "Flicker8k_Dataset")
CAPTIONS_FILES = (
    CAPTIONS_FILE, "results.csv", "captions.txt", "results_20130124.token", "Flickr8k.token.txt",
)  # fmt: skip
SPLIT_FILES = ("dataset_flickr30k.json", "dataset_flickr8k.json")
LISTS = {  # Flickr8k's own splits: names of pictures, one a line
    "train": "Flickr_8k.trainImages.txt",
    "dev": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
SPLITS = (*LISTS, "val")  # Karpathy calls the middle one "val"; either name is understood
# The 158,915th caption of "all" is line 20,001 of Kaggle's results.csv, which lacks a separator.
SIZES = {
    "all": "31,783 images and 158,915 queries, Flickr8k 8,091 and 40,455",
    "train": "29,000 images and 145,000 queries, Flickr8k's 6,000 and 30,000",
    **dict.fromkeys(("dev", "val"), "1,014 images and 5,070 queries, Flickr8k's 1,000 and 5,000"),
    "test": "1,000 images and 5,000 queries",
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
        root: Holds one of `IMAGE_FOLDERS`, and the first there is of `CAPTIONS_FILES` or Karpathy's file.
        split: "all"; or one of `SPLITS`, with Karpathy's file or, beside a table of captions, Flickr8k's
            `LISTS`.

    Raises:
        FileNotFoundError: If the folder, or the file with captions or splits, is missing.
        ValueError: If the split is another, the data is of no use, or "all" pictures are asked for with
            Karpathy's file alone and it describes only some of them.
    """
    if split not in ("all", *SPLITS):
        raise ValueError(f"flickr30k: got split {split!r}, expected one of all, {', '.join(SPLITS)}")
    folder = next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), root / IMAGE_FOLDERS[0])
    if (folder / folder.name).is_dir():  # as archives have it
        folder = folder / folder.name
    images, skipped = list_images(folder, _ADVICE)
    places = (root, *(root / name for name in IMAGE_FOLDERS))
    tables = [place / name for place in places for name in CAPTIONS_FILES if (place / name).exists()]
    path = next((root / name for name in SPLIT_FILES if (root / name).exists()), None)
    names = None
    if split == "all" and tables:
        path, lines = tables[0], table_lines(tables[0], _ADVICE)
    elif path is not None:
        karpathys = "val" if split == "dev" else split
        wanted = [image for image in split_images(path, _ADVICE) if karpathys in ("all", image.split)]
        lines = split_lines(wanted, lambda image: image.name)
        names = None if split == "all" else {image.name for image in wanted}
    elif split == "all":
        expected = ", ".join((*CAPTIONS_FILES, SPLIT_FILES[0]))
        raise FileNotFoundError(f"{root}: no captions file, expected one of {expected}; {_ADVICE}")
    else:
        listed = LISTS["dev" if split == "val" else split]
        if not tables or not tables[0].with_name(listed).is_file():
            expected = " or ".join((*SPLIT_FILES, f"{listed} beside a captions file"))
            raise FileNotFoundError(f"{root}: no file of the split {split!r}, expected {expected}; {_ADVICE}")
        path = tables[0]
        names = set(path.with_name(listed).read_text(encoding="utf-8-sig", errors="replace").split())
        lines = (line for line in table_lines(path, _ADVICE) if line.image_name in names)
    if names is not None:
        images = tuple(image for image in images if image.id in names)
    dataset = captioned_dataset("flickr30k", folder, images, skipped, path, lines, _ADVICE)
    bare = [image.id for image in dataset.images if not image.captions]
    if bare and split == "all" and not tables:  # before hours of embedding that no experiment can use
        raise ValueError(
            f"{path}: got no caption for {len(bare)} of {len(dataset.images)} pictures (first {bare[0]}), "
            f"expected at least one each; choose --split train, val or test, or add {CAPTIONS_FILES[1]}"
        )
    return dataset


if __name__ == "__main__":
    PIECES = {
        f"{IMAGE_FOLDERS[0]}/": "the pictures",
        **dict.fromkeys(CAPTIONS_FILES, "captions, one of these files is enough"),
        SPLIT_FILES[0]: "Karpathy's captions and splits",
    }
    sys.exit(Check("flickr30k", read, HOW_TO_GET, PIECES, SIZES, DOWNLOAD).main())
