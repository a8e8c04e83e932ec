"""One image file to one RGB picture, or one clear reason why not.

The one place that opens pictures: indexing, captioning, training and queries by image see the same pixels.
They are decoded in processes with limits (`index.limited`), since a small file can keep a decoder busy for
hours or fill the memory.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from index.formats import formats, why_unknown
from index.limited import MAX_BYTES, LimitBroken, LimitedProcesses

VERSION = 2  # of the way from a file to pixels; a part of the fingerprints of models
MAX_PIXELS = 178_956_970  # twice Pillow's warning line: half a gigabyte of RGB
SHORT_SIDE_KEPT = 1024  # larger pictures are halved, thirded, ... down to this; models want 224 to 512
MAX_KEPT_PIXELS = 2**23  # and so are long ones
WHOLE_PIXELS = 2**25  # that are not reduced for those who resize them
LARGE_BYTES = 2**27  # pictures that take more are decoded one at a time

_ORIENTATION = 0x0112  # the EXIF tag
_STRIP_PIXELS = 2**21  # are converted at a time
_ASKED = struct.Struct("<QI?")  # how a request begins: most pixels, side, whether whole
_HEAD = struct.Struct("<?II32s")  # of a reply: whether there is a picture, its size, the file's SHA-256
_processes = LimitedProcesses("index.decode:answer")
stop = _processes.stop  # ends the decoding under way, whose pictures then count as broken


class BrokenImage(ValueError):
    """A file (`path`) that gives no picture; `reason` says why, without the path."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; replace the file, or take it out of the folder")
        self.path = path
        self.reason = reason


def open_image(
    source: Path | bytes, max_pixels: int = MAX_PIXELS, side: int = 0, whole: bool = False
) -> Image.Image:
    """Reads a picture whole, as RGB; the content decides the format, not the file's name.

    The first frame of an animation is taken. Very large pictures are reduced by a whole number, so that a
    queue of them fits into memory.

    Args:
        source: The file, or its bytes.
        max_pixels: More are refused before one is decoded.
        side: Of the square that the picture is resized to, from the whole picture; 0: it is not.
        whole: Reduce nothing up to `WHOLE_PIXELS`: for those who resize the picture at once.

    Raises BrokenImage (a ValueError) if it is missing, empty, cut off, no picture, too large, or breaks a
    limit of `index.limited`.
    """
    return open_hashed(source, max_pixels, side, whole)[0]


def open_hashed(
    source: Path | bytes, max_pixels: int = MAX_PIXELS, side: int = 0, whole: bool = False
) -> tuple[Image.Image, str]:
    """As `open_image`; returns the picture, and the hexadecimal SHA-256 of the very bytes it is made of."""
    path = source if isinstance(source, Path) else Path("the picture")
    given = b"b" + source if isinstance(source, bytes) else b"p" + os.fsencode(source.absolute())
    try:
        reply = _processes.ask(_ASKED.pack(max_pixels, side, whole) + given)
    except LimitBroken as error:
        raise BrokenImage(path, f"cannot be decoded: {error}") from error
    is_picture, width, height, digest = _HEAD.unpack_from(reply)
    if not is_picture:
        raise BrokenImage(path, reply[_HEAD.size :].decode())
    return Image.frombytes("RGB", (width, height), memoryview(reply)[_HEAD.size :]), digest.hex()


def answer(request: bytes, begin_large: Callable[[], None]) -> bytes:
    """Answers `open_hashed` in another process; see `index.limited`."""
    max_pixels, side, whole = _ASKED.unpack_from(request)
    kind, given, data = request[_ASKED.size : _ASKED.size + 1], request[_ASKED.size + 1 :], b""
    try:
        data = given if kind == b"b" else Path(os.fsdecode(given)).read_bytes()
        picture = _decoded(data, max_pixels, whole or side > 0, begin_large)
        picture = squared(picture, side) if side else picture
        head = _HEAD.pack(True, *picture.size, hashlib.sha256(data).digest())
        return head + picture.tobytes()
    except _Refused as error:
        reason = str(error)
    except FileNotFoundError:
        reason = "no such file"
    except UnidentifiedImageError:
        reason = why_unknown(data[:16])
    except Image.DecompressionBombError as error:
        reason = _too_large(str(error), max_pixels)
    except MemoryError:
        reason = f"cannot be decoded in {MAX_BYTES >> 20} MB of memory"
    except Exception as error:  # damaged bytes make Pillow's decoders raise nearly any type
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = f"cannot be decoded: {type(error).__name__}: {said}"
    return _HEAD.pack(False, 0, 0, b"") + reason.encode(errors="replace")


class _Refused(Exception):
    """The picture is not decoded; says why."""


