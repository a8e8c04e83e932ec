"""Frames out of videos: some spread evenly over each, near-duplicates dropped, as JPEG files in a folder.

    frames/frames.json          how they were taken
    frames/broken_videos.csv    videos that gave none, or fewer than they should, and why
    frames/video0/02.jpg        the third of the places in video0; a dropped one leaves a gap

Videos are decoded by PyAV (FFmpeg). A video's folder appears when it is complete, so that a stopped
extraction goes on where it was.
"""

from __future__ import annotations

import csv
import io
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from files import make_folder, read_json, settings_that_differ, write_bytes, write_json
from records import Skip

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

log = logging.getLogger(__name__)

PER_VIDEO = 8
SAME_WITHIN = 4  # of 64 bits: a frame that near to an earlier one of its video is dropped
BROKEN_FILE = "broken_videos.csv"
_SETTINGS_FILE = "frames.json"
_JPEG_QUALITY = 92
_WHOLE = 0.9  # of the frames that a video declares; containers err by a few


@dataclass(frozen=True)
class Extraction:
    """What an extraction did."""

    extracted: int  # videos whose frames were taken now
    there: int  # videos whose frames were there already
    frames: int  # written now
    dropped: int  # near-duplicates, now
    broken: tuple[Skip, ...]  # videos that gave no frame or too few, and why


def extract_frames(videos: Mapping[str, Path], folder: Path, per_video: int = PER_VIDEO) -> Extraction:
    """Takes the frames of videos, given by name, or of those whose folder of that name is not there yet.

    `per_video` are taken of each, before near-duplicates are dropped.

    Raises:
        ModuleNotFoundError: If PyAV is missing.
        ValueError: If the number is out of range, or the folder holds frames taken with another.
    """
    if per_video < 1:
        raise ValueError(f"got {per_video} frames a video, expected at least 1")
    _import_av()  # before a folder is made
    _claim(folder, {"per_video": per_video, "same_within": SAME_WITHIN})
    broken = {skip.what: skip.why for skip in read_broken(folder)}
    open_ones = [name for name in videos if not (folder / name).is_dir()]
    written = dropped = 0
    for name in tqdm(open_ones, desc="extracting frames", unit="video"):
        frames, flaw = sample_frames(videos[name], per_video)
        broken.pop(name, None)
        if flaw:
            broken[name] = flaw
        kept = drop_duplicates(frames)
        dropped += len(frames) - len(kept)
        written += len(kept)
        if kept:
            _write(folder / name, kept)
        if flaw:
            _write_broken(folder, broken)
    _write_broken(folder, broken)
    extracted = sum((folder / name).is_dir() for name in open_ones)
    listed = tuple(Skip(name, why) for name, why in broken.items() if name in videos)
    return Extraction(extracted, len(videos) - len(open_ones), written, dropped, listed)


def sample_frames(path: Path, count: int) -> tuple[list[tuple[int, Picture]], str]:
    """Takes `count` frames of a video: of each of that many equal parts of its frames the middle one.

    Returns:
        Places from 0 and RGB pictures, in the order of the video; and what is wrong with it, or nothing.
    """
    av = _import_av()
    try:
        with av.open(str(path)) as container:  # reading the packets without decoding them is quick
            declared = container.streams.video[0].frames
            times = sorted(p.pts for p in container.demux(video=0) if p.pts is not None)
        if not times:
            return [], "holds no frame"
        place_of = {times[(2 * place + 1) * len(times) // (2 * count)]: place for place in range(count)}
        frames = []
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for packet in container.demux(video=0):
                try:
                    decoded = packet.decode()
                except av.InvalidDataError:  # one damaged packet; if a wanted frame was in it, it is counted
                    continue
                frames += [(place_of[f.pts], f.to_image()) for f in decoded if f.pts in place_of]
                if len(frames) == len(place_of):
                    break
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        return [], f"cannot be decoded ({type(error).__name__}: {error})"
    if len(frames) < len(place_of):
        return frames, f"damaged: {len(frames)} of {len(place_of)} frames could be decoded"
    if len(times) < _WHOLE * declared:
        return frames, f"cut off: holds {len(times)} frames of the {declared} that it declares"
    return frames, ""


def drop_duplicates(frames: list[tuple[int, Picture]]) -> list[tuple[int, Picture]]:
    """Drops frames whose `difference_hash` differs from an earlier one's in at most `SAME_WITHIN` bits."""
    kept: list[tuple[int, Picture]] = []
    hashes: list[int] = []
    for place, picture in frames:
        own = difference_hash(picture)
        if all((own ^ other).bit_count() > SAME_WITHIN for other in hashes):
            kept.append((place, picture))
            hashes.append(own)
    return kept


def difference_hash(picture: Picture) -> int:
    """Describes a picture in 64 bits: whether each of 9 x 8 grey cells is brighter than its right neighbour.

    Source: N. Krawetz, "Kind of Like That", 2013 (dHash).
    """
    from PIL import Image

    cells = picture.convert("L").resize((9, 8), Image.Resampling.BOX).tobytes()
    bits = 0
    for row in range(8):
        for column in range(8):
            bits = 2 * bits + (cells[9 * row + column] > cells[9 * row + column + 1])
    return bits


def read_broken(folder: Path) -> tuple[Skip, ...]:
    """Returns the videos that gave no frame or too few, and why."""
    path = folder / BROKEN_FILE
    if not path.is_file():
        return ()
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(Skip(row["video"], row["why"]) for row in csv.DictReader(file))


def _write_broken(folder: Path, broken: Mapping[str, str]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("video", "why"), *sorted(broken.items())])
    write_bytes(folder / BROKEN_FILE, text.getvalue().encode())


def _claim(folder: Path, settings: dict[str, int]) -> None:
    """Writes down how frames are taken; refuses a folder where they were taken otherwise."""
    path = folder / _SETTINGS_FILE
    differing = settings_that_differ(read_json(path) if path.is_file() else settings, settings)
    if differing:
        raise ValueError(
            f"{folder} holds frames taken otherwise ({differing}); remove the folder, or give the"
            " same numbers"
        )
    make_folder(folder)
    write_json(path, settings)


def _write(folder: Path, frames: list[tuple[int, Picture]]) -> None:
    building = folder.with_name(f".{folder.name}.building")  # a dot: no reader looks into it
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    for place, picture in frames:
        picture.save(building / f"{place:02}.jpg", quality=_JPEG_QUALITY)
    building.rename(folder)


def _import_av() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading videos needs PyAV: pip install -r requirements/video.txt"
        ) from error
    return av
