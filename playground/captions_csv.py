"""Captions as a table: image_name, comment_number, comment, one caption a line.

Read as they are found: the `images_captions.csv` of this method's code, Kaggle's `results.csv` of Flickr30k
(`|` between the columns, spaces after it), `captions.txt` (`image,caption`, without numbers), the
`MSRVTT_JSFUSION_test.csv` of MSR-VTT (`key,vid_key,video_id,sentence`), and the `.token` file of Flickr30k's
authors (`1000092795.jpg#0`, a tab, the caption; no first line with column names).
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from playground.captions import Captions, Line, caption_images
from records import Image

COLUMNS = ("image_name", "comment_number", "comment")
_OTHER_NAMES = {"image": "image_name", "video_id": "image_name", "caption": "comment", "sentence": "comment"}
_TOKEN_LINE = re.compile(r"(?P<name>[^\t|,]+)#(?P<number>\d+)\t(?P<comment>.*)")
_NUL_STAND_IN = "\x1a"  # as much no text as NUL, on which the csv module of Python 3.10 gives up


def read_captions(path: Path, images: Sequence[Image], next_command: str) -> Captions:
    """Reads a captions table for images that are there.

    Args:
        path: The file, as `table_lines` reads it.
        images: The collection.
        next_command: What to do when the file is of no use; ends the error messages.

    Returns:
        Images with captions, queries with id `image_name#comment_number`, and the lines left out.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If the file is of no use; see `table_lines` and `playground.captions.usable_lines`.
    """
    return caption_images(path, table_lines(path, next_command), images, next_command)


def table_lines(path: Path, next_command: str) -> Iterator[Line]:
    """Reads the lines of a captions table.

    Args:
        path: UTF-8, with or without a byte order mark, any line ends. The first line that is not empty names
            the columns, unless the file is a `.token` file. Without a column of numbers, an image's comments
            are numbered from 0 in the file's order.
        next_command: What to do when the file is of no use; ends the error messages.

    Yields:
        Lines; with a flaw where the number of fields is not that of the columns.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If the file is empty, is no text, lacks a column, or has unbalanced quotes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such captions file; {next_command}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header_line, first = next(((n, line) for n, line in enumerate(file, 1) if line.strip()), (1, ""))
            if _TOKEN_LINE.match(first):
                yield from _token_lines(first, header_line, file)
            else:
                yield from _rows(path, first, header_line, file, next_command)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: got text that is not UTF-8 ({error.reason}); save it as UTF-8") from error


def _token_lines(first: str, number: int, file: TextIO) -> Iterator[Line]:
    for place, text in enumerate((first, *file), number):
        if not text.strip():
            continue
        match = _TOKEN_LINE.match(text.rstrip("\r\n"))
        if match:
            yield Line(f"line {place}", match["name"].strip(), match["number"], match["comment"])
        else:
            yield Line(f"line {place}", text.strip()[:80], flaw="not of the form NAME#NUMBER, tab, comment")


def _rows(path: Path, first: str, header_line: int, file: TextIO, next_command: str) -> Iterator[Line]:
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
