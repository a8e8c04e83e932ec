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

from files import file_sha256, replace_file, write_errors

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Shard:
    """Vectors of some images.

    Attributes:
        ids: Of n images, in order.
        vectors: (n, d) float32, rows of unit length; may be a memory-mapped file.
        broken: Ids of the images of the same part that gave no vector.
    """

    ids: Sequence[str]
    vectors: np.ndarray
    broken: Sequence[str] = ()


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

    def save(self, number: int, shard: Shard) -> Shard:
        """Keeps a shard, in place of an older one with this number.

        Returns:
            The same, with its vectors in the file and no longer in memory.
        """
        vectors, label = self._files(number)
        with write_errors(label):
            self.folder.mkdir(parents=True, exist_ok=True)
            label.unlink(missing_ok=True)

        def write_vectors(path: Path) -> None:
            with path.open("wb") as file:
                np.save(file, shard.vectors, allow_pickle=False)

        replace_file(vectors, write_vectors)
        values = {
            "fingerprint": self.fingerprint,
            "dimension": self.dimension,
            "images": list(shard.ids),
            "broken": list(shard.broken),
            "sha256": file_sha256(vectors),
        }
        replace_file(label, lambda path: path.write_text(json.dumps(values), encoding="utf-8"))
        return Shard(shard.ids, np.load(vectors, mmap_mode="r", allow_pickle=False), shard.broken)

    def load_all(self) -> dict[int, Shard]:
        """Returns the whole shards of this model, by number; says which are left out as damaged."""
        shards = {}
        for label in sorted(self.folder.glob("*.json")):
            try:
                values = json.loads(label.read_text(encoding="utf-8"))
                number, ids = int(label.stem), tuple(map(str, values["images"]))
                broken = tuple(map(str, values.get("broken", ())))  # earlier versions kept none
                made_by = (values["fingerprint"], values["dimension"])
                vectors, _ = self._files(number)
                whole = file_sha256(vectors) == values["sha256"]
            except (ValueError, KeyError, TypeError, OSError) as error:
                log.warning("%s: cannot be used, encoding its images again: %s", label, error)
                continue
            if made_by != (self.fingerprint, self.dimension):
                continue
            if not whole:
                log.warning("%s: damaged, encoding its images again", vectors)
                continue
            rows = np.load(vectors, mmap_mode="r", allow_pickle=False)
            if rows.shape == (len(ids), self.dimension) and rows.dtype == np.float32:
                shards[number] = Shard(ids, rows, broken)
        return shards

    def clear(self) -> None:
        """Removes all shards."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _files(self, number: int) -> tuple[Path, Path]:
        return self.folder / f"{number}.npy", self.folder / f"{number}.json"
