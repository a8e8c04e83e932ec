"""Finished parts of a build, kept until the index is whole, so that a killed build continues.

Part 3 is `3.npy`, its vectors, and `3.json`, written last, which says what they are of.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indexes.manifest import file_sha256
from indexes.replace_file import replace_file
from records import Image, Skip

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Shard:
    """The embedding of some images.

    Attributes:
        ids: Of the n images that could be read, in order.
        vectors: (n, d) float32, rows of unit length.
        skipped: The others.
    """

    ids: tuple[str, ...]
    vectors: np.ndarray
    skipped: tuple[Skip, ...]


@dataclass(frozen=True)
class ShardStore:
    """A folder of shards made with one model.

    Attributes:
        folder: Created with the first shard.
        fingerprint: Of the model.
        dimension: Of its vectors.
    """

    folder: Path
    fingerprint: str
    dimension: int

    def save(self, number: int, images: Sequence[Image], shard: Shard) -> None:
        """Keeps the shard of `images`; replaces an older one with this number."""
        self.folder.mkdir(parents=True, exist_ok=True)
        vectors, label = self.folder / f"{number}.npy", self.folder / f"{number}.json"
        label.unlink(missing_ok=True)

        def write_vectors(path: Path) -> None:
            with path.open("wb") as file:
                np.save(file, shard.vectors, allow_pickle=False)

        replace_file(vectors, write_vectors)
        skipped = [[skip.what, skip.why] for skip in shard.skipped]
        values = self._expected(images) | {"skipped": skipped, "sha256": file_sha256(vectors)}
        replace_file(label, lambda path: path.write_text(json.dumps(values), encoding="utf-8"))

    def load(self, number: int, images: Sequence[Image]) -> Shard | None:
        """Returns the shard with this number if it is whole, of this model and of these images; else None."""
        vectors, label = self.folder / f"{number}.npy", self.folder / f"{number}.json"
        if not label.is_file() or not vectors.is_file():
            return None
        try:
            values = json.loads(label.read_text(encoding="utf-8"))
        except ValueError as error:
            log.warning("%s: unreadable, encoding its images again: %s", label, error)
            return None
        expected = self._expected(images)
        if {key: values.get(key) for key in expected} != expected or file_sha256(vectors) != values["sha256"]:
            return None
        skipped = tuple(Skip(what, why) for what, why in values["skipped"])
        left_out = {skip.what for skip in skipped}
        ids = tuple(image.id for image in images if image.id not in left_out)
        return Shard(ids, np.load(vectors, allow_pickle=False), skipped)

    def clear(self) -> None:
        """Removes all shards."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _expected(self, images: Sequence[Image]) -> dict[str, object]:
        return {
            "fingerprint": self.fingerprint,
            "dimension": self.dimension,
            "images": [image.id for image in images],
        }
