"""The index folder: what is in it, how it is written so that a kill cannot spoil it, how it is checked.

`vectors.faiss`, `ids.json`, of an approximate index `approximate.faiss`, and `manifest.json`, whose presence
means that the folder is whole; see docs/formats.md.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from files import file_sha256, own_sha256, replace_file, write_errors, write_json
from index.approximate import build_approximate, choose_kind
from index.scores import REBUILD
from settings import IndexKind

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
MANIFEST_FILE = "manifest.json"
VECTORS_FILE = "vectors.faiss"
IDS_FILE = "ids.json"
APPROXIMATE_FILE = "approximate.faiss"  # of all kinds but "flat"
SIZES_FILE = "sizes.json"  # where they are known
NEW = ".new"  # ends the names of the files that are to take the old ones' places


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`; docs/formats.md says what each field means."""

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

    @classmethod
    def read(cls, folder: Path, name: str = MANIFEST_FILE) -> Manifest:
        """Reads `manifest.json`, or one of another name.

        Raises FileNotFoundError if it is missing; ValueError if it is no manifest, or of another version.
        """
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such index folder; {REBUILD}")
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder}: incomplete index: {name}, which is written last, is missing; {REBUILD}"
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not JSON ({error}); {REBUILD}") from error
        version = values.get("format_version") if isinstance(values, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(f"{path}: got format version {version!r}, expected {FORMAT_VERSION}; {REBUILD}")
        if values.pop("own_sha256", None) not in (None, own := own_sha256(values)):
            raise ValueError(f"{path}: damaged: expected sha256 {own[:12]}... of its fields; {REBUILD}")
        if reason := _misfit(values):
            raise ValueError(f"{path}: {reason}; {REBUILD}")
        return cls(**values)

    def verify_files(self, folder: Path) -> None:
        """Compares checksums: FileNotFoundError or ValueError if a file is not as it was written."""
        for name, expected in self.sha256.items():
            path = folder / name
            if not path.is_file():
                raise FileNotFoundError(f"{path}: missing, though {MANIFEST_FILE} lists it; {REBUILD}")
            got = file_sha256(path)
            if got != expected:
                raise ValueError(
                    f"{path}: damaged: got sha256 {got[:12]}..., expected {expected[:12]}...; {REBUILD}"
                )


def write_folder(
    folder: Path,
    ids: Sequence[str],
    blocks: Iterable[np.ndarray],
    *,
    dimension: int,
    model_name: str,
    model_fingerprint: str,
    dataset: str,
    image_folder: Path,
    kind: IndexKind = "auto",
    sizes: Sequence[str | int | None] = (),
) -> Manifest:
    """Writes an index in the memory of one block.

    A kill leaves the folder's old index whole, or a folder without manifest whose new files are all there:
    `finish_swap` then puts them in place. Other arguments are those of the `Manifest`.

    - folder: Created if missing; an index in it is replaced.
    - ids: n image ids, each once; none are a ValueError.
    - blocks: Their vectors, in order, each block (m, dimension) float32 from `unit_rows`.
    - kind: "auto" picks one by the number of vectors and the memory.
    - sizes: Of each picture's file, as `FileStates.now` tells; empty when nothing is known.
    """
    if not ids:
        raise ValueError(f"{folder}: got an empty index to save, expected at least one image")
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / (MANIFEST_FILE + NEW)).unlink(missing_ok=True)  # first: without it the others are nothing
        for left_by_a_kill in (*folder.glob("*" + NEW), *folder.glob("*.building")):
            left_by_a_kill.unlink()
    new = {name: folder / (name + NEW) for name in (VECTORS_FILE, IDS_FILE)}
    replace_file(new[VECTORS_FILE], lambda path: write_vectors(path, blocks, len(ids), dimension))
    replace_file(new[IDS_FILE], lambda path: _write_list(path, ids))
    if sizes:
        new[SIZES_FILE] = folder / (SIZES_FILE + NEW)
        replace_file(new[SIZES_FILE], lambda path: _write_list(path, sizes))
    chosen = choose_kind(len(ids), dimension) if kind == "auto" else kind
    effort, recall = 0, 1.0
    if chosen != "flat":
        vectors = open_vectors(new[VECTORS_FILE], len(ids), dimension)
        approximate = build_approximate(vectors, chosen)
        effort, recall = approximate.effort, approximate.recall
        new[APPROXIMATE_FILE] = folder / (APPROXIMATE_FILE + NEW)
        replace_file(new[APPROXIMATE_FILE], approximate.write)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        dataset=dataset,
        image_folder=image_folder.as_posix(),
        model_name=model_name,
        model_fingerprint=model_fingerprint,
        dimension=dimension,
        count=len(ids),
        kind=chosen,
        effort=effort,
        recall_at_10=recall,
        sha256={name: file_sha256(path) for name, path in new.items()},
    )
    values = dataclasses.asdict(manifest)
    write_json(folder / (MANIFEST_FILE + NEW), values | {"own_sha256": own_sha256(values)})
    finish_swap(folder)
    return manifest


