"""Lines of captions, from a file of any layout: which of them can be used, and why the others cannot.

A layout (`captions_csv`, `captions_json`) turns a file into lines; what is checked, counted and said about
them is the same for all. Image names are only compared with the names that are known: no path is made of
them, so that nothing a file says leads out of the dataset's folder.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from records import Image, Query, Skip

log = logging.getLogger(__name__)

LONGEST_COMMENT = 10_000  # characters; a person's caption has some sixty
# NUL and its like, and halves of characters that JSON can write but UTF-8 cannot.
_NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_LISTED = 3


@dataclass(frozen=True)
class Line:
    """One caption as a file gives it.

    Attributes:
        where: Its place in the file, such as "line 3".
        image_name: As written there.
        comment_number: Tells the captions of an image apart.
        comment: The caption.
        flaw: Why the layout cannot use it; empty when it can.
    """

    where: str
    image_name: str
    comment_number: str = ""
    comment: str = ""
    flaw: str = ""


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


def usable_lines(
    path: Path,
    lines: Iterable[Line],
    known: Collection[str],
    next_command: str,
    unknown: str = "no such image in the folder",
) -> tuple[tuple[Line, ...], tuple[Skip, ...]]:
    """Takes the lines that can be used, and says of each other why not.

    Args:
        path: The file, for the messages.
        lines: Of it.
        known: Image names that are there.
        next_command: What to do when the file is of no use; ends the error message.
        unknown: What to say of a name that is not known.

    Returns:
        Lines with known names, each image's comment numbers distinct, white space in the comment evened out;
        and those left out: malformed, empty, repeated, too long, no text, of an image that is not known or
        whose name leaves the folder.

    Raises:
        ValueError: If no line can be used.
    """
    known = frozenset(known)
    used: list[Line] = []
    skipped: list[Skip] = []
    reasons: Counter[str] = Counter()
    seen: set[str] = set()
    for line in lines:
        reason = _problem(line, known, seen, unknown)
        if reason:
            reasons[reason] += 1
            skipped.append(Skip(f"{path.name} {line.where}: {_NO_TEXT.sub('?', line.image_name)}", reason))
            continue
        name = _plain(line.image_name)
        seen.add(f"{name}#{line.comment_number}")
        used.append(replace(line, image_name=name, comment=" ".join(line.comment.split())))
    if not used:
        counts = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common(_LISTED))
        raise ValueError(
            f"{path}: got no usable caption for the {len(known)} images, expected at least one "
            f"({counts or 'it holds no captions'}); {next_command}"
        )
    if skipped:
        counts = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
        log.warning("%s: left out %d of %d lines: %s", path, len(skipped), len(skipped) + len(used), counts)
    return tuple(used), tuple(skipped)


def caption_images(path: Path, lines: Iterable[Line], images: Sequence[Image], next_command: str) -> Captions:
    """Gives images their captions; each usable caption is a query for the image that it describes.

    Args:
        path: The file, for the messages.
        lines: Of it, with the images' ids for names.
        images: The collection.
        next_command: What to do when the file is of no use; ends the error message.

    Returns:
        Images with captions, queries with id `image_name#comment_number`, and the lines left out.

    Raises:
        ValueError: If no line can be used.
    """
    used, skipped = usable_lines(path, lines, {image.id for image in images}, next_command)
    captions: dict[str, list[str]] = {}
    for line in used:
        captions.setdefault(line.image_name, []).append(line.comment)
    return Captions(
        tuple(replace(image, captions=tuple(captions.get(image.id, ()))) for image in images),
        tuple(
            Query(
                f"{line.image_name}#{line.comment_number}",
                line.comment,
                line.image_name,
                frozenset({line.image_name}),
            )
            for line in used
        ),
        skipped,
    )


def _plain(name: str) -> str:
    return PurePosixPath(name).as_posix()


def _problem(line: Line, known: frozenset[str], seen: set[str], unknown: str) -> str:
    """Returns why the line cannot be used, or nothing."""
    name = line.image_name
    if line.flaw:
        return line.flaw
    if any(_NO_TEXT.search(part) for part in (name, line.comment_number, line.comment)):
        return "holds characters that are no text, such as NUL"
    if not name:
        return "no image name"
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or PureWindowsPath(name).root:
        return "the image name is an absolute path"
    if ".." in PureWindowsPath(name).parts:  # takes both kinds of slash
        return "the image name leaves the folder"
    if _plain(name) not in known:
        return unknown
    if not line.comment_number or "#" in line.comment_number:
        return "no comment number"
    if not line.comment.split():
        return "the comment is empty"
    if len(line.comment) > LONGEST_COMMENT:
        return f"the comment is longer than {LONGEST_COMMENT:,} characters"
    if f"{_plain(name)}#{line.comment_number}" in seen:
        return "the image has a comment of this number already"
    return ""
