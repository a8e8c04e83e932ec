"""Captions files: which lines of a table can be used, and why the others cannot.

Tables are read as they are found: the `images_captions.csv` of this method's code, Kaggle's `results.csv` of
Flickr30k (`|` between the columns), `captions.txt` (`image,caption`, without numbers), MSR-VTT's
`MSRVTT_JSFUSION_test.csv`, and the token files of Flickr8k and Flickr30k (`1000092795.jpg#0`, a tab, the
caption; no header). JSON is read by `playground.captions_json`; the checks are the same for all.

Image names are only compared with names that are known. No path is ever made of them, so nothing that a file
says can lead out of the dataset's folder.
"""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TextIO

from records import Dataset, Image, Query, Skip

log = logging.getLogger(__name__)

CAPTIONS_FILE = "images_captions.csv"
COLUMNS = ("image_name", "comment_number", "comment")
MAX_COMMENT = 10_000  # characters; a person's caption has some sixty
# Control characters, and lone surrogates, which JSON can express but UTF-8 cannot.
NOT_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_OTHER_NAMES = {"image": "image_name", "video_id": "image_name", "caption": "comment", "sentence": "comment"}
_TOKEN_LINE = re.compile(r"(?P<name>[^\t|,]+)#(?P<number>\d+)\t(?P<comment>.*)")
_NUL_STAND_IN = "\x1a"  # a control character, too; the csv module of Python 3.10 gives up on NUL itself
_MAX_LINE = 2**22  # letters of a captions file
_LISTED = 3


@dataclass(frozen=True)
class Line:
    """One caption as a file gives it."""

    where: str  # its place in the file, such as "line 3"
    image_name: str  # as written there
    comment_number: str = ""  # tells the captions of an image apart
    comment: str = ""
    flaw: str = ""  # why it cannot be used; empty when it can


def captioned_dataset(
    name: str,
    folder: Path,
    images: Sequence[Image],
    skipped: tuple[Skip, ...],
    path: Path,
    lines: Iterable[Line],
    next_command: str,
) -> Dataset:
    """Gives images their captions; each usable caption is a query for the image that it describes.

    Args:
        name: The dataset's.
        folder: Of its images.
        images: The collection.
        skipped: What was left out so far.
        path: The captions file, for the messages.
        lines: Of it, with the images' ids for names.
        next_command: What to do when the file is of no use; ends the error message.

    Returns:
        Images with captions, queries with id `image_name#comment_number`, and all that was left out.

    Raises:
        ValueError: If no line can be used.
    """
    used, left_out = usable_lines(path, lines, {image.id for image in images}, next_command)
    captions: dict[str, list[str]] = {}
    queries = []
    for line in used:
        captions.setdefault(line.image_name, []).append(line.comment)
        query_id = f"{line.image_name}#{line.comment_number}"
        queries.append(Query(query_id, line.comment, line.image_name, frozenset({line.image_name})))
    captioned = tuple(replace(image, captions=tuple(captions.get(image.id, ()))) for image in images)
    if bare := sum(not image.captions for image in captioned):
        log.warning(
            "%d of %d pictures have no caption in %s: they are found, but users who judge by captions need "
            "one of each",
            bare, len(captioned), path.name,
        )  # fmt: skip
    return Dataset(name, folder, captioned, tuple(queries), skipped + left_out)


def usable_lines(
    path: Path,
    lines: Iterable[Line],
    known: Collection[str],
    next_command: str,
    unknown: str = "no such image in the folder",
) -> tuple[tuple[Line, ...], tuple[Skip, ...]]:
    """Separates the lines that can be used from the others, and says why.

    The arguments are those of `captioned_dataset`; `unknown` is what to say of a name that is not `known`.

    Returns:
        Lines with known names, the comment numbers of an image distinct, white space in comments normalised;
        and what was left out.

    Raises:
        ValueError: If no line can be used.
    """
    known = frozenset(known)
    used: list[Line] = []
    skipped: list[Skip] = []
    seen: set[str] = set()
    for line in lines:
        reason = _flaw_of(line, known, seen, unknown)
        if reason:
            skipped.append(Skip(f"{path.name} {line.where}: {NOT_TEXT.sub('?', line.image_name)}", reason))
            continue
        name = PurePosixPath(line.image_name).as_posix()
        seen.add(f"{name}#{line.comment_number}")
        used.append(replace(line, image_name=name, comment=" ".join(line.comment.split())))
    reasons = Counter(skip.why for skip in skipped).most_common()
    counts = [f"{count} x {reason}" for reason, count in reasons]
    if not used:
        raise ValueError(
            f"{path}: got no usable caption for the {len(known)} images, expected at least one "
            f"({', '.join(counts[:_LISTED]) or 'it holds no captions'}); {next_command}"
        )
    if skipped:
        total = len(skipped) + len(used)
        log.warning("%s: left out %d of %d lines: %s", path, len(skipped), total, ", ".join(counts))
    return tuple(used), tuple(skipped)


