"""Vectors as FAISS stores them (an IndexFlatIP), written block by block and read without loading them.

The file is what `faiss.write_index` writes, byte for byte: a header of 45 bytes, then the rows as float32,
little-endian. `faiss.read_index` opens it; here it is memory-mapped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_HEADER = struct.Struct("<4siqqq?iq")  # kind, dimension, rows, two unused, trained, metric, floats
_KIND = b"IxFI"
_UNUSED = 1 << 20
_INNER_PRODUCT = 0


def write_vectors(path: Path, blocks: Iterable[np.ndarray], dimension: int) -> int:
    """Writes a file of vectors in the memory of one block.

    Args:
        path: Is created or replaced.
        blocks: Each (m, dimension) float32.
        dimension: Width of a row.

    Returns:
        How many rows were written.
    """
    count = 0
    with path.open("wb") as file:
        file.write(_header(0, dimension))
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype="<f4").data)
            count += len(block)
        file.seek(0)
        file.write(_header(count, dimension))
    return count


def open_vectors(path: Path, count: int, dimension: int, next_command: str) -> np.ndarray:
    """Maps a file of vectors into memory, read-only.

    Args:
        path: Written by `write_vectors`.
        count: How many rows it must hold.
        dimension: How wide they must be.
        next_command: Ends the error messages.

    Returns:
        (count, dimension) float32; not aligned, so read it through `index.exact_search.blocks_of` and
        `take_rows`.

    Raises:
        ValueError: If the file is of another kind or size.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_KIND):
        raise ValueError(f"{path}: got {header[:4]!r}, expected an IndexFlatIP of FAISS; {next_command}")
    _, got_dimension, got_count, *_ = _HEADER.unpack(header)
    if got_count != count:
        raise ValueError(f"{path}: got {got_count} entries, expected {count}; {next_command}")
    if got_dimension != dimension:
        raise ValueError(f"{path}: got dimension {got_dimension}, expected {dimension}; {next_command}")
    expected = _HEADER.size + 4 * count * dimension
    if header != _header(count, dimension) or size != expected:
        raise ValueError(f"{path}: got {size} bytes, expected {expected} of an IndexFlatIP; {next_command}")
    shape = (count, dimension)
    return np.asarray(np.memmap(path, dtype="<f4", mode="r", offset=_HEADER.size, shape=shape))


def _header(count: int, dimension: int) -> bytes:
    return _HEADER.pack(_KIND, dimension, count, _UNUSED, _UNUSED, True, _INNER_PRODUCT, count * dimension)
