"""Writing a file so that a reader finds the old one or the new one, never a part."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class WriteFailed(OSError):
    """The system refused a write: the disk is full, or the place may not be written."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Says of a failed write which file it was, which a full disk does not, and what to do.

    Args:
        path: What the block writes.

    Raises:
        WriteFailed: (an OSError) If the block ends with an OSError.
    """
    try:
        yield
    except WriteFailed:
        raise
    except OSError as error:
        reason = error.strerror or f"{error}: is the disk full?"  # NumPy gives no error number
        raise WriteFailed(
            f"{path}: cannot be written ({reason}); make room or see to it that it may be written, then give "
            "the same command again: what was finished is kept"
        ) from error


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file under a temporary name beside `path`, flushes it to disk, then renames it to `path`.

    The temporary name is always the same, so that what a kill leaves is gone with the next write; two
    processes therefore must not write one file at a time (`indexes.folder.locked_folder`).

    Args:
        path: The file to create or replace; its folder exists.
        write: Called with the temporary path, and writes the whole content there.

    Raises:
        WriteFailed: (an OSError) If the system refuses; an old file stays as it was.
    """
    temporary = path.with_name(path.name + ".building")
    with naming(path):
        try:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut, where the system lets a folder be opened."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
