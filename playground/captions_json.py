"""Captions as JSON: COCO's own annotations, and Karpathy's files with their splits.

    captions_val2017.json    {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
    dataset_coco.json        {"images": [{"filename", "filepath", "cocoid", "split", "sentences": [{"raw"}]}]}
    dataset_flickr30k.json   the same without "filepath" and "cocoid"

Source of the splits: Karpathy and Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image
Descriptions", CVPR 2015.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playground.captions import Line

_MALFORMED = "not of the expected form"


@dataclass(frozen=True)
class SplitImage:
    """An image as a Karpathy file lists it."""

    place: int  # in the file
    name: str  # of the picture's file, without a folder
    coco_id: int | None  # COCO's number, the same in 2014 and 2017; None elsewhere
    split: str  # "train", "restval", "val" or "test"
    comments: tuple[Any, ...]  # its captions; something other than text where the file is damaged


def read_lists(path: Path, keys: Sequence[str], form: str, next_command: str) -> list[list[dict[str, Any]]]:
    """Reads lists of objects out of a JSON file.

    Args:
        path: UTF-8, with or without a byte order mark.
        keys: Of the lists in the outermost object.
        form: What the file should be, for the error messages.
        next_command: Ends them.

    Returns:
        One list a key; anything that is not an object becomes an empty one.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is not JSON, or lacks a list.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {next_command}")
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        lists = [values[key] for key in keys]
        if not all(isinstance(entries, list) for entries in lists):
            raise TypeError(f"{' and '.join(keys)} must be lists")
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # the last: nested without end
        raise ValueError(
            f"{path}: got {type(error).__name__}: {error}, expected {form}; {next_command}"
        ) from error
    return [[entry if isinstance(entry, dict) else {} for entry in entries] for entries in lists]


def coco_lines(path: Path, next_command: str) -> Iterator[Line]:
    """Reads COCO's captions; an image's comments are numbered from 0 in COCO's order.

    Arguments and errors are those of `read_lists`.
    """
    form = "COCO's captions: an object with images (id, file_name) and annotations (image_id, caption)"
    images, annotations = read_lists(path, ("images", "annotations"), form, next_command)
    names = {
        image["id"]: image["file_name"]
        for image in images
        if isinstance(image.get("id"), int) and isinstance(image.get("file_name"), str)
    }
    numbers: Counter[str] = Counter()
    for place, entry in enumerate(annotations):
        where, image_id, comment = f"annotation {place}", entry.get("image_id"), entry.get("caption")
        if not isinstance(image_id, int) or not isinstance(comment, str):
            yield Line(where, "", flaw=_MALFORMED)
        elif image_id not in names:
            yield Line(where, f"image {image_id}", flaw="the file does not name this image")
        else:
            name = names[image_id]
            yield Line(where, name, str(numbers[name]), comment)
            numbers[name] += 1


def split_images(path: Path, next_command: str) -> tuple[SplitImage, ...]:
    """Returns the images of a Karpathy file, in its order; arguments and errors are those of `read_lists`.

    Raises:
        ValueError: Also if an image lacks its name, its split or its sentences.
    """
    form = "Karpathy's splits: an object with images (filename, split, sentences)"
    (entries,) = read_lists(path, ("images",), form, next_command)
    images = []
    for place, entry in enumerate(entries):
        name, split, sentences = entry.get("filename"), entry.get("split"), entry.get("sentences")
        if not (isinstance(name, str) and isinstance(split, str) and isinstance(sentences, list)):
            raise ValueError(f"{path}: image {place} is malformed, expected {form}; {next_command}")
        coco_id = entry.get("cocoid")
        comments = tuple(
            sentence.get("raw") if isinstance(sentence, dict) else None for sentence in sentences
        )
        images.append(SplitImage(place, name, coco_id if isinstance(coco_id, int) else None, split, comments))
    return tuple(images)


def split_lines(images: Sequence[SplitImage], id_of: Callable[[SplitImage], str]) -> Iterator[Line]:
    """Turns images of a Karpathy file into lines; comments are numbered from 0 in the file's order.

    `id_of` gives the id of an image's picture, or any other name when it is not there.
    """
    for image in images:
        for number, comment in enumerate(image.comments):
            where = f"image {image.place}, sentence {number}"
            if isinstance(comment, str):
                yield Line(where, id_of(image), str(number), comment)
            else:
                yield Line(where, id_of(image), flaw=_MALFORMED)
