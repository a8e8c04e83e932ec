"""Copies pictures and captions out of tars, Parquet files, an image folder or a dataset of the hub.

    python -m scale.import_dataset 's3://bucket/shards/*.tar' --root ~/shards
    python -m scale.import_dataset nlphuji/flickr30k --split test --root ~/flickr

writes `FOLDER/pictures` and `FOLDER/images_captions.csv`, which every other command reads with
``--dataset image_folder --root FOLDER``. Hugging Face's `datasets` reads the source, from a disk or any
address of fsspec. Pictures are copied byte for byte. `FOLDER/.import` holds a journal and, until the end, the
pictures too: a stopped import goes on after the last finished part, and half of one is not taken for a whole.
"""

from __future__ import annotations

import argparse
import csv
import glob
import io
import itertools
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from files import append_lines, locked_folder, read_lines, replace_file, write_errors
from index.limited import limit_memory
from playground.captions import CAPTIONS_FILE, COLUMNS, MAX_COMMENT, NOT_TEXT
from playground.check import embedding_command
from playground.image_folder import SUFFIXES
from settings import run_script

log = logging.getLogger(__name__)

INSTALL = "pip install -r requirements/scale.txt"
PICTURES = "pictures"
PART_ROWS = 256  # rows between two lines of the journal: what a kill costs at most
SUFFIX_OF_FORMAT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
ROWS_AT_ONCE = 16  # unpacked of a Parquet file
MAX_MEMORY = 4 << 30  # that reading may take
MAX_PICTURE_BYTES = 64 << 20
MAX_CAPTION_FILE_BYTES = 1 << 20
PICTURE_NAMES = ("image", "picture", "img", "jpg", "png")
CAPTION_NAMES = ("caption", "captions", "text", "txt", "sentence", "sentences", "raw")
_TAR = (".tar", ".tar.gz", ".tgz")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_LISTED = 10


class UnclearColumns(ValueError):
    """No column clearly holds pictures, or one that was named is not there."""


@dataclass(frozen=True)
class Row:
    """One picture of a source: its name there, its bytes, whatever holds its captions, or what is wrong."""

    name: str
    picture: bytes | None
    captions: Any = None
    flaw: str = ""


def import_dataset(
    source: str,
    root: Path,
    split: str = "train",
    image_column: str = "",
    caption_column: str = "",
) -> Journal:
    """Copies a dataset into a folder, or the rest of it when an earlier import was stopped.

    Returns the journal, which counts what was copied and left out.

    Args:
        source: A folder, a file or a pattern such as 'shards/*.tar', on disk or at an address; or the id of
            a dataset of the hub, of which `split` is taken.
        root: Where to write; empty, or what the same import left.
        split: Of a dataset of the hub.
        image_column: Of Parquet files and the hub; found when it is clear, as is `caption_column`.
        caption_column: "caption" or the like when not given.

    Raises:
        FileNotFoundError: If the source is not there.
        ModuleNotFoundError: If `datasets`, or the package for this kind of address, is not installed.
        ValueError: If columns cannot be told, a file is damaged, or the folder holds something else.
    """
    import_datasets()
    given = {"source": source, "split": split, "image_column": image_column, "caption_column": caption_column}
    path = root / ".import" / "journal.jsonl"
    if root.exists() and not (root.is_dir() and (path.exists() or not any(root.iterdir()))):
        raise ValueError(f"{root}: there is something else already; name a new folder with --root")
    names = list_sources(source)
    with locked_folder(root, "imports into it", "name another folder with --root"):
        journal = Journal.open(path, given)
        if (root / PICTURES).exists():
            log.info("%s: the import is complete already", root)
            return journal
        pictures = path.with_name(PICTURES)
        unlimited = limit_memory(MAX_MEMORY)  # a Parquet file of 1 KB may unpack to any size
        try:
            with tqdm(desc="importing", unit="picture", initial=journal.pictures, disable=None) as bar:
                for name in names:
                    start, is_whole = journal.reached.get(name, (0, False))
                    if not is_whole:
                        rows = open_rows(name, split, image_column, caption_column, start)
                        _copy_rows(name, rows, pictures, journal, bar)
        finally:
            unlimited()
        if not journal.pictures:
            why = ": ".join(journal.skipped[0]) if journal.skipped else "they are empty"
            raise ValueError(f"{source}: got no picture in {len(names)} files, expected some; {why}")
        if journal.captions:
            replace_file(root / CAPTIONS_FILE, lambda table: _write_captions(table, path))
        with write_errors(root / PICTURES):
            pictures.rename(root / PICTURES)  # last: the folder's presence says that the import is complete
    return journal