def _flaw_of(line: Line, known: frozenset[str], seen: set[str], unknown: str) -> str:
    name = line.image_name
    if line.flaw:
        return line.flaw
    if any(NOT_TEXT.search(part) for part in (name, line.comment_number, line.comment)):
        return "holds characters that are not text, such as NUL"
    if not name:
        return "no image name"
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or PureWindowsPath(name).root:
        return "the image name is an absolute path"
    if ".." in PureWindowsPath(name).parts:  # splits at both kinds of slash
        return "the image name leaves the folder"
    plain = PurePosixPath(name).as_posix()
    if plain not in known:
        return unknown
    if not line.comment_number or "#" in line.comment_number:
        return "no comment number"
    if not line.comment.split():
        return "the comment is empty"
    if len(line.comment) > MAX_COMMENT:
        return f"the comment is longer than {MAX_COMMENT:,} characters"
    if f"{plain}#{line.comment_number}" in seen:
        return "the image has a comment of this number already"
    return ""


def table_lines(path: Path, next_command: str) -> Iterator[Line]:
    """Reads the lines of a captions table.

    Args:
        path: UTF-8, with or without a byte order mark, any line ends. The first line that is not empty names
            the columns, unless it is a token file. Without a column of numbers, an image's comments are
            numbered from 0 in the file's order.
        next_command: As for `captioned_dataset`.

    Yields:
        Lines; with a flaw where the number of fields is not that of the columns.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If the file is empty, is not text, lacks a column, or has unbalanced quotes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such captions file; {next_command}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = _bounded(path, file)
            header_line, first = next(((n, line) for n, line in enumerate(lines, 1) if line.strip()), (1, ""))
            if _TOKEN_LINE.match(first):
                yield from _token_lines(first, header_line, lines)
            else:
                yield from _rows(path, first, header_line, lines, next_command)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: got text that is not UTF-8 ({error.reason}); save it as UTF-8") from error


def _bounded(path: Path, file: TextIO) -> Iterator[str]:
    while line := file.readline(_MAX_LINE):
        if len(line) == _MAX_LINE:
            raise ValueError(
                f"{path}: got a line of more than {_MAX_LINE} letters, expected a caption a line"
            )
        yield line


def _token_lines(first: str, number: int, file: Iterator[str]) -> Iterator[Line]:
    for place, text in enumerate((first, *file), number):
        match = _TOKEN_LINE.match(text.rstrip("\r\n"))
        if match:
            yield Line(f"line {place}", match["name"].strip(), match["number"], match["comment"])
        elif text.strip():
            yield Line(f"line {place}", text.strip()[:80], flaw="not of the form NAME#NUMBER, tab, comment")


def _rows(path: Path, first: str, header_line: int, file: Iterator[str], next_command: str) -> Iterator[Line]:
    piped = first.count("|") > first.count(",")
    dialect: dict[str, Any] = {"delimiter": "|" if piped else ",", "skipinitialspace": not piped}
    header = next(csv.reader([first.strip().replace("\0", _NUL_STAND_IN)], **dialect), [])
    names = [_OTHER_NAMES.get(name.strip().lower(), name.strip().lower()) for name in header]
    if not {"image_name", "comment"} <= set(names):
        got = f"got {', '.join(name.strip() for name in header)}" if header else "got an empty first line"
        raise ValueError(f"{path}: {got}, expected the columns {', '.join(COLUMNS)}; {next_command}")
    reader = csv.reader((line.replace("\0", _NUL_STAND_IN) for line in file), strict=True, **dialect)
    counts: Counter[str] = Counter()
    line = header_line + 1
    while (fields := _next_row(reader, path, line)) is not None:
        fields = [field.strip() for field in fields]
        if len(fields) == len(names):
            row = dict(zip(reversed(names), reversed(fields), strict=True))  # of equal names the first counts
            name = row["image_name"]
            yield Line(f"line {line}", name, row.get("comment_number", str(counts[name])), row["comment"])
            counts[name] += 1
        elif len(fields) > 1 or any(fields):
            yield Line(f"line {line}", fields[0], flaw="not as many fields as the header")
        line = header_line + 1 + reader.line_num


def _next_row(reader: Iterator[list[str]], path: Path, line: int) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise ValueError(
            f"{path}: line {line}: got malformed CSV ({error}), expected balanced quotes; write a quote "
            'inside quotes twice, as in "a ""red"" car"'
        ) from error
