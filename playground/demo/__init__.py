"""The demo dataset: scenes of OpenMoji pictures, drawn on first use; no download, no account.

Every image has five captions, from precise (comment number 0) to vague (4); every caption knows all images
that answer it.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

from playground.captions import read_captions
from playground.demo.generate import ensure_split
from playground.image_folder import list_images
from records import Dataset


def read(root: Path, split: str) -> Dataset:
    """Reads a split of the demo scenes; draws it first if it is not there.

    Args:
        root: The dataset's folder, ``playground/data/demo``.
        split: One of `generate.SPLITS`.

    Returns:
        Images with captions; one query a caption, its target the captioned image, with all relevant images.

    Raises:
        ValueError: If the split is not known, or a file of it is damaged.
        ModuleNotFoundError: If the demo packages are missing.
    """
    folder = ensure_split(root, split)
    redraw = f"remove {folder} to have it drawn again"
    images, skipped = list_images(folder / "images", redraw)
    captions = read_captions(folder / "images_captions.csv", images, redraw)
    queries = captions.queries
    relevant_path = folder / "relevant.csv"
    if relevant_path.is_file():
        relevant: dict[str, set[str]] = {}
        with relevant_path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                query_id = f"{row['image_name']}#{row['comment_number']}"
                relevant.setdefault(query_id, set()).add(row["relevant_image"])
        queries = tuple(
            replace(query, relevant=query.relevant | frozenset(relevant.get(query.id, ())))
            for query in queries
        )
    return Dataset("demo", folder / "images", captions.images, queries, skipped + captions.skipped)
