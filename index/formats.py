"""The formats that pictures are read in: Pillow's, and HEIC where pillow-heif is installed."""

from __future__ import annotations

import importlib.util
import re
from functools import cache

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # none that starts another program
# Of files in these formats and HEIC: the first 16 bytes.
BEGINNINGS = re.compile(
    rb"\xff\xd8\xff|\x89PNG|RIFF....WEBP|GIF8|BM....\0\0\0\0|II\*\0|MM\0\*|....ftyp(avi[fs]|hei.|hev.|mif1|msf1)",
    re.DOTALL,
)
_HEIC = re.compile(rb"....ftyp(hei.|hev.|mif1|msf1)", re.DOTALL)
MAX_PROPORTION = 50  # of a picture's sides that models are shown


@cache
def formats() -> tuple[str, ...]:
    """Returns the names of the formats, for `PIL.Image.open`."""
    if importlib.util.find_spec("pillow_heif") is None:
        return FORMATS
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return (*FORMATS, "HEIF")


def why_unknown(beginning: bytes) -> str:
    """Says why a file that begins so is in none of the formats."""
    if _HEIC.match(beginning) and "HEIF" not in formats():
        return "a HEIC picture, which needs pillow-heif; run: pip install -r requirements/heic.txt"
    return f"not a picture in one of the formats {', '.join(formats())}"


def middle(picture: Image.Image) -> Image.Image:
    """Cuts a picture whose sides are out of proportion to its middle; any other is returned as it is.

    Models that resize by the short side would make gigabytes of a picture one pixel wide, or refuse it.
    """
    longest = MAX_PROPORTION * min(picture.size)
    width, height = (min(side, longest) for side in picture.size)
    if (width, height) == picture.size:
        return picture
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))
