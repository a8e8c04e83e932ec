"""MSCOCO val2017: 5,000 photographs with five captions each. Check it: ``python -m playground.mscoco``.

The captions come as JSON; the first check turns them into `images_captions.csv`.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from pathlib import Path

from playground import DATA_FOLDER
from playground.image_folder import CAPTIONS_FILE, check_command, read_folder
from records import Dataset

ANNOTATIONS_FILE = "captions_val2017.json"
HOW_TO_GET = """MSCOCO: unpack val2017.zip and annotations_trainval2017.zip (https://cocodataset.org/#download)
  playground/data/mscoco/val2017/                    the pictures
  playground/data/mscoco/captions_val2017.json       from annotations/; read once
  playground/data/mscoco/images_captions.csv         made from it by this command, if missing
Step by step: playground/data/mscoco/README.md"""


def read(root: Path, split: str) -> Dataset:
    """Reads MSCOCO val2017.

    Args:
        root: Holds `val2017/` and `images_captions.csv`.
        split: "all".

    Raises:
        FileNotFoundError: If the folder or the captions file is missing.
        ValueError: If the split is another, or the data is of no use.
    """
    advice = "see how to get it with: python -m playground.mscoco"
    folder, captions = root / "val2017", root / CAPTIONS_FILE
    return read_folder("mscoco", folder, captions, split, advice, captions_required=True)


def convert_annotations(annotations: Path, captions_file: Path) -> int:
    """Turns COCO's captions into a captions file; an image's comments are numbered from 0 in COCO's order.

    Args:
        annotations: `captions_val2017.json`.
        captions_file: The CSV file to write.

    Returns:
        How many captions were written.

    Raises:
        ValueError: If the annotations are not COCO's captions.
    """
    try:
        values = json.loads(annotations.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in values["images"]}
        captions = [
            (names[entry["image_id"]], " ".join(entry["caption"].split())) for entry in values["annotations"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{annotations}: got {type(error).__name__}: {error}, expected COCO's captions: an object with "
            "images (id, file_name) and annotations (image_id, caption); download the file again"
        ) from error
    numbers: Counter[str] = Counter()
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["image_name", "comment_number", "comment"])
    for name, caption in captions:
        writer.writerow([name, numbers[name], caption])
        numbers[name] += 1
    temporary = captions_file.with_name(captions_file.name + ".building")
    temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
    temporary.replace(captions_file)
    return len(captions)


def _convert_and_read(root: Path, split: str) -> Dataset:
    if (root / ANNOTATIONS_FILE).is_file() and not (root / CAPTIONS_FILE).exists():
        convert_annotations(root / ANNOTATIONS_FILE, root / CAPTIONS_FILE)
    return read(root, split)


if __name__ == "__main__":
    sys.exit(check_command("mscoco", DATA_FOLDER / "mscoco", HOW_TO_GET, _convert_and_read))
