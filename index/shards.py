"""Finished parts of a build, kept until the index is whole, so that a killed build continues.

Part 3 is `3.npy`, its vectors, and `3.json`, written last, which says what they are of.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from files import file_sha256, make_folder, parse_json, replace_file, write_errors, write_json
from index.file_states import FileStates

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Shard:
    """Vectors of some images.

    Attributes:
        ids: Of n images, in order.
        vectors: (n, d) float32, rows of unit length; may be a memory-mapped file.
        broken: Ids of the images of the same part that gave no vector.
        sizes: Of each image's file when it was embedded, as `FileStates.now` tells; may be empty.
    """

    ids: Sequence[str]
    vectors: np.ndarray
    broken: Sequence[str] = ()
    sizes: Sequence[str | int | None] = ()

    def current(self, states: FileStates) -> Iterator[tuple[int, str]]:
        """Yields row and id of the images whose files are still the same, as far as is known."""
        for row, image_id in enumerate(self.ids):
            if states.unchanged(image_id, self.sizes[row] if self.sizes else None):
                yield row, image_id


@dataclass(frozen=True)
class ShardStore:
    """A folder of shards made with one model, created with the first shard."""

    folder: Path
    fingerprint: str
    dimension: int

    def save(self, number: int, shard: Shard) -> Shard:
        """Keeps a shard, in place of an older one; returns the same with its vectors mapped from the file."""
        vectors, label = self._files(number)
        make_folder(self.folder)
        with write_errors(label):
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
            "sizes": list(shard.sizes),
        }
        write_json(label, values | {"sha256": _checksum(vectors, values)})
        return _mapped(vectors, values)

    def load_all(self) -> dict[int, Shard]:
        """Returns the whole shards of this model, by number; logs which are left out as damaged."""
        shards = {}
        for label in sorted(self.folder.glob("*.json")):
            try:
                number, values = int(label.stem), parse_json(label.read_bytes())
                vectors, _ = self._files(number)
                if values.pop("sha256") != _checksum(vectors, values):
                    raise ValueError("damaged")
                if (values["fingerprint"], values["dimension"]) == (self.fingerprint, self.dimension):
                    shards[number] = _mapped(vectors, values)
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                log.warning("%s: cannot be used, encoding its images again: %s", label, error)
        return shards

    def clear(self) -> None:
        """Removes all shards."""
        with write_errors(self.folder):
            if self.folder.exists():
                shutil.rmtree(self.folder)  # which refuses a link

    def _files(self, number: int) -> tuple[Path, Path]:
        return self.folder / f"{number}.npy", self.folder / f"{number}.json"


def _mapped(vectors: Path, label: Mapping[str, Any]) -> Shard:
    rows = np.load(vectors, mmap_mode="r", allow_pickle=False)
    return Shard(label["images"], rows, label["broken"], label["sizes"])


def _checksum(vectors: Path, label: Mapping[str, Any]) -> str:
    """Covers the vectors and what the label says: no vector goes to another image unnoticed."""
    return hashlib.sha256(f"{file_sha256(vectors)} {json.dumps(label, sort_keys=True)}".encode()).hexdigest()
