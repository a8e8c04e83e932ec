"""Vectors of the system's captions, row by row beside an index's picture vectors.

`caption_vectors.npy` holds them, `captions.json` says of which index, captioner and sentence encoder, and how
feedback is calibrated on them. Only embedding writes both; whoever opens them refuses those of another index.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from files import file_sha256, own_sha256, read_json, replace_file, settings_that_differ, write_json
from index.folder import IDS_FILE, VECTORS_FILE, Manifest

CAPTION_VECTORS_FILE = "caption_vectors.npy"
CAPTIONS_FILE = "captions.json"


@dataclass(frozen=True, eq=False)
class CaptionVectors:
    """What is known of the captions of an index's images.

    Attributes:
        vectors: (n, e) float32, rows of unit length in the order of the index; zeros where a picture has no
            caption.
        captioner: The model that wrote the captions.
        sentence_encoder: The model that encoded them.
        captions_sha256: Of all captions, in order.
        calibration: How feedback is read with them, see `feedback.calibration`.
        calibrated_on: Whose captions it was fitted to.
    """

    vectors: np.ndarray
    captioner: str
    sentence_encoder: str
    captions_sha256: str
    calibration: Mapping[str, float]
    calibrated_on: str


def write_caption_vectors(folder: Path, captions: CaptionVectors) -> None:
    """Writes them beside an index that is there; a kill leaves the old ones, or none."""
    described = dataclasses.asdict(dataclasses.replace(captions, vectors=np.empty(0)))
    del described["vectors"]
    (folder / CAPTIONS_FILE).unlink(missing_ok=True)  # first: without it the vectors are nothing
    replace_file(folder / CAPTION_VECTORS_FILE, lambda path: _save(path, captions.vectors))
    described["index_sha256"] = _index_sha256(folder)
    described["vectors_sha256"] = file_sha256(folder / CAPTION_VECTORS_FILE)
    write_json(folder / CAPTIONS_FILE, described | {"own_sha256": own_sha256(described)})


def open_caption_vectors(
    folder: Path, captioner: str | None = None, sentence_encoder: str | None = None
) -> CaptionVectors:
    """Opens them, the vectors mapped into memory.

    Args:
        folder: Of the index.
        captioner: The model that must have written the captions; any when None.
        sentence_encoder: The model that must have encoded them; any when None.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If they are damaged, or of another index, captioner or sentence encoder.
    """
    path = folder / CAPTIONS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: the index has no vectors of captions; make them")
    described = read_json(path)
    if described.get("own_sha256") != own_sha256(described):
        raise ValueError(f"{path}: damaged, or of an earlier version; make them anew")
    given = {"captioner": captioner, "sentence_encoder": sentence_encoder}
    expected = {"index_sha256": _index_sha256(folder)} | {name: one for name, one in given.items() if one}
    if differing := settings_that_differ(described, expected):
        raise ValueError(f"{path}: of another index or other models: {differing}; make them anew")
    if file_sha256(folder / CAPTION_VECTORS_FILE) != described["vectors_sha256"]:
        raise ValueError(f"{folder / CAPTION_VECTORS_FILE}: damaged; make them anew")
    vectors = np.load(folder / CAPTION_VECTORS_FILE, mmap_mode="r")
    names = [field.name for field in dataclasses.fields(CaptionVectors) if field.name != "vectors"]
    return CaptionVectors(vectors, **{name: described[name] for name in names})


def _index_sha256(folder: Path) -> str:
    hashes = Manifest.read(folder).sha256
    return f"{hashes[VECTORS_FILE]} {hashes[IDS_FILE]}"


def _save(path: Path, vectors: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, np.ascontiguousarray(vectors, dtype=np.float32))