@dataclass
class Journal:
    """What an import has done: a line of JSON for each finished part, the first says what is imported.

    Attributes:
        path: The file.
        pictures: How many were copied.
        captions: How many they have.
        uncaptioned: How many pictures have none.
        skipped: What was left out, and why.
        reached: Rows done of each file that was begun, in that order, and whether that is the whole file.
    """

    path: Path
    pictures: int = 0
    captions: int = 0
    uncaptioned: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    reached: dict[str, tuple[int, bool]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, given: dict[str, str]) -> Journal:
        """Reads the journal, or begins one; refuses that of another import."""
        if not path.exists():
            append_lines(path, [given])
        journal = cls(path)
        lines = (value for _, value in read_lines(path))
        theirs = next(lines, {})
        differing = [name for name in given if theirs.get(name) != given[name]]
        if differing:
            raise ValueError(
                f"{path.parent.parent}: holds an import with another {' and '.join(differing)} "
                f"({theirs.get(differing[0])!r}); give the same again, or name another folder with --root"
            )
        for line in lines:
            journal._count(line)
        return journal

    def add(self, **line: Any) -> None:
        """Notes a finished part, whose pictures are on the disk."""
        append_lines(self.path, [line])
        self._count(line)

    def _count(self, line: dict[str, Any]) -> None:
        self.reached[line["file"]] = line["rows"], line["is_whole"]
        self.pictures += len(line["images"])
        self.captions += sum(len(captions) for _, captions in line["images"])
        self.uncaptioned += sum(not captions for _, captions in line["images"])
        self.skipped += [(what, why) for what, why in line["skipped"]]


def _copy_rows(name: str, rows: Iterator[Row], pictures: Path, journal: Journal, bar: tqdm) -> None:
    """Copies the rest of a file of the source, part by part."""
    if name not in journal.reached:  # a resumed file finds its folder again, whatever the source lists
        journal.add(file=name, rows=0, is_whole=False, images=[], skipped=[])
    number, is_whole = journal.reached[name]
    place = f"{list(journal.reached).index(name):05}"
    with write_errors(pictures / place):
        (pictures / place).mkdir(parents=True, exist_ok=True)
    damage: Exception | None = None
    while not is_whole and damage is None:
        images: list[tuple[str, list[str]]] = []
        skipped: list[tuple[str, str]] = []
        for _ in range(PART_ROWS):
            try:
                row = next(rows, None)
            except (ModuleNotFoundError, UnclearColumns):
                raise
            except Exception as error:  # damaged files and stores make `datasets` raise nearly any type
                damage = error
                break
            if row is None:
                is_whole = True
                break
            file_name, captions, flaws = _checked(row, number)
            where = f"{name} row {number} ({NOT_TEXT.sub('?', row.name)[:80]})"
            skipped += [(where, flaw) for flaw in flaws]
            if file_name and row.picture:
                with write_errors(pictures / place / file_name):
                    (pictures / place / file_name).write_bytes(row.picture)
                images.append((f"{PICTURES}/{place}/{file_name}", captions))
                bar.update()
            number += 1
        journal.add(file=name, rows=number, is_whole=is_whole, images=images, skipped=skipped)
    if damage is not None:
        raise ValueError(
            f"{name}: cannot be read on after {number} rows: {said(damage)}; mend the file or take it out"
            " of the source, then give the same command again, which goes on from here"
        ) from damage


def _checked(row: Row, number: int) -> tuple[str, list[str], list[str]]:
    """Returns the name for a row's picture, nothing if it has none; its captions; and what is left out."""
    flaws = [row.flaw] if row.flaw else []
    if row.picture is None:
        return "", [], flaws or ["holds no picture"]
    if len(row.picture) > MAX_PICTURE_BYTES:
        return "", [], [*flaws, f"the picture is larger than {MAX_PICTURE_BYTES >> 20} MiB"]
    suffix = _suffix_of(row.picture)
    if not suffix:
        return "", [], [*flaws, f"not a picture in one of the formats {', '.join(SUFFIX_OF_FORMAT)}"]
    texts = [" ".join(text.split()) for text in texts_of(row.captions)]
    usable = [text for text in texts if 0 < len(text) <= MAX_COMMENT and not NOT_TEXT.search(text)]
    if len(usable) < len(texts):
        flaws.append(f"{len(texts) - len(usable)} captions are empty, too long or not text")
    # No path is taken from the source: its name is only a label behind our own number.
    label = re.sub(r"[^\w-]+", "_", PurePosixPath(row.name).name.split(".")[0], flags=re.ASCII)[:60]
    return f"{number:07}-{label}.{suffix}", usable, flaws