def is_half_swapped(folder: Path) -> bool:
    """Tells whether a kill left a new index that is not yet in its place: `finish_swap` puts it there."""
    return (folder / (MANIFEST_FILE + NEW)).exists()


def finish_swap(folder: Path) -> None:
    """Puts a new index in the place of the old one, also where a kill stopped this midway.

    The new manifest is written when all else is. It is moved last, and the old one removed first: in between
    there is no index to be opened. One that is damaged is removed: the parts of its build are still there.
    """
    new_manifest = folder / (MANIFEST_FILE + NEW)
    with write_errors(folder):
        try:
            names = Manifest.read(folder, new_manifest.name).sha256
        except ValueError as error:
            log.warning("removed: %s", error)
            new_manifest.unlink()
            return
        (folder / MANIFEST_FILE).unlink(missing_ok=True)
        for name in names:
            if (path := folder / (name + NEW)).exists():
                path.replace(folder / name)
        for name in {APPROXIMATE_FILE, SIZES_FILE} - set(names):
            (folder / name).unlink(missing_ok=True)
        new_manifest.replace(folder / MANIFEST_FILE)


def read_sizes(folder: Path, count: int) -> list[str | int | None]:
    """Reads `sizes.json` of an index that has been opened; empty if there is none."""
    return read_list(folder / SIZES_FILE, count) if SIZES_FILE in Manifest.read(folder).sha256 else []


def write_vectors(path: Path, blocks: Iterable[np.ndarray], count: int, dimension: int) -> None:
    """Writes a file that `open_vectors` and `faiss.read_index` open, of `count` rows (else ValueError)."""
    written = 0
    with path.open("wb") as file:
        file.write(_header(count, dimension))
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype="<f4").data)
            written += len(block)
    if written != count:
        raise ValueError(f"{path}: got {count} ids for {written} vectors, expected as many")


def open_vectors(path: Path, count: int, dimension: int) -> np.ndarray:
    """Maps a file of vectors, as `faiss.write_index` writes an IndexFlatIP, into memory, read-only.

    Returns:
        (count, dimension) float32; not aligned, since FAISS's header has 45 bytes. ValueError if the file is
        of another kind or size.
    """
    expected = _header(count, dimension)
    with path.open("rb") as file:
        header = file.read(len(expected))
    size = len(expected) + 4 * count * dimension
    if header != expected or path.stat().st_size != size:
        raise ValueError(
            f"{path}: got {path.stat().st_size} bytes that begin with {header[:4]!r}, expected {size} bytes, "
            f"FAISS's IndexFlatIP of {count} vectors of dimension {dimension}; {REBUILD}"
        )
    return np.asarray(np.memmap(path, "<f4", "r", len(expected), (count, dimension)))


def read_list(path: Path, count: int) -> list[Any]:
    """Reads `ids.json` or `sizes.json`, whose content the checksums have proved, of `count` entries."""
    values = json.loads(path.read_text(encoding="utf-8"))
    if len(values) != count:
        raise ValueError(f"{path}: got {len(values)} entries, expected {count}; {REBUILD}")
    return values


def _header(count: int, dimension: int) -> bytes:
    """Returns the head of FAISS's file of an IndexFlatIP.

    `faiss.write_index` would need all vectors in memory. So FAISS writes an empty index, and the two numbers
    that depend on the vectors are filled in: how many there are, and how many floats follow.
    """
    header = bytearray(faiss.serialize_index(faiss.IndexFlatIP(dimension)).tobytes())
    header[8:16] = count.to_bytes(8, "little")
    header[-8:] = (count * dimension).to_bytes(8, "little")
    return bytes(header)


def _write_list(path: Path, values: Iterable[str | int | None]) -> None:
    """Writes a JSON list, one value a line."""
    lines = ",\n".join(json.dumps(value, ensure_ascii=False) for value in values)
    path.write_text(f"[\n{lines}\n]", encoding="utf-8", newline="\n")


def _misfit(values: dict[str, Any]) -> str:
    """Tells what is wrong with a manifest, which no checksum covers; empty if nothing is."""
    kinds = {"int": int, "float": float, "str": str, "dict[str, str]": dict}
    expected = {field.name: kinds[str(field.type)] for field in dataclasses.fields(Manifest)}
    if differing := set(values) ^ set(expected):
        return f"missing or unknown fields: {', '.join(sorted(differing))}"
    for name, kind in expected.items():
        if not isinstance(values[name], kind):
            return f"{name}: got {values[name]!r}, expected {kind.__name__}"
    if not 1 <= values["dimension"] < 1 << 20:
        return f"dimension: got {values['dimension']}, expected 1 to {(1 << 20) - 1}"
    if values["kind"] not in ("flat", "hnsw", "ivf"):
        return f"kind: got {values['kind']!r}, expected flat, hnsw or ivf"
    files = {VECTORS_FILE, IDS_FILE} | (set() if values["kind"] == "flat" else {APPROXIMATE_FILE})
    if set(values["sha256"]) - {SIZES_FILE} != files:
        return f"sha256: got {values['sha256']!r}, expected one of {' and '.join(sorted(files))}"
    return ""
