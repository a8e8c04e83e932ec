"""MSR-VTT as images: frames of its videos. Check it: ``python -m playground.msrvtt``; frames: ``--extract``.

The paper's own variant of MSR-VTT was never published. This one is ours: some frames spread evenly over every
video, without near-duplicates (`playground.video_frames`), are the images; every sentence is a query without
one target, whose relevant images are all frames of its video.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from playground.captions import Line, table_lines, usable_lines
from playground.captions_json import read_lists
from playground.check import Check, start_log
from playground.image_folder import list_images
from playground.video_frames import BROKEN_FILE, PER_VIDEO, SAME_WITHIN, extract_frames, read_broken
from records import Dataset, Image, Query, Skip

log = logging.getLogger(__name__)

VIDEO_FOLDER, FRAME_FOLDER = "videos", "frames"
VIDEO_SUFFIXES = frozenset({".mp4", ".webm", ".mkv", ".avi", ".mov"})
SENTENCE_FILES = ("MSRVTT_data.json", "train_val_videodatainfo.json", "test_videodatainfo.json")
TEST_FILE = "MSRVTT_JSFUSION_test.csv"
ONE_SENTENCE_SPLIT = "1k-A"
SPLITS = ("all", "train", "validate", "test", ONE_SENTENCE_SPLIT)
HOW_TO_GET = f"""MSR-VTT, put into
  playground/data/msrvtt/videos/                     video0.mp4 and so on, at any depth
  playground/data/msrvtt/{TEST_FILE}    the split 1k-A: 1,000 videos, one sentence each
  playground/data/msrvtt/MSRVTT_data.json            all sentences; or train_val_videodatainfo.json and
                                                     test_videodatainfo.json
then take the frames: pip install -r requirements/video.txt
                      python -m playground.msrvtt --extract
