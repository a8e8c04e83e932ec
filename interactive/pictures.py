"""Pictures going out and coming in: JPEGs of the collection, made once, and uploads, read with care."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

from PIL import Image

from index.decode import BrokenImage, as_jpeg, open_image
from interactive.session import UserError

SMALL_PIXELS = 384  # longest side in the grid, sharp on high-density screens
MAX_CACHED = 512  # pictures of 10 to 200 kB
MAX_UPLOADED_BYTES = 10 * 2**20
MAX_UPLOADED_PIXELS = 40_000_000
_DECODING = threading.Semaphore(2)  # at a time: each takes a process


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
    try:
        return open_image(data, MAX_UPLOADED_PIXELS)
    except BrokenImage as error:
        raise UserError(f"the picture cannot be used: {error.reason}") from error
