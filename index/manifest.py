"""What an index folder says about itself: `manifest.json`, written last, so its presence means complete."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from files import file_sha256, replace_file

FORMAT_VERSION = 2
MANIFEST_FILE = "manifest.json"
VECTORS_FILE = "vectors.faiss"
IDS_FILE = "ids.json"
APPROXIMATE_FILE = "approximate.faiss"  # of all kinds but "flat"
REBUILD = "build the index with: python embed_image_as_faiss.py"


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`.

    Attributes:
        format_version: Of the folder's layout.
        dataset: Name of the dataset.
        image_folder: Where the images lay when the index was built.
        model_name: Of the model that made the vectors, for people.
        model_fingerprint: Of the same model, for comparing.
        dimension: Width of a vector.
        count: Number of vectors and of ids.
        kind: Of the index: "flat", "hnsw", "ivf" or "ivfpq".
        effort: Of a search in an approximate index; 0 for a flat one.
        recall_at_10: Share of the truly 10 best that a search listed when the index was built.
        sha256: Checksum of each other file of the index, by file name.
    """

    format_version: int
    dataset: str
    image_folder: str
    model_name: str
    model_fingerprint: str
    dimension: int
    count: int
    kind: str
    effort: int
    recall_at_10: float
    sha256: dict[str, str]

    def write(self, folder: Path) -> None:
        """Writes `manifest.json` into the folder, atomically."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"
        replace_file(folder / MANIFEST_FILE, lambda path: path.write_text(text, encoding="utf-8"))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads `manifest.json`.

        Raises:
            FileNotFoundError: If the folder or the file is missing.
            ValueError: If the file is not a manifest, or one of another version.
        """
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such index folder; {REBUILD}")
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder}: incomplete index: {MANIFEST_FILE}, which is written last, is missing; {REBUILD}"
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not JSON ({error}); {REBUILD}") from error
        version = values.get("format_version") if isinstance(values, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(f"{path}: got format version {version!r}, expected {FORMAT_VERSION}; {REBUILD}")
        _check_fields(path, values)
        return cls(**values)

    def verify_files(self, folder: Path) -> None:
        """Compares the folder's files with their checksums.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file's content differs from the one written.
        """
        for name, expected in self.sha256.items():
            path = folder / name
            if not path.is_file():
                raise FileNotFoundError(f"{path}: missing, though {MANIFEST_FILE} lists it; {REBUILD}")
            got = file_sha256(path)
            if got != expected:
                raise ValueError(
                    f"{path}: damaged: got sha256 {got[:12]}..., expected {expected[:12]}...; {REBUILD}"
                )


def _check_fields(path: Path, values: dict[str, object]) -> None:
    kinds = {"int": int, "float": float, "str": str, "dict[str, str]": dict}
    expected = {field.name: kinds[str(field.type)] for field in dataclasses.fields(Manifest)}
    if set(values) != set(expected):
        differing = ", ".join(sorted(set(values) ^ set(expected)))
        raise ValueError(f"{path}: missing or unknown fields: {differing}; {REBUILD}")
    for name, kind in expected.items():
        if not isinstance(values[name], kind):
            raise ValueError(f"{path}: {name}: got {values[name]!r}, expected {kind.__name__}; {REBUILD}")
    if values["kind"] not in ("flat", "hnsw", "ivf", "ivfpq"):
        raise ValueError(
            f"{path}: kind: got {values['kind']!r}, expected flat, hnsw, ivf or ivfpq; {REBUILD}"
        )
    files = [VECTORS_FILE, IDS_FILE, *([] if values["kind"] == "flat" else [APPROXIMATE_FILE])]
    listed = values["sha256"]
    if not isinstance(listed, dict) or set(listed) != set(files):
        raise ValueError(f"{path}: sha256: got {listed!r}, expected one of {' and '.join(files)}; {REBUILD}")
