"""The demo dataset: scenes of OpenMoji pictures, drawn on first use; no download, no account.

Every image has five captions, from precise (comment number 0) to vague (4); every caption knows all images
that answer it.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

from playground.captions import captioned_dataset, table_lines
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
    path = folder / "images_captions.csv"
    lines = table_lines(path, redraw)
    dataset = captioned_dataset("demo", folder / "images", images, skipped, path, lines, redraw)
    if not (folder / "relevant.csv").is_file():  # a split to train on
        return dataset
    relevant: dict[str, set[str]] = {}
    with (folder / "relevant.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            query_id = f"{row['image_name']}#{row['comment_number']}"
            relevant.setdefault(query_id, set()).add(row["relevant_image"])
    queries = (
        replace(query, relevant=query.relevant.union(relevant.get(query.id, ()))) for query in dataset.queries
    )
    return replace(dataset, queries=tuple(queries))
