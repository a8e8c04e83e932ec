"""Writing an index folder: vectors, ids and, for very many, an approximate index; `manifest.json` last.

The vectors come block by block, so that an index larger than the memory can be written, merged and extended.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from files import file_sha256, replace_file, write_errors
from index.kinds import choose_kind
from index.manifest import (
    APPROXIMATE_FILE,
    FORMAT_VERSION,
    IDS_FILE,
    MANIFEST_FILE,
    REBUILD,
    VECTORS_FILE,
    Manifest,
)
from index.vector_file import open_vectors, write_vectors
from settings import IndexKind

log = logging.getLogger(__name__)


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
    sampled: Callable[[], np.ndarray | None] | None = None,
) -> Manifest:
    """Writes an index; a kill leaves the folder's old one whole, or a folder without manifest.

    Args:
        folder: Created if missing; an index in it is replaced.
        ids: n image ids.
        blocks: Their vectors, in order, each block (m, dimension) float32 from `unit_rows`.
        dimension: Width of a vector.
        model_name: Of the model that made the vectors.
        model_fingerprint: Of the same model.
        dataset: Name of the dataset.
        image_folder: The folder that the ids are relative to.
        kind: Of the index; "auto" picks one by the number of vectors and the memory.
        sampled: Gives (q, dimension) float32 unit rows like those that will be asked, to measure an
            approximate index with; sums of stored vectors when there are none.

    Raises:
        ValueError: If there are no images, or not as many ids as vectors.
    """
    if not ids:
        raise ValueError(f"{folder}: got an empty index to save, expected at least one image")
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for left_by_a_kill in (*folder.glob("*.new"), *folder.glob("*.building")):
            left_by_a_kill.unlink()
    new = {name: folder / (name + ".new") for name in (VECTORS_FILE, IDS_FILE)}
    counted: list[int] = []
    replace_file(new[VECTORS_FILE], lambda path: counted.append(write_vectors(path, blocks, dimension)))
    if counted != [len(ids)]:
        raise ValueError(f"{folder}: got {len(ids)} ids for {counted[0]} vectors, expected as many")
    replace_file(new[IDS_FILE], lambda path: _write_ids(path, ids))
    chosen = choose_kind(len(ids), dimension) if kind == "auto" else kind
    effort, recall = 0, 1.0
    if chosen != "flat":
        from index.approximate import build_approximate  # imports FAISS, which the others do without

        vectors = open_vectors(new[VECTORS_FILE], len(ids), dimension, REBUILD)
        approximate = build_approximate(vectors, chosen, sampled() if sampled else None)
        effort, recall = approximate.effort, approximate.recall
        new[APPROXIMATE_FILE] = folder / (APPROXIMATE_FILE + ".new")
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
    with write_errors(folder):
        (folder / MANIFEST_FILE).unlink(missing_ok=True)
        for name, path in new.items():
            path.replace(folder / name)
        if chosen == "flat":
            (folder / APPROXIMATE_FILE).unlink(missing_ok=True)
    manifest.write(folder)
    return manifest


def _write_ids(path: Path, ids: Iterable[str]) -> None:
    """Writes a JSON list, one id a line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        opening = "[\n"
        for image_id in ids:
            file.write(opening + json.dumps(image_id, ensure_ascii=False))
            opening = ",\n"
        file.write("\n]")
