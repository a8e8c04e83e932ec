"""Reads `images_captions.csv`: image_name, comment_number, comment, one caption a line.

Commas or `|` between the columns, with or without quotes and spaces around them. Each usable caption becomes
a query for the image that it describes. A line that cannot be used is left out, with its number and the
reason.
"""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from records import Image, Query, Skip

log = logging.getLogger(__name__)

COLUMNS = ("image_name", "comment_number", "comment")
_LISTED = 3


@dataclass(frozen=True)
class Captions:
    """What a captions file says about some images.

    Attributes:
        images: The images in the order given, captions filled in.
        queries: One for each usable caption, in the file's order.
        skipped: Lines left out.
    """

    images: tuple[Image, ...]
    queries: tuple[Query, ...]
    skipped: tuple[Skip, ...]


def read_captions(path: Path, images: Sequence[Image], next_command: str) -> Captions:
    """Reads a captions file for images that are there.

    Args:
        path: The CSV file, UTF-8, first line the column names.
        images: The collection.
        next_command: What to do when the file is of no use; ends the error messages.

    Returns:
        Images with captions, queries with id `image_name#comment_number`, and the lines left out: of an
        image that is not in the collection or whose name leaves the folder, empty, repeated or malformed.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If the file is empty, is no text, lacks a column, has unbalanced quotes, or holds no
            usable caption.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such captions file; {next_command}")
    known = {image.id for image in images}
    queries: list[Query] = []
    skipped: list[Skip] = []
    reasons: Counter[str] = Counter()
    seen: set[str] = set()
    captions: dict[str, list[str]] = {}
    for line, row in _rows(path, next_command):
        reason, image_id = _problem(row, known, seen)
        if reason:
            reasons[reason] += 1
            skipped.append(Skip(f"{path.name} line {line}: {row.get('image_name', '')}", reason))
            continue
        query_id = f"{image_id}#{row['comment_number']}"
        seen.add(query_id)
        captions.setdefault(image_id, []).append(row["comment"])
        queries.append(Query(query_id, row["comment"], image_id, frozenset({image_id})))
    if not queries:
        counts = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common(_LISTED))
        raise ValueError(
            f"{path}: got no usable caption for the {len(images)} images, expected at least one "
            f"({counts or 'no lines below the header'}); {next_command}"
        )
    if skipped:
        counts = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
        log.warning(
            "%s: left out %d of %d lines: %s", path, len(skipped), len(skipped) + len(queries), counts
        )
    captioned = tuple(replace(image, captions=tuple(captions.get(image.id, ()))) for image in images)
    return Captions(captioned, tuple(queries), tuple(skipped))


def _rows(path: Path, next_command: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields line numbers and columns by name; only `image_name` for a row with another number of fields."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header_line, first = next(((n, line) for n, line in enumerate(file, 1) if line.strip()), (1, ""))
            piped = first.count("|") > first.count(",")
            dialect: dict[str, Any] = {"delimiter": "|" if piped else ",", "skipinitialspace": not piped}
            names = [name.strip() for name in next(csv.reader([first.strip()], **dialect), [])]
            missing = [column for column in COLUMNS if column not in names]
            if missing:
                got = f"got {', '.join(names)}" if names else "got an empty first line"
                raise ValueError(f"{path}: {got}, expected the columns {', '.join(COLUMNS)}; {next_command}")
            reader = csv.reader(file, strict=True, **dialect)
            line = header_line + 1
            while (fields := _next_row(reader, path, line)) is not None:
                fields = [field.strip() for field in fields]
                if len(fields) > 1 or any(fields):
                    fits = len(fields) == len(names)
                    yield line, dict(zip(names, fields, strict=True)) if fits else {"image_name": fields[0]}
                line = header_line + 1 + reader.line_num
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: got text that is not UTF-8 ({error.reason}); save it as UTF-8") from error


def _next_row(reader: Iterator[list[str]], path: Path, line: int) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise ValueError(
            f"{path}: line {line}: got malformed CSV ({error}), expected balanced quotes; write a quote "
            'inside quotes twice, as in "a ""red"" car"'
        ) from error


def _problem(row: dict[str, str], known: set[str], seen: set[str]) -> tuple[str, str]:
    """Returns why the row cannot be used, or nothing, and the image's id."""
    name = row["image_name"]
    if set(row) == {"image_name"}:
        return "not as many fields as the header", name
    if not name:
        return "no image name", name
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or PureWindowsPath(name).root:
        return "the image name is an absolute path", name
    if ".." in PureWindowsPath(name).parts:  # takes both kinds of slash
        return "the image name leaves the folder", name
    image_id = PurePosixPath(name).as_posix()
    if image_id not in known:
        return "no such image in the folder", image_id
    if not row["comment_number"]:
        return "no comment number", image_id
    if not row["comment"]:
        return "the comment is empty", image_id
    if f"{image_id}#{row['comment_number']}" in seen:
        return "the image has a comment of this number already", image_id
    return "", image_id
