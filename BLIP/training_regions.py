"""What stands where in the pictures: `regions.csv`, for an auxiliary loss on the patches.

Columns ``image_name,label,left,top,right,bottom``; the box in shares of the picture's width and height, from
the upper left corner. Object boxes of any detection dataset can be written so.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

COLUMNS = ("image_name", "label", "left", "top", "right", "bottom")
MIN_SHARE = 0.25  # of a patch, that a box must cover to name it


class PatchTargets:
    """Which label each patch shows: that of the box which covers most of it, or 0 for none.

    Attributes:
        labels: All labels; label n has class n + 1.
    """

    def __init__(self, path: Path, image_ids: Sequence[str]) -> None:
        """Reads the boxes of some images.

        Args:
            path: The file.
            image_ids: The images, in the order of the rows that are asked for; those without a box show none.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a column is missing, a line is malformed, or no box belongs to these images.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such regions file; leave --regions out to train without")
        row_of = {image_id: row for row, image_id in enumerate(image_ids)}
        names: dict[str, int] = {}
        rows, classes, boxes = [], [], []
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(f"{path}: misses {', '.join(missing)}, expected {', '.join(COLUMNS)}")
            for line in reader:
                if line["image_name"] not in row_of:
                    continue
                try:
                    box = [float(line[side]) for side in COLUMNS[2:]]
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{path}: line {reader.line_num}: {error}, expected numbers") from error
                rows.append(row_of[line["image_name"]])
                classes.append(names.setdefault(line["label"], len(names)) + 1)
                boxes.append(box)
        if not rows:
            raise ValueError(f"{path}: got no box for the {len(image_ids)} images, expected some")
        self.labels = tuple(names)
        order = np.argsort(rows, kind="stable")
        self._classes = np.array(classes)[order]
        self._boxes = np.array(boxes, dtype=np.float32)[order]
        self._starts = np.searchsorted(np.array(rows)[order], np.arange(len(image_ids) + 1))

    def rows(self, indices: Sequence[int], side: int) -> torch.Tensor:
        """Returns the classes of images' patches, line by line.

        Args:
            indices: Of the images.
            side: Patches along one side of a picture.

        Returns:
            (len(indices), side * side) int64.
        """
        return torch.from_numpy(np.stack([self._patches(index, side) for index in indices]))

    def _patches(self, index: int, side: int) -> np.ndarray:
        own = slice(self._starts[index], self._starts[index + 1])
        if own.start == own.stop:
            return np.zeros(side * side, dtype=np.int64)
        left, top, right, bottom = (self._boxes[own] * side).T[:, :, None]
        edges = np.arange(side)
        wide = (np.minimum(right, edges + 1) - np.maximum(left, edges)).clip(min=0)  # (boxes, columns)
        high = (np.minimum(bottom, edges + 1) - np.maximum(top, edges)).clip(min=0)  # (boxes, lines)
        cover = (high[:, :, None] * wide[:, None, :]).reshape(len(wide), -1)
        best = cover.argmax(axis=0)
        return np.where(cover.max(axis=0) >= MIN_SHARE, self._classes[own][best], 0).astype(np.int64)
