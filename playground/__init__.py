"""The datasets: one reader per module, its pictures in `playground/data/<name>`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import get_args

from records import Dataset
from settings import DATA_FOLDER, DatasetName

DATASETS: tuple[str, ...] = get_args(DatasetName)


def open_dataset(name: str, root: Path | None, split: str) -> Dataset:
    """Reads a dataset.

    Args:
        name: One of `DATASETS`.
        root: The dataset's folder; `playground/data/<name>` when None.
        split: Such as "test"; "all" for a dataset without splits.

    Returns:
        Its images and queries, and what was left out.

    Raises:
        FileNotFoundError: If the data is not there.
        ValueError: If the name or the split is unknown, or the data is not as expected.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset: got {name!r}, expected one of {', '.join(DATASETS)}")
    reader = importlib.import_module(f"playground.{name}")
    return reader.read(DATA_FOLDER / name if root is None else Path(root), split)