def _decoded(data: bytes, max_pixels: int, whole: bool, begin_large: Callable[[], None]) -> Image.Image:
    if not data:
        raise _Refused("the file is empty")
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    with Image.open(io.BytesIO(data), formats=formats()) as picture:
        width, height = picture.size
        if width * height > max_pixels:
            raise _Refused(_too_large(f"{width} x {height} pixels", max_pixels))
        whole = whole and width * height <= WHOLE_PIXELS
        factor = 1 if whole else _factor(picture.size)
        # The decoder itself reduces a JPEG, to an eighth at most.
        picture.draft(picture.mode, (width // factor, height // factor))
        size = _bytes_to_decode(picture, width * height)
        if size > MAX_BYTES * 3 // 4:  # the rest is for what comes of it
            raise _Refused(
                f"too large: {width} x {height} pixels take {size >> 20} MB to decode, expected at most "
                f"{MAX_BYTES * 3 // 4 >> 20} MB"
            )
        if size > LARGE_BYTES:
            begin_large()
        picture.load()
        return _rgb(picture, 1 if whole else _factor(picture.size))


def _bytes_to_decode(picture: Image.Image, pixels: int) -> int:
    """Returns about how many bytes Pillow takes to decode a picture; `pixels` are those before `draft`."""
    width = 1 if picture.mode in ("1", "L", "P") else 2 if picture.mode.startswith("I;16") else 4
    size = picture.width * picture.height * width
    if picture.format in ("WEBP", "AVIF", "HEIF"):  # the frame, the one before it, the bytes handed over
        return size + 12 * pixels
    if "progressive" in picture.info:  # coefficients of all colours, two bytes each
        return size + 2 * pixels * len(picture.getbands())
    return size


def _factor(size: tuple[int, int]) -> int:
    """Returns by how much a picture is reduced."""
    factor = max(1, min(size) // SHORT_SIDE_KEPT)
    while size[0] * size[1] > MAX_KEPT_PIXELS * factor**2:
        factor += 1
    return factor


def squared(picture: Image.Image, side: int) -> Image.Image:
    """Resizes to ``side`` x ``side`` (bicubic, antialiased); proportions are not kept, nothing is cropped."""
    return picture.resize((side, side), Image.Resampling.BICUBIC)


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
    return _rgb(picture.copy() if picture.mode == "RGB" else picture)


def _rgb(picture: Image.Image, factor: int = 1) -> Image.Image:
    """As `to_rgb`, reduced by the factor, and a picture that is RGB already may be changed in place.

    Beside the picture and what comes of it, only a strip of them is in memory.
    """
    is_grey = picture.mode in ("I", "F") or picture.mode.startswith("I;16")
    ends = _ends(picture, factor) if is_grey else (0.0, 0.0)
    size, made = (-(-picture.width // factor), -(-picture.height // factor)), None
    for top, strip in _strips(picture, factor):
        strip = _eight_bits(strip, *ends).convert("RGB") if is_grey else _opaque(strip)
        strip = strip.reduce(factor) if factor > 1 else strip
        if strip.size == size:  # all of it
            made = strip
        else:
            made = made or Image.new("RGB", size)
            made.paste(strip, (0, top // factor))
    assert made is not None
    orientation = picture.getexif().get(_ORIENTATION, 1)
    if orientation != 1:
        made.getexif()[_ORIENTATION] = orientation
        ImageOps.exif_transpose(made, in_place=True)
    return made


def _strips(picture: Image.Image, factor: int) -> Iterator[tuple[int, Image.Image]]:
    """Yields a picture's strips from the top, each of a multiple of `factor` rows, and where they begin."""
    rows = factor * max(1, _STRIP_PIXELS // (picture.width * factor))
    if rows >= picture.height:
        yield 0, picture
        return
    for top in range(0, picture.height, rows):
        yield top, picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def _opaque(picture: Image.Image) -> Image.Image:
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _ends(picture: Image.Image, factor: int) -> tuple[float, float]:
    """Returns the values of grey that become black and white."""
    low, high = np.inf, -np.inf
    for _, strip in _strips(picture, factor):
        values = np.asarray(strip)
        if not np.isfinite(values).all():
            raise ValueError("grey values hold NaN or infinity")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    ranges = {"F": (1, 255, 65535), "I": (255, 65535)}.get(picture.mode, (65535,))
    if low >= 0 and high <= ranges[-1]:
        return 0.0, next(top for top in ranges if high <= top)
    return low, high


def _eight_bits(picture: Image.Image, low: float, high: float) -> Image.Image:
    values = np.asarray(picture).astype(np.float64)
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


def _too_large(got: str, max_pixels: int) -> str:
    return f"too large: got {got}, expected at most {max_pixels} pixels"
