"""Pictures going out and coming in: JPEGs of the collection, made once, and uploads, read with care."""

from __future__ import annotations

import io
import tempfile
import threading
import warnings
from collections import OrderedDict
from pathlib import Path

from PIL import Image

from index.decode import FORMATS, BrokenImage, open_image
from interactive.search_context import UserError

SMALL_PIXELS = 384  # longest side in the grid, sharp on high-density screens
LARGE_PIXELS = 1024
MAX_CACHED_BYTES = 64 * 2**20
MAX_DECODING = 2  # at a time: a decoded picture may take half a gigabyte
MAX_UPLOADED_BYTES = 10 * 2**20
MAX_UPLOADED_PIXELS = 40_000_000


class PictureCache:
    """JPEGs by path and size, least recently used dropped first. Re-encoded, so no camera data goes out."""

    def __init__(self, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._made: OrderedDict[tuple[Path, int], bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._decoding = threading.Semaphore(MAX_DECODING)

    def jpeg(self, path: Path, side: int) -> bytes:
        """Returns a picture as JPEG, upright, its longest side at most ``side`` pixels.

        Raises:
            BrokenImage: (a ValueError) If the file gives no picture.
        """
        key = (path, side)
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        with self._decoding:
            picture = open_image(path)
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=85, optimize=True)
        data = stream.getvalue()
        with self._lock:
            if key not in self._made:  # another thread may have made it meanwhile
                self._made[key] = data
                self.bytes += len(data)
            while self.bytes > self.max_bytes and len(self._made) > 1:
                self.bytes -= len(self._made.popitem(last=False)[1])
        return data


def read_upload(data: bytes) -> Image.Image:
    """Reads an uploaded picture; its size is checked before a pixel is decoded.

    Args:
        data: The file's bytes; its name is never looked at.

    Returns:
        A picture in mode RGB.

    Raises:
        UserError: If it is too large, or no picture.
    """
    if len(data) > MAX_UPLOADED_BYTES:
        raise UserError(f"the file is too large; the limit is {MAX_UPLOADED_BYTES // 2**20} MB")
    too_many = f"the picture has too many pixels; the limit is {MAX_UPLOADED_PIXELS // 1_000_000} million"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                width, height = opened.size
    except Image.DecompressionBombError as error:
        raise UserError(too_many) from error
    except Exception as error:  # damaged bytes make Pillow's parsers raise nearly any type
        raise UserError(f"this is not a picture in one of the formats {', '.join(FORMATS)}") from error
    if width * height > MAX_UPLOADED_PIXELS:
        raise UserError(too_many)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upload"
        path.write_bytes(data)
        try:
            return open_image(path)
        except BrokenImage as error:
            raise UserError("the picture is damaged and cannot be decoded") from error