More: docs/datasets.md"""
_ADVICE = "see how to get it with: python -m playground.msrvtt"
_EXTRACT = "python -m playground.msrvtt --extract"
_FORM = "MSR-VTT's sentences: an object with videos (video_id, split) and sentences (video_id, caption)"


def read(root: Path, split: str) -> Dataset:
    """Reads MSR-VTT.

    Args:
        root: Holds `frames/`, and the files with the sentences.
        split: "1k-A" (one sentence a video, `MSRVTT_JSFUSION_test.csv`), "all", or the JSON file's own
            "train", "validate" and "test".

    Returns:
        Frames, each with the sentences of its video for captions; and one query a sentence.

    Raises:
        FileNotFoundError: If frames or sentences are missing.
        ValueError: If the split is another, the data is of no use, or videos wait for the extraction.
    """
    path, all_lines, everything = _sentences(root, split)
    frames, skipped = _frames(root)
    named = {line.image_name for line in all_lines}
    broken = tuple(skip for skip in read_broken(root / FRAME_FOLDER) if skip.what in named)
    waiting = sorted((named & list_videos(root)[0].keys()) - frames.keys() - {skip.what for skip in broken})
    if waiting:
        raise ValueError(
            f"{root / FRAME_FOLDER}: the frames of {len(waiting)} videos are not there yet, first "
            f"{waiting[0]}; go on with: {_EXTRACT} --split {split}"
        )
    lines, left_out = usable_lines(path, all_lines, frames, _ADVICE, "no frames of the video")
    captions: dict[str, list[str]] = {line.image_name: [] for line in lines}  # of all that is there
    for line in everything:
        if line.image_name in captions and not line.flaw and line.comment.strip():
            captions[line.image_name].append(" ".join(line.comment.split()))
    for line in lines:
        if line.comment not in captions[line.image_name]:
            captions[line.image_name].append(line.comment)
    images = [
        Image(frame.id, frame.path, tuple(said))
        for video, said in captions.items()
        for frame in frames[video]
    ]
    relevant = {video: frozenset(frame.id for frame in frames[video]) for video in captions}
    queries = [
        Query(f"{line.image_name}#{line.comment_number}", line.comment, None, relevant[line.image_name])
        for line in lines
    ]
    return Dataset("msrvtt", root / FRAME_FOLDER, tuple(images), tuple(queries), skipped + broken + left_out)


def extract(root: Path, split: str, per_video: int = PER_VIDEO) -> None:
    """Takes `per_video` frames of each of the `videos/` of a split, into `frames/` beside it.

    Raises:
        FileNotFoundError: If videos or sentences are missing.
        ModuleNotFoundError, ValueError: As `extract_frames`, and if the split is another.
    """
    videos, skipped = list_videos(root)
    if not videos:
        raise FileNotFoundError(f"{root / VIDEO_FOLDER}: no videos there; {_ADVICE}")
    names = dict.fromkeys(line.image_name for line in _sentences(root, split)[1])
    chosen = {name: videos[name] for name in names if name in videos}
    done = extract_frames(chosen, root / FRAME_FOLDER, per_video)
    log.info(
        f"frames of {done.extracted} videos taken, of {done.there} already there; {done.frames} frames, "
        f"{done.dropped} near-duplicates dropped (difference hash within {SAME_WITHIN} of 64 bits); "
        f"{len(names) - len(chosen)} videos of the split are not in {VIDEO_FOLDER}/"
    )
    for skip in skipped + done.broken:
        log.warning("broken or left out: %s: %s", skip.what, skip.why)


def list_videos(root: Path) -> tuple[dict[str, Path], tuple[Skip, ...]]:
    """Lists the videos by name without suffix, and what was left out; none if there is no folder of them."""
    folder = root / VIDEO_FOLDER
    if not folder.is_dir():
        return {}, ()
    try:
        files, skipped = list_images(folder, _ADVICE, VIDEO_SUFFIXES)
    except ValueError:  # there is none
        return {}, ()
    videos: dict[str, Path] = {}
    for file in files:
        name = file.path.stem
        if name in videos:
            skipped += (Skip(file.id, f"there is {videos[name].name} already"),)
        videos.setdefault(name, file.path)
    return videos, skipped


def _frames(root: Path) -> tuple[dict[str, list[Image]], tuple[Skip, ...]]:
    """Lists the frames of each video: what lies in a folder of its name."""
    folder = root / FRAME_FOLDER
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such image folder; take the frames with: {_EXTRACT}")
    images, skipped = list_images(folder, f"take the frames with: {_EXTRACT}")
    frames: dict[str, list[Image]] = {}
    for image in images:
        frames.setdefault(PurePosixPath(image.id).parent.name, []).append(image)
    return frames, skipped


def _sentences(root: Path, split: str) -> tuple[Path, list[Line], list[Line]]:
    """Returns the file of a split, the lines of the split, and all lines of the JSON files that are there."""
    if split not in SPLITS:
        raise ValueError(f"msrvtt: got split {split!r}, expected one of {', '.join(SPLITS)}")
    paths = [root / name for name in SENTENCE_FILES if (root / name).is_file()]
    if paths and paths[0].name == SENTENCE_FILES[0]:  # it holds all
        paths = paths[:1]
    known = [pair for path in paths for pair in _json_lines(path)]
    everything = [line for line, _ in known]
    if split == ONE_SENTENCE_SPLIT:
        return root / TEST_FILE, list(table_lines(root / TEST_FILE, _ADVICE)), everything
    if not paths:
        raise FileNotFoundError(
            f"{root}: no sentences, expected {SENTENCE_FILES[0]}, or {' and '.join(SENTENCE_FILES[1:])}; "
            f"{_ADVICE}"
        )
    if split != "all" and not any(own == split for _, own in known):
        found = Counter(own for line, own in known if not line.flaw)
        listed = ", ".join(f"{count} of {own!r}" for own, count in found.most_common(3))
        raise ValueError(
            f"{paths[0]}: got sentences {listed or 'of no split'}, expected some of {split!r}; put "
            f"{' and '.join(SENTENCE_FILES[1:])} in its place, or use --split {ONE_SENTENCE_SPLIT}"
        )
    return paths[0], [line for line, own in known if line.flaw or split in ("all", own)], everything


def _json_lines(path: Path) -> Iterator[tuple[Line, str]]:
    """Yields the sentences of a JSON file, each with the split of its video."""
    videos, sentences = read_lists(path, ("videos", "sentences"), _FORM, _ADVICE)
    split_of = {
        video["video_id"]: str(video.get("split"))
        for video in videos
        if isinstance(video.get("video_id"), str)
    }
    numbers: Counter[str] = Counter()
    for place, sentence in enumerate(sentences):
        where, video, caption = f"sentence {place}", sentence.get("video_id"), sentence.get("caption")
        if not isinstance(video, str) or not isinstance(caption, str):
            yield Line(where, "", flaw="not of the expected form"), ""
        elif video not in split_of:
            yield Line(where, video, flaw="the file does not name this video"), ""
        else:
            yield Line(where, video, str(numbers[video]), caption), split_of[video]
            numbers[video] += 1


def _main() -> int:
    pieces = {
        f"{VIDEO_FOLDER}/": "the videos, needed once",
        f"{FRAME_FOLDER}/": f"the images, made by {_EXTRACT}",
        f"{FRAME_FOLDER}/{BROKEN_FILE}": "videos that gave no frame or too few",
        TEST_FILE: "sentences of the split 1k-A",
        **dict.fromkeys(SENTENCE_FILES, "sentences of the other splits"),
    }
    check = Check("msrvtt", read, HOW_TO_GET, pieces)
    parser = check.parser()
    parser.add_argument("--extract", action="store_true", help="first take the frames that are not there yet")
    described = f"frames to take of each video (default: {PER_VIDEO})"
    parser.add_argument("--per-video", type=int, default=PER_VIDEO, help=described)
    options = parser.parse_args()
    if options.extract:
        start_log()
        log.setLevel(logging.INFO)
        try:
            extract(options.root, options.split, options.per_video)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            log.error("error: %s", error)
            return 2
        except KeyboardInterrupt:
            log.error("stopped; the same command goes on from here")
            return 130
    return check.run(options.root, options.split)


if __name__ == "__main__":
    sys.exit(_main())
