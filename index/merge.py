"""Joins indexes of one model into one: ``python -m index.merge INDEX INDEX ... --output FOLDER``.

Where the indexes were built over different image folders, the ids of the new one begin with what tells these
apart: /photos/2023 and /photos/2024 give 2023/1.jpg and 2024/1.jpg, relative to /photos.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from settings import run_script

log = logging.getLogger(__name__)


def merge_indexes(folders: Sequence[Path], output: Path) -> int:
    """Joins indexes, block by block, so that memory holds their ids only.

    Args:
        folders: At least two index folders. An image that is in several, with the same vector, is taken once.
        output: Folder of the new index; an index in it is replaced. None of the others.

    Returns:
        How many images the new index has.

    Raises:
        FileNotFoundError: If one of the folders holds no whole index.
        ValueError: If one is damaged, their models differ, or two have different vectors under one id.
    """
    from files import locked_folder
    from index.faiss_index import FaissIndex
    from index.folder import write_folder
    from index.scores import ROWS_AT_ONCE

    if len(folders) < 2:
        raise ValueError(f"merge: got {len(folders)} index folders, expected at least two")
    if output.resolve() in [folder.resolve() for folder in folders]:
        raise ValueError(f"merge: {output} is one of the indexes to be joined; name another folder")
    indexes = [FaissIndex.open(folder) for folder in folders]
    manifests = [index.manifest for index in indexes if index.manifest is not None]
    first = manifests[0]
    for folder, manifest in zip(folders, manifests, strict=True):
        if (manifest.model_fingerprint, manifest.dimension) != (first.model_fingerprint, first.dimension):
            raise ValueError(
                f"merge: {folder} is of the model {manifest.model_fingerprint} ({manifest.model_name}), "
                f"{folders[0]} of {first.model_fingerprint} ({first.model_name}), expected one model; embed "
                "the images of one again with the other's: python embed_image_as_faiss.py"
            )
    places = [Path(manifest.image_folder).resolve() for manifest in manifests]
    home = Path(os.path.commonpath(places))
    ids: list[str] = []
    chosen: list[np.ndarray] = []
    place_of: dict[str, tuple[int, int]] = {}
    for number, (index, place) in enumerate(zip(indexes, places, strict=True)):
        rows = []
        for row, image_id in enumerate(index.ids):
            name = (place.relative_to(home) / image_id).as_posix() if place != home else image_id
            if name not in place_of:
                place_of[name] = number, row
                ids.append(name)
                rows.append(row)
                continue
            other, other_row = place_of[name]
            if not np.array_equal(indexes[other].vectors[other_row], index.vectors[row]):
                raise ValueError(
                    f"merge: {folders[other]} and {folders[number]} have different vectors for {name!r}: the "
                    "picture has changed between them; build the older one again with --rebuild"
                )
        chosen.append(np.array(rows, dtype=np.int64))

    def blocks() -> Iterator[np.ndarray]:
        for index, rows in zip(indexes, chosen, strict=True):
            for first in range(0, len(rows), ROWS_AT_ONCE):
                yield index.vectors[rows[first : first + ROWS_AT_ONCE]]

    with locked_folder(output):
        manifest = write_folder(
            output,
            ids,
            blocks(),
            dimension=first.dimension,
            model_name=first.model_name,
            model_fingerprint=first.model_fingerprint,
            dataset=" + ".join(dict.fromkeys(manifest.dataset for manifest in manifests)),
            image_folder=home,
        )
    log.info("%s: joined %d indexes to one of %d images, below %s", output, len(indexes), len(ids), home)
    return manifest.count


def main() -> None:
    """Reads the command line and joins."""
    parser = argparse.ArgumentParser(prog="python -m index.merge", description="Joins indexes of one model.")
    parser.add_argument("folders", type=Path, nargs="+", help="two or more index folders")
    parser.add_argument("--output", type=Path, required=True, help="folder of the new index")
    arguments = parser.parse_args()
    merge_indexes(arguments.folders, arguments.output)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
