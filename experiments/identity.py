"""What a run depends on besides its settings: its pictures, queries and models.

These entries are saved in the run's settings.json, so that a stopped run is not resumed with others.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from generation.loading import model_identity
from records import Image, Query

BLOCK_BYTES = 4096
PICTURE_BLOCKS = 2  # both ends of a picture
WEIGHT_BLOCKS = 64  # spread over gigabytes; fine-tuning changes weights everywhere


def image_set_identity(images: Sequence[Image]) -> dict[str, str | int]:
    """Names a collection: its ids in order, its files, and what people wrote about them.

    A file is known by its size and both ends: reading all of Flickr30k would take gigabytes at each start. A
    file that cannot be read counts as such.
    """
    return {
        "image_count": len(images),
        "image_ids_sha256": _sha256(image.id for image in images),
        "image_files_sha256": _sha256(sampled_sha256(image.path, PICTURE_BLOCKS) for image in images),
        "image_captions_sha256": _sha256([image.id, *image.captions] for image in images),
    }


def query_set_identity(queries: Sequence[Query]) -> dict[str, str | int]:
    """Names the queries asked: ids, words, targets and relevant images, in order."""
    asked = ([query.id, query.text, query.target, *sorted(query.relevant)] for query in queries)
    return {"query_count": len(queries), "queries_sha256": _sha256(asked)}


def weights_identity(model: str, packaged: Mapping[str, tuple[str, str, str]]) -> str:
    """Names the weights of a model; other weights under the same name get another identity.

    Args:
        model: A folder, a hub id, or a name in `packaged`.
        packaged: Name to package, what lies in it, install command.

    Raises:
        ModuleNotFoundError: If the model's package is not installed.
        ValueError: If there is no such model.
    """
    if model in packaged:
        package, inside, command = packaged[model]
        spec = importlib.util.find_spec(package)  # found, not imported
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"the model {model} comes in a package; run: {command}")
        model = str(Path(spec.origin).parent / inside)
    return model_identity(model, lambda paths: {path: sampled_sha256(path, WEIGHT_BLOCKS) for path in paths})


def sampled_sha256(path: Path, blocks: int) -> str:
    """Hashes a file's size and evenly spaced blocks of it, the first and the last among them.

    Returns:
        Hexadecimal; "unreadable" if the file cannot be opened. A file no longer than the blocks together is
        hashed whole.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            digest.update(f"{size} ".encode())
            if size <= blocks * BLOCK_BYTES:
                file.seek(0)
                digest.update(file.read())
            else:
                for place in range(blocks):
                    file.seek(place * (size - BLOCK_BYTES) // (blocks - 1))
                    digest.update(file.read(BLOCK_BYTES))
    except OSError:
        return "unreadable"
    return digest.hexdigest()


def _sha256(values: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for value in values:  # as JSON, so that no two lists of texts look alike
        digest.update(json.dumps(value).encode() + b"\n")
    return digest.hexdigest()
