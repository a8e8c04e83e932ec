"""WebDataset tars of pictures and captions. Check them: ``python -m playground.image_tars --root FOLDER``.

Files of one tar that share their name up to its first dot belong together: `000123.jpg` is described by
`000123.txt`, or by the "caption" of `000123.json`. The tars stay as they are: nothing is unpacked.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from playground.captions import Line, caption_images
from playground.check import Check
from playground.image_folder import SUFFIXES, list_files, plain_names
from records import Dataset, Image, Skip
from scale.places import address_of, is_remote, list_stored, naming_place, read_ranges
from scale.tar_members import read_members

HOW_TO_GET = """Put WebDataset tars there, at any depth, or name another folder, a single tar or a range of
them with --root, in quotes: --root 'shards/{00000..00009}.tar'. Object stores, too: --root s3://bucket/shards"""
LARGEST_CAPTION_FILE = 1 << 20  # bytes: those of a tar are in memory together
CAPTION_KEYS = ("caption", "captions", "text")
_ADVICE = "name a folder of tars, a tar, or a range such as 'shards/{00000..00009}.tar' with --root"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")


def read(root: Path, split: str) -> Dataset:
    """Reads tars; of those here only the headers and the captions.

    Args:
        root: A folder with tars at any depth, a tar, or a path with ranges such as {00000..00009}; here or in
            an object store.
        split: "all".

    Returns:
        Images with ids such as `00000.tar/000123.jpg`, and a query for each caption.

    Raises:
        FileNotFoundError: If a tar or the folder is missing.
        ValueError: If a tar is none, there are no pictures, or the split is another.
    """
    if split != "all":
        raise ValueError(f"image_tars: got split {split!r}, expected 'all': tars have no split file; use all")
    folder, tars, skipped = find_files(root, ".tar", _ADVICE, _COMPRESSED)
    images: list[Image] = []
    lines: list[Line] = []
    for tar in tars:
        with naming_place(folder / tar):
            members = read_members(folder / tar)
        skipped += [Skip(f"{PurePosixPath(tar).parent / skip.what}", skip.why) for skip in members.skipped]
        beside: dict[str, dict[str, str]] = {}
        for name in members.places:
            if (kind := PurePosixPath(name).suffix.lower()) in (".txt", ".json"):
                beside.setdefault(_key(name), {})[kind] = name
        described: list[tuple[str, str]] = []
        for name in members.places:
            if PurePosixPath(name).suffix.lower() in SUFFIXES:
                image_id = f"{tar}/{name}"
                images.append(Image(image_id, folder / image_id))
                both = beside.get(_key(name), {})
                caption = both.get(".txt") or both.get(".json")
                if caption and members.places[caption][1] > LARGEST_CAPTION_FILE:
                    flaw = f"the caption's file is larger than {LARGEST_CAPTION_FILE:,} bytes"
                    lines.append(Line(f"in {caption}", image_id, flaw=flaw))
                elif caption:
                    described.append((image_id, caption))
        with naming_place(folder / tar):
            texts = read_ranges(folder / tar, [members.places[name] for _, name in described])
        for (image_id, name), text in zip(described, texts, strict=True):
            lines += _lines(image_id, name, text)
    if not images:
        kinds = ", ".join(sorted(SUFFIXES))
        raise ValueError(
            f"{address_of(root)}: got no pictures in {len(tars)} tars, expected {kinds}; {_ADVICE}"
        )
    if not lines:
        return Dataset("image_tars", folder, tuple(images), (), tuple(skipped))
    captions = caption_images(root, lines, images, _ADVICE)
    return Dataset("image_tars", folder, captions.images, captions.queries, (*skipped, *captions.skipped))


def find_files(
    root: Path, suffix: str, advice: str, refused: tuple[str, ...] = ()
) -> tuple[Path, list[str], list[Skip]]:
    """Finds a dataset's files.

    Args:
        root: A folder, a file, or a path with ranges such as {0..9}; here or in an object store.
        suffix: Of the files.
        advice: What to do when there are none; ends the error messages.
        refused: Endings of files that look as if they were meant, and cannot be read.

    Returns:
        The folder, the files' names relative to it, in order, and what was left out.

    Raises:
        FileNotFoundError: If the folder or one of the files is missing.
        ValueError: If there are none.
    """
    if root.suffix == suffix and not root.is_dir():
        names = list(_expanded(root.as_posix()))
        fixed = root.as_posix().split("{")[0]
        folder = Path(fixed) if fixed.endswith("/") else Path(fixed).parent
        missing = [name for name in names if not is_remote(root) and not Path(name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{missing[0]}: no such file, one of {len(missing)} that are missing; {advice}"
            )
        return folder, [Path(name).relative_to(folder).as_posix() for name in names], []
    if is_remote(root):
        with naming_place(root):
            there, skipped = plain_names(list_stored(root))
    else:
        files, skipped = list_files(
            root, advice, frozenset(Path(f"x{end}").suffix for end in (suffix, *refused))
        )
        there = [file.id for file in files]
    compressed = [
        Skip(name, "compressed: unpack it to a plain tar") for name in there if name.endswith(refused)
    ]
    found = [name for name in there if name.endswith(suffix)]
    if not found:
        raise ValueError(
            f"{address_of(root)}: got no files ending in {suffix}, expected at least one; {advice}"
        )
    return root, found, [*skipped, *compressed]


def _expanded(text: str) -> Iterator[str]:
    """Yields the paths that ranges stand for, with as many digits as the first number has."""
    pieces = _RANGE.split(text)  # text, first, last, text, ...
    ranges = [
        [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
        for first, last in zip(pieces[1::3], pieces[2::3], strict=True)
    ]
    for numbers in itertools.product(*ranges):
        yield "".join(itertools.chain(*itertools.zip_longest(pieces[::3], numbers, fillvalue="")))


def _key(name: str) -> str:
    """Returns what names a sample: the path up to the first dot of its last part."""
    path = PurePosixPath(name)
    return (path.parent / path.name.split(".")[0]).as_posix()


def _lines(image_id: str, member: str, content: bytes) -> Iterator[Line]:
    """Takes a picture's captions from a text as it is, or from a JSON object."""
    where = f"in {member}"
    try:
        text = content.decode("utf-8-sig")
        texts = [text] if member.lower().endswith(".txt") else _texts_of(json.loads(text))
    except (ValueError, RecursionError) as error:
        yield Line(where, image_id, flaw=f"the caption cannot be read: {error}")
        return
    yield from (Line(where, image_id, str(number), text) for number, text in enumerate(texts))


def _texts_of(values: object) -> list[str]:
    found = (
        next((values[key] for key in CAPTION_KEYS if values.get(key)), [])
        if isinstance(values, dict)
        else None
    )
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"got {json.dumps(values)[:60]}, expected an object with a text as its caption")
    return texts


if __name__ == "__main__":
    sys.exit(Check("image_tars", read, HOW_TO_GET, []).main())
