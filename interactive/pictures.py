"""Pictures going out and coming in: JPEGs of the collection, made once, and uploads, read with care."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import threading
import warnings
from functools import lru_cache
from pathlib import Path

from PIL import Image

from index.decode import BrokenImage, as_jpeg, open_image
from index.formats import formats, why_unknown
from interactive.session import UserError

SMALL_PIXELS = 384  # longest side in the grid, sharp on high-density screens
MAX_CACHED = 512  # pictures of 10 to 200 kB
MAX_UPLOADED_BYTES = 10 * 2**20
MAX_UPLOADED_PIXELS = 40_000_000
_DECODING = threading.Semaphore(2)  # at a time: a decoded picture may take half a gigabyte


@lru_cache(maxsize=MAX_CACHED)
def jpeg(path: Path, side: int) -> bytes:
    """Returns a picture as JPEG, upright, its longest side at most ``side`` pixels; the latest are kept.

    It is re-encoded, so that no camera data goes out.

    Raises:
        BrokenImage: (a ValueError) If the file gives no picture.
    """
    with _DECODING:
        return as_jpeg(open_image(path), side)


def open_outside(path: Path) -> None:
    """Opens a picture, or a folder, with the desktop's program for it; UserError if there is none."""
    program = shutil.which("open" if sys.platform == "darwin" else "xdg-open")
    if program is None:
        raise UserError("no desktop was found to open files with (xdg-open); copy the path instead")
    if not path.is_dir():
        open_image(path)  # a BrokenImage: nothing else is opened, whatever its name
    quiet = subprocess.DEVNULL
    subprocess.Popen([program, path], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)


def read_upload(data: bytes) -> Image.Image:
    """Reads an uploaded picture's bytes as RGB; its size is checked before a pixel is decoded.

    Raises:
        UserError: If it is too large, or no picture.
    """
    if len(data) > MAX_UPLOADED_BYTES:
        raise UserError(f"the file is too large; the limit is {MAX_UPLOADED_BYTES // 2**20} MB")
    too_many = f"the picture has too many pixels; the limit is {MAX_UPLOADED_PIXELS // 1_000_000} million"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            with Image.open(io.BytesIO(data), formats=formats()) as opened:
                width, height = opened.size
    except Image.DecompressionBombError as error:
        raise UserError(too_many) from error
    except Exception as error:  # damaged bytes make Pillow's parsers raise nearly any type
        raise UserError(f"this is {why_unknown(data[:16])}") from error
    if width * height > MAX_UPLOADED_PIXELS:
        raise UserError(too_many)
    try:
        return open_image(data)
    except BrokenImage as error:
        raise UserError("the picture is damaged and cannot be decoded") from error
