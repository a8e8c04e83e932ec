"""One image file to one RGB picture, or one clear reason why not.

The one place that opens pictures: indexing, captioning, training and queries by image see the same pixels.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from index.formats import formats, why_unknown

MAX_PIXELS = 178_956_970  # twice Pillow's warning line: half a gigabyte of RGB
SHORT_SIDE_KEPT = 1024  # larger pictures are halved, thirded, ... down to this; models want 224 to 512


class BrokenImage(ValueError):
    """A file (`path`) that gives no picture; `reason` says why, without the path."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; replace the file, or take it out of the folder")
        self.path = path
        self.reason = reason


def open_image(source: Path | bytes, whole: bool = False) -> Image.Image:
    """Reads a picture whole, as RGB; the content decides the format, not the file's name.

    The first frame of an animation is taken. Very large pictures are reduced by a whole number, so that a
    queue of them fits into memory.

    Args:
        source: The file, or its bytes.
        whole: Reduce nothing: for those who resize the picture at once.

    Raises BrokenImage (a ValueError) if it is missing, empty, cut off, no picture, or too large.
    """
    path = source if isinstance(source, Path) else Path("the picture")
    try:
        if not (len(source) if isinstance(source, bytes) else source.stat().st_size):
            raise BrokenImage(path, "the file is empty")
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=formats()) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise BrokenImage(path, _too_large(f"{picture.width} x {picture.height} pixels"))
            picture.load()
            return to_rgb(picture) if whole else _reduced(to_rgb(picture))
    except BrokenImage:
        raise
    except FileNotFoundError as error:
        raise BrokenImage(path, "no such file") from error
    except UnidentifiedImageError as error:
        beginning = source[:16] if isinstance(source, bytes) else source.open("rb").read(16)
        raise BrokenImage(path, why_unknown(beginning)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BrokenImage(path, _too_large(str(error))) from error
    except Exception as error:  # damaged bytes make Pillow's decoders raise nearly any type
        raise BrokenImage(path, f"cannot be decoded: {type(error).__name__}: {error}") from error


def as_jpeg(picture: Image.Image, side: int) -> bytes:
    """Returns an RGB picture as JPEG, without camera data, its longest side at most `side` pixels."""
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85, optimize=True, exif=b"")
    return stream.getvalue()


def to_rgb(picture: Image.Image) -> Image.Image:
    """Turns a picture of any mode the right way up and into 8-bit RGB, a copy; the only such converter.

    The camera's orientation is applied and transparency lies on white. Grey of more than 8 bits is scaled:
    16-bit values by their type, 32-bit and floating-point values by the smallest of the usual ranges (0 to 1
    for floats, 0 to 255, 0 to 65535) that holds them all, anything else from darkest to brightest.

    Raises ValueError if it is no PIL image, or holds NaN or infinity.
    """
    if not isinstance(picture, Image.Image):
        raise ValueError(
            f"got a {type(picture).__name__}, expected a PIL image: open the file with PIL.Image.open"
        )
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return _eight_bits(picture).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("grey values hold NaN or infinity")
    ranges = {"F": (1, 255, 65535), "I": (255, 65535)}.get(picture.mode, (65535,))
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= ranges[-1]:
        low, high = 0.0, next(top for top in ranges if high <= top)
    scaled = (values - low) * (255.0 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def check_still_there(paths: Iterable[Path]) -> None:
    """Tells a collection that has gone, as with an unmounted disk, from one with broken files.

    Raises FileNotFoundError if not a single one of the pictures is left.
    """
    first = None
    for path in paths:
        first = first or path
        if path.exists():
            return
    raise FileNotFoundError(
        f"all pictures have vanished, {first} and the others; bring their folder back and give the same "
        "command again: what was finished is kept"
    )


def _too_large(got: str) -> str:
    return f"too large: got {got}, expected at most {MAX_PIXELS} pixels"


def _reduced(picture: Image.Image) -> Image.Image:
    factor = min(picture.size) // SHORT_SIDE_KEPT
    return picture.reduce(factor) if factor > 1 else picture
