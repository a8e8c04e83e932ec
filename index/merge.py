"""Joins indexes of one model into one: ``python -m index.merge INDEX INDEX ... --output FOLDER``.

Where the indexes were built over different image folders, the ids of the new one begin with what tells these
apart: /photos/2023 and /photos/2024 give 2023/1.jpg and 2024/1.jpg, relative to /photos.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from settings import run_script

log = logging.getLogger(__name__)


def merge_indexes(folders: Sequence[Path], output: Path) -> int:
    """Joins indexes, block by block, so that memory holds their ids only; returns how many images.

    Args:
        folders: At least two index folders, with no image in common.
        output: Folder of the new index; an index in it is replaced. None of the others.

    Raises FileNotFoundError if a folder holds no whole index; ValueError if one is damaged, their models
    differ, or two have the same image.
    """
    from files import locked_folder
    from index.faiss_index import FaissIndex
    from index.folder import Manifest, write_folder
    from index.scores import ROWS_AT_ONCE, check_ids

    if len(folders) < 2:
        raise ValueError(f"merge: got {len(folders)} index folders, expected at least two")
    if output.resolve() in [folder.resolve() for folder in folders]:
        raise ValueError(f"merge: {output} is one of the indexes to be joined; name another folder")
    first = Manifest.read(folders[0])
    indexes = [FaissIndex.open(folder, first.model_fingerprint, first.dimension) for folder in folders]
    manifests = [index.manifest for index in indexes if index.manifest is not None]
    places = [Path(manifest.image_folder).resolve() for manifest in manifests]
    home = Path(os.path.commonpath(places))
    ids: list[str] = []
    for index, place in zip(indexes, places, strict=True):
        prefix = place.relative_to(home)
        ids += index.ids if place == home else [(prefix / image_id).as_posix() for image_id in index.ids]
    check_ids(ids)
    blocks = (
        index.vectors[first : first + ROWS_AT_ONCE]
        for index in indexes
        for first in range(0, len(index), ROWS_AT_ONCE)
    )
    with locked_folder(output):
        manifest = write_folder(
            output,
            ids,
            blocks,
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