def _write_captions(path: Path, journal: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for _, line in itertools.islice(read_lines(journal), 1, None):
            for name, captions in line["images"]:
                writer.writerows((name, number, text) for number, text in enumerate(captions))


def _suffix_of(picture: bytes) -> str:
    """Returns the suffix of a picture's format, which its first bytes tell; nothing of anything else."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(picture), formats=list(SUFFIX_OF_FORMAT)) as opened:
            return SUFFIX_OF_FORMAT.get(opened.format or "", "")
    except UnidentifiedImageError:
        return ""
    except Exception:  # damaged, or too large: building the index lists it with its reason
        return "jpg"


# How a source is read


def import_datasets() -> None:
    """Imports `datasets`, or says how to install it."""
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # else loading a local file asks the hub
    try:
        import datasets  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"importing needs the package datasets; run: {INSTALL}") from error
    datasets.disable_progress_bars()


def list_sources(source: str) -> list[str]:
    """Lists the files of a source, in order; an image folder, or a dataset of the hub, is one.

    Raises:
        FileNotFoundError: If there is nothing.
        ModuleNotFoundError: If the package for this kind of address is not installed.
    """
    import fsspec

    if _HUB_ID.fullmatch(source) and not Path(source).exists() and not PurePosixPath(source).suffix:
        return [source]
    try:
        store, path = fsspec.url_to_fs(source)
        if glob.has_magic(path):
            found = sorted(store.glob(path))
        elif not path.endswith((*_TAR, ".parquet")) and store.isdir(path):
            inside = sorted(store.find(path))
            tars, tables = ([one for one in inside if one.endswith(kind)] for kind in (_TAR, ".parquet"))
            found = tars or tables or [path] * bool(inside)
        else:
            found = [path] if store.exists(path) else []
    except (ImportError, ValueError) as error:  # fsspec names the package, or the kinds of address it knows
        raise ModuleNotFoundError(f"{source}: {error}; see requirements/scale.txt") from error
    except Exception as error:  # each kind of store raises its own
        raise FileNotFoundError(f"{source}: {said(error)}; check the address and your access") from error
    if not found:
        raise FileNotFoundError(
            f"{source}: no such file or folder, or nothing in it; expected tars, Parquet files or an image "
            "folder, on disk or at an address, or the id of a dataset on the Hugging Face hub"
        )
    local = "file" in store.protocol
    return [one if local else store.unstrip_protocol(one) for one in found]


def open_rows(name: str, split: str, image_column: str, caption_column: str, start: int) -> Iterator[Row]:
    """Yields the rows of a file that `list_sources` named, from number `start` on."""
    if name.endswith(_TAR):
        return itertools.islice(_tar_rows(name), start, None)
    return _table_rows(name, split, image_column, caption_column, start)


def _tar_rows(name: str) -> Iterator[Row]:
    """Reads the samples of a WebDataset tar: neighbours whose names agree up to the first dot.

    The webdataset loader of `datasets` refuses a whole tar in which one of the first samples lacks its
    caption, or is a PNG among JPEGs; so only its walk through the members is used.
    """
    from datasets import StreamingDownloadManager  # type: ignore[import-not-found]

    def key(member: tuple[str, Any]) -> str:
        path = PurePosixPath(member[0])
        return (path.parent / path.name.split(".")[0]).as_posix()

    for sample, members in itertools.groupby(StreamingDownloadManager().iter_archive(name), key):
        picture, texts, flaw = None, {}, ""
        for path, file in members:
            suffix = PurePosixPath(path).suffix.lower()
            if suffix in (".txt", ".json"):
                try:
                    text = file.read(MAX_CAPTION_FILE_BYTES).decode("utf-8-sig")  # more is too long anyway
                    texts[suffix] = text if suffix == ".txt" else json.loads(text)
                except (ValueError, RecursionError) as error:
                    flaw = f"the caption in {suffix} cannot be read: {said(error)}"
            elif suffix in SUFFIXES and picture is None:
                picture = file.read(MAX_PICTURE_BYTES + 1)
        yield Row(sample, picture, texts.get(".txt") or texts.get(".json"), flaw)


def _table_rows(name: str, split: str, image_column: str, caption_column: str, start: int) -> Iterator[Row]:
    """Reads the rows of a Parquet file, an image folder or a dataset of the hub."""
    import datasets  # type: ignore[import-not-found]
    from datasets.utils.file_utils import xopen  # type: ignore[import-not-found]

    if name.endswith(".parquet"):
        files = {"data_files": {"train": name}, "batch_size": ROWS_AT_ONCE}  # else a whole group of rows
        rows = datasets.load_dataset("parquet", split="train", streaming=True, **files)
    elif _HUB_ID.fullmatch(name) and not Path(name).exists():
        rows = datasets.load_dataset(name, split=split, streaming=True)
    else:
        options: dict[str, Any] = {"split": "train", "streaming": True, "drop_labels": True}
        rows = datasets.load_dataset("imagefolder", data_files={"train": f"{name}/**"}, **options)
    features = rows.features or rows._resolve_features().features or {}
    image_column, caption_column = _choose_columns(name, features, image_column, caption_column)
    if isinstance(features[image_column], datasets.Image):
        rows = rows.cast_column(image_column, datasets.Image(decode=False))
    is_files = not name.endswith(".parquet")
    for number, row in enumerate(rows.skip(start), start):
        value, flaw = row[image_column], ""
        path = value.get("path") if isinstance(value, dict) else None
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None and path and is_files:  # never of Parquet, which could name any file of this machine
            try:
                with xopen(path, "rb") as file:
                    data = file.read(MAX_PICTURE_BYTES + 1)
            except FileNotFoundError:
                flaw = "the file is missing"
        yield Row(path or str(number), data, row.get(caption_column), flaw)


def _choose_columns(
    name: str, features: dict[str, Any], image_column: str, caption_column: str
) -> tuple[str, str]:
    """Returns the columns of pictures and of captions; the latter may be empty, for none."""
    there = f"{name}: got the columns {', '.join(features) or 'none'}"
    holding = [column for column, kind in features.items() if _may_hold_pictures(kind)]
    named = [column for column in holding if column.lower() in PICTURE_NAMES]
    clear = named if len(named) == 1 else holding
    image_column = image_column or (clear[0] if len(clear) == 1 else "")
    if image_column not in holding:
        expected = f"{image_column!r} to hold" if image_column else "one that clearly holds"
        raise UnclearColumns(
            f"{there}, expected {expected} pictures, as bytes or {{bytes, path}}; name it with --image-column"
        )
    if caption_column and caption_column not in features:
        raise UnclearColumns(f"{there}, expected {caption_column!r} among them; see --caption-column")
    lower = {column.lower(): column for column in features}
    found = next((lower[one] for one in CAPTION_NAMES if one in lower and lower[one] != image_column), "")
    return image_column, caption_column or found


def _may_hold_pictures(kind: Any) -> bool:
    if isinstance(kind, dict):
        return "bytes" in kind
    return type(kind).__name__ == "Image" or getattr(kind, "dtype", "") in ("binary", "large_binary")


def texts_of(value: Any) -> Iterator[str]:
    """Yields the texts of a caption: a text, a list of some, or an object that calls one "caption"."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        lower = {str(key).lower(): one for key, one in value.items()}
        yield from texts_of(next((lower[name] for name in CAPTION_NAMES if lower.get(name)), None))
    elif isinstance(value, list):
        for one in value:
            yield from texts_of(one)


def said(error: BaseException) -> str:
    """Returns an error's type and words in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def main() -> None:
    """Reads the command line, imports, and says what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m scale.import_dataset",
        description=(__doc__ or "").split("\n\n")[0],
        epilog="More: docs/scale.md",
    )
    parser.add_argument("source", help="tars, Parquet files or a folder, here or at an address; or a hub id")
    parser.add_argument("--root", type=Path, required=True, help="the folder to write")
    parser.add_argument("--split", default="train", help="of a dataset of the hub (default: train)")
    parser.add_argument("--image-column", default="", help="the column of pictures, where it is not clear")
    parser.add_argument("--caption-column", default="", help="the column of captions, if another is meant")
    options = parser.parse_args()
    done = import_dataset(**vars(options))
    for what, why in done.skipped[:_LISTED]:
        log.info("left out: %s: %s", what, why)
    if len(done.skipped) > _LISTED:
        log.info("and %d more, all of them in .import/journal.jsonl", len(done.skipped) - _LISTED)
    log.info(
        "%d pictures (%d without a caption), %d captions, %d left out",
        done.pictures,
        done.uncaptioned,
        done.captions,
        len(done.skipped),
    )
    log.info("next: %s", embedding_command("image_folder", options.root, "all"))


if __name__ == "__main__":
    raise SystemExit(run_script(main))
