"""MSCOCO: val2017 with 5,000 photographs, or Karpathy's splits. Check it: ``python -m playground.mscoco``.

Karpathy's splits name pictures of train2014 and val2014. The 2017 folders hold the same pictures under other
names and in another division; they are found there by COCO's number, as far as they are there.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from playground.captions import CAPTIONS_FILE, captioned_dataset, table_lines
from playground.captions_json import SplitImage, coco_lines, split_images, split_lines
from playground.check import Check
from playground.image_folder import list_images
from records import Dataset, Image, Skip

IMAGE_FOLDER = "val2017"
CAPTIONS_FILES = (CAPTIONS_FILE, "annotations/captions_val2017.json", "captions_val2017.json")
SPLIT_FILE = "dataset_coco.json"
SPLIT_FOLDERS = ("val2014", "train2014", "val2017", "train2017")
FOLD_SIZE = 1000
SPLITS = ("train", "restval", "val", "test", *(f"test-1k-{fold}" for fold in range(1, 6)))
SIZES = {
    "all": "5,000 images and 25,014 queries",
    **dict.fromkeys(("val", "test"), "5,000 images and 25,010 queries"),
}
DOWNLOAD = "bash playground/download_mscoco.sh"
HOW_TO_GET = f"""MSCOCO: {DOWNLOAD}
or unpack val2017.zip and annotations_trainval2017.zip (https://cocodataset.org/#download) into
  playground/data/mscoco/val2017/                            the pictures
  playground/data/mscoco/annotations/captions_val2017.json   or images_captions.csv
and for Karpathy's splits (--split test is his 5k, test-1k-1 to test-1k-5 are its folds)
  playground/data/mscoco/dataset_coco.json
  playground/data/mscoco/val2014/, train2014/                the pictures
More: docs/datasets.md"""
_ADVICE = "see how to get it with: python -m playground.mscoco"
_NUMBERED = re.compile(r"(?:COCO_\w+_)?(\d{1,12})\.jpg")


def read(root: Path, split: str) -> Dataset:
    """Reads MSCOCO.

    Args:
        root: Holds `val2017/` and a captions file, the first there is of `CAPTIONS_FILES`; for Karpathy's
            splits `dataset_coco.json` and one or more of `SPLIT_FOLDERS`.
        split: "all" is val2017; Karpathy's `SPLITS`: "test" has 5,000 images, "test-1k-1" to "test-1k-5" are
            those in the file's order, 1,000 at a time.

    Raises:
        FileNotFoundError: If a folder, or the file with captions or splits, is missing.
        ValueError: If the split is another, or the data is of no use.
    """
    if split == "all":
        return _read_val2017(root)
    if split not in SPLITS:
        raise ValueError(f"mscoco: got split {split!r}, expected one of all, {', '.join(SPLITS)}")
    path = root / SPLIT_FILE
    wanted = [image for image in split_images(path, _ADVICE) if image.split == split.partition("-")[0]]
    if split.startswith("test-1k-"):
        fold = int(split.rpartition("-")[2])
        wanted = wanted[FOLD_SIZE * (fold - 1) : FOLD_SIZE * fold]
    by_number, skipped = _numbered_images(root)
    found = (by_number[image.coco_id] for image in wanted if image.coco_id in by_number)
    images = tuple(dict.fromkeys(found))  # a damaged file may list one twice

    def id_of(image: SplitImage) -> str:
        there = by_number.get(image.coco_id)
        return there.id if there else image.name

    return captioned_dataset("mscoco", root, images, skipped, path, split_lines(wanted, id_of), _ADVICE)


def _read_val2017(root: Path) -> Dataset:
    folder = root / IMAGE_FOLDER
    images, skipped = list_images(folder, _ADVICE)
    path = next((root / name for name in CAPTIONS_FILES if (root / name).exists()), None)
    if path is None:
        raise FileNotFoundError(
            f"{root}: no captions file, expected one of {', '.join(CAPTIONS_FILES)}; {_ADVICE}"
        )
    lines = (coco_lines if path.suffix == ".json" else table_lines)(path, _ADVICE)
    return captioned_dataset("mscoco", folder, images, skipped, path, lines, _ADVICE)


def _numbered_images(root: Path) -> tuple[dict[int | None, Image], tuple[Skip, ...]]:
    """Finds pictures by COCO's number in all folders there are; the first folder that has it counts."""
    folders = [name for name in SPLIT_FOLDERS if (root / name).is_dir()]
    if not folders:
        raise FileNotFoundError(
            f"{root}: no image folder, expected one of {', '.join(SPLIT_FOLDERS)}; {_ADVICE}"
        )
    images: dict[int | None, Image] = {}
    skipped: tuple[Skip, ...] = ()
    for name in folders:
        found, left_out = list_images(root / name, _ADVICE)
        skipped += left_out
        for image in found:
            match = _NUMBERED.fullmatch(image.id)
            if match:
                images.setdefault(int(match[1]), Image(f"{name}/{image.id}", image.path))
    return images, skipped


if __name__ == "__main__":
    PIECES = {
        **{f"{name}/": "pictures" for name in SPLIT_FOLDERS},
        **dict.fromkeys(CAPTIONS_FILES, "captions of val2017, one of these files is enough"),
        SPLIT_FILE: "Karpathy's captions and splits",
    }
    sys.exit(Check("mscoco", read, HOW_TO_GET, PIECES, SIZES, DOWNLOAD).main())
