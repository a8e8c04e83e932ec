"""Which kind of index suits how many vectors. Below a million: exact search.

"flat" is exact. "hnsw" (a graph) and "ivf" (lists) keep a byte a number in memory, "ivfpq" a byte for eight
numbers; they are FAISS's, see `index.approximate`.
"""

from __future__ import annotations

import os

from settings import IndexKind

FLAT_BELOW = 1_000_000  # vectors; below it an exact search costs less than anything around it
HNSW_BELOW = 3_000_000  # building its graph is slow
MEMORY_SHARE = 0.5  # of the machine's, for what an approximate index keeps there
LINKS = 32  # of a vector in HNSW's graph, and twice as many on its lowest level


def choose_kind(count: int, dimension: int, memory: int | None = None) -> IndexKind:
    """Picks the kind of index for a collection: exact while that is fast, then the best that fits.

    Args:
        count: Vectors.
        dimension: Width of a vector.
        memory: Bytes of the machine; asked of the system when None.
    """
    allowed = MEMORY_SHARE * (_memory_bytes() if memory is None else memory)
    if count < FLAT_BELOW:
        return "flat"
    if count < HNSW_BELOW and count * (dimension + 2 * LINKS * 4 + 16) <= allowed:
        return "hnsw"
    return "ivf" if count * (dimension + 8) <= allowed else "ivfpq"


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return 8 << 30
