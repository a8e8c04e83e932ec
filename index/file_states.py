"""Which picture files are still those that were embedded.

The state of a file is "SIZE TIME HASH": bytes, nanoseconds of its last change, and the first 16 hexadecimal
digits of the SHA-256 of its content, which is read only where the size is the same and the time is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from files import file_sha256
from records import Image


class FileStates:
    """The files of a collection's images, as they are when this is made."""

    def __init__(self, images: Iterable[Image]) -> None:
        self._paths = {image.id: image.path for image in images}
        self._now = {image_id: _size_and_time(path) for image_id, path in self._paths.items()}
        self._hashes: dict[str, str] = {}

    def now(self, image_id: str, then: str | int | None = None) -> str | None:
        """Returns the state of an image's file, or `then` where it is the same; None if it cannot be read."""
        now = self._now[image_id]
        if now and isinstance(then, str) and then.startswith(f"{now} "):
            return then
        return f"{now} {self._hash(image_id)}" if now else None

    def unchanged(self, image_id: str, then: str | int | None) -> bool:
        """Tells whether a file is in the state of then, as far as is known.

        A number is the size alone, which is what older indexes hold; None is nothing.
        """
        now = self._now.get(image_id)
        if not now or then is None:
            return True
        size, *rest = str(then).split()
        if now.split()[0] != size:
            return False
        return not rest or now.split()[1] == rest[0] or self._hash(image_id) == rest[1]

    def _hash(self, image_id: str) -> str:
        if image_id not in self._hashes:
            try:
                found = file_sha256(self._paths[image_id])[:16]
            except OSError:
                found = "-"
            # One that changes meanwhile gets the hash of no content: it is embedded again the next time.
            still = _size_and_time(self._paths[image_id]) == self._now[image_id]
            self._hashes[image_id] = found if still else "-"
        return self._hashes[image_id]


def _size_and_time(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:  # whoever opens the picture says why
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"
