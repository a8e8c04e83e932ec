"""Which picture files are still those that were embedded.

The state of a file is "SIZE TIME HASH": bytes, nanoseconds of its last change, and the first 16 hexadecimal
digits of the SHA-256 of its content. The content is read only where the size is the same and the time is not.
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
        self._touched: dict[str, str] = {}  # hashes of files whose time alone has changed

    def now(self, image_id: str, then: str | int | None = None) -> str | None:
        """Returns the state of an image's file; None if it cannot be read.

        Args:
            image_id: The image.
            then: Its state as known before; not read again where size and time are the same.
        """
        size_and_time, path = self._now[image_id], self._paths[image_id]
        if size_and_time is None:
            return None
        if isinstance(then, str) and then.startswith(f"{size_and_time} "):
            return then
        found = _hash(path)
        # A file that changes meanwhile gets the hash of no content: it is embedded again the next time.
        return f"{size_and_time} {found if _size_and_time(path) == size_and_time else '-'}"

    def unchanged(self, image_id: str, then: str | int | None) -> bool:
        """Tells whether a file is in the state of then, as far as is known.

        A number is the size alone, which is what older indexes hold; None is nothing.
        """
        now = self._now.get(image_id)
        if now is None or then is None:
            return True
        if isinstance(then, int):
            return now.split()[0] == str(then)
        size_and_time, _, content = then.rpartition(" ")
        if now == size_and_time:
            return True
        if now.split()[0] != size_and_time.split()[0]:
            return False
        if image_id not in self._touched:
            self._touched[image_id] = _hash(self._paths[image_id])
        return self._touched[image_id] == content


def _size_and_time(path: Path) -> str | None:
    try:
        status = path.stat()
    except OSError:  # whoever opens the picture says why
        return None
    return f"{status.st_size} {status.st_mtime_ns}"


def _hash(path: Path) -> str:
    try:
        return file_sha256(path)[:16]
    except OSError:
        return "-"
