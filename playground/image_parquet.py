"""Pictures in Parquet files. Check them: ``python -m playground.image_parquet --root FOLDER``.

A column holds the pictures, as bytes or, as Hugging Face writes them, as {bytes, path}; another may hold
captions, one text or a list of texts a row. `scale.parquet_rows` says how the columns are found and named.
"""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath

from playground.captions import Line, caption_images
from playground.check import Check, Piece
from playground.image_tars import find_files
from records import Dataset, Image
from scale.parquet_rows import COLUMNS_FILE, open_rows
from scale.places import address_of, naming_place

HOW_TO_GET = """Put Parquet files there, at any depth, or name another folder, a file or a range of them with
--root, in quotes: --root 'data/train-{00000..00004}-of-00005.parquet'. Object stores, too"""
_ADVICE = "name a folder of Parquet files, a file, or a range in quotes with --root"


def read(root: Path, split: str) -> Dataset:
    """Reads Parquet files; of the pictures nothing yet.

    Args:
        root: A folder with Parquet files at any depth, a file, or a path with ranges such as {0..9}; here or
            in an object store.
        split: "all", or what the files' names begin with before a "-" or the ending, such as "train".

    Returns:
        Images with ids such as `train-00000-of-00001.parquet/17`, and a query for each caption.

    Raises:
        FileNotFoundError: If a file or the folder is missing.
        ModuleNotFoundError: If pyarrow is not installed.
        ValueError: If a file is damaged, its columns cannot be told, or there are no rows or no such split.
    """
    folder, files, skipped = find_files(root, ".parquet", _ADVICE)
    splits = {name: PurePosixPath(name).name.removesuffix(".parquet").split("-")[0] for name in files}
    if split != "all" and split not in splits.values():
        there = ", ".join(sorted(set(splits.values())))
        raise ValueError(f"image_parquet: got split {split!r}, expected all or one of {there}")
    images: list[Image] = []
    lines: list[Line] = []
    for name in files:
        if split not in ("all", splits[name]):
            continue
        with naming_place(folder / name):
            captions_of_rows = list(open_rows(folder / name).captions())
        for row, texts in enumerate(captions_of_rows):
            image_id = f"{name}/{row}"
            images.append(Image(image_id, folder / image_id))
            lines += [Line(f"row {row}", image_id, str(n), text) for n, text in enumerate(texts)]
    if not images:
        raise ValueError(
            f"{address_of(root)}: got no rows in {len(files)} Parquet files, expected some; {_ADVICE}"
        )
    if not lines:
        return Dataset("image_parquet", folder, tuple(images), (), tuple(skipped))
    captions = caption_images(root, lines, images, _ADVICE)
    return Dataset("image_parquet", folder, captions.images, captions.queries, (*skipped, *captions.skipped))


if __name__ == "__main__":
    pieces = [
        Piece(COLUMNS_FILE, 'names the columns where they cannot be told: {"image": ..., "caption": ...}')
    ]
    sys.exit(Check("image_parquet", read, HOW_TO_GET, pieces).main())
