"""Rows of pictures and captions, read by Hugging Face's `datasets`: tars, Parquet, image folders, the hub."""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

INSTALL = "pip install -r requirements/scale.txt"
MAX_PICTURE_BYTES = 64 << 20
MAX_CAPTION_FILE_BYTES = 1 << 20
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
PICTURE_NAMES = ("image", "picture", "img", "jpg", "png")
CAPTION_NAMES = ("caption", "captions", "text", "txt", "sentence", "sentences", "raw")
_TAR = (".tar", ".tar.gz", ".tgz")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


class UnclearColumns(ValueError):
    """No column clearly holds pictures, or one that was named is not there."""


@dataclass(frozen=True)
class Row:
    """One picture of a source: its name there, its bytes, whatever holds its captions, or what is wrong."""

    name: str
    picture: bytes | None
    captions: Any = None
    flaw: str = ""


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
    """Yields the rows of a file that `list_sources` named, from number `start` on; see `import_dataset`."""
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
                data = file.read(MAX_CAPTION_FILE_BYTES + 1)
                try:
                    if len(data) > MAX_CAPTION_FILE_BYTES:
                        raise ValueError(f"is larger than {MAX_CAPTION_FILE_BYTES:,} bytes")
                    text = data.decode("utf-8-sig")
                    texts[suffix] = text if suffix == ".txt" else json.loads(text)
                except (ValueError, RecursionError) as error:
                    flaw = f"the caption in {suffix} cannot be read: {said(error)}"
            elif suffix in PICTURE_SUFFIXES and picture is None:
                picture = file.read(MAX_PICTURE_BYTES + 1)
        yield Row(sample, picture, texts.get(".txt") or texts.get(".json"), flaw)


def _table_rows(name: str, split: str, image_column: str, caption_column: str, start: int) -> Iterator[Row]:
    """Reads the rows of a Parquet file, an image folder or a dataset of the hub."""
    import datasets  # type: ignore[import-not-found]
    from datasets.utils.file_utils import xopen  # type: ignore[import-not-found]

    if name.endswith(".parquet"):
        rows = datasets.load_dataset("parquet", data_files={"train": name}, split="train", streaming=True)
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
