"""Pictures in the rows of Parquet files, as Hugging Face's datasets keep them.

A row is read with its row group, which stays in memory for the rows beside it.
"""

from __future__ import annotations

import bisect
import functools
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scale.places import INSTALL, Unreadable, address_of, asked, is_remote, read_range, read_with

COLUMNS_FILE = "columns.json"
PICTURE_NAMES = ("image", "picture", "img", "jpg", "png")
CAPTION_NAMES = ("caption", "captions", "text", "txt", "sentence", "sentences")
MAX_FILES = 64  # kept open
MAX_GROUPS = 4  # kept in memory


@dataclass(frozen=True)
class Rows:
    """A Parquet file of pictures.

    Attributes:
        path: The file.
        file: pyarrow's, open.
        picture: Column of the pictures' bytes, or of structures that have a field of them.
        leaf: What is read of it: the column, or its field.
        caption: Column of texts or of lists of texts; None when there is none.
        firsts: The first row of each row group, and last the number of rows.
    """

    path: Path
    file: Any
    picture: str
    leaf: str
    caption: str | None
    firsts: tuple[int, ...]

    def captions(self) -> Iterator[tuple[str, ...]]:
        """Yields the texts of each row.

        Raises:
            Unreadable: (an OSError) If a row group is damaged, or the store does not give it.
        """
        for group in range(len(self.firsts) - 1):
            if self.caption is None:
                yield from [()] * (self.firsts[group + 1] - self.firsts[group])
                continue
            for value in _read_group(self, group, self.caption).to_pylist():
                values = value if isinstance(value, list) else [value]
                yield tuple(text for text in values if isinstance(text, str) and text.strip())


_groups: OrderedDict[tuple[Path, int, int, int], Any] = OrderedDict()
_lock = threading.Lock()


def open_rows(path: Path) -> Rows:
    """Opens a Parquet file; kept for the next time, until a local file changes.

    Which columns are read is said by `columns.json` beside the file, {"image": NAME, "caption": NAME}, or
    found: the one column of bytes, or the one of those called "image" or the like; and "caption" or the like.

    Raises:
        FileNotFoundError: If it is missing.
        ModuleNotFoundError: If pyarrow is not installed.
        Unreadable: (an OSError) If the store does not give it.
        ValueError: If it is no Parquet file, or its columns cannot be told.
    """
    return _open_rows(*_version(path))


def row_bytes(path: Path, name: str) -> bytes:
    """Reads the picture of one row.

    Args:
        path: The file.
        name: The row's number, from 0.

    Raises:
        FileNotFoundError: If there is no such row.
        Unreadable: (an OSError) If the row holds no bytes, or its row group is damaged.
        ModuleNotFoundError, ValueError: As `open_rows`.
    """
    rows = open_rows(path)
    if not name.isdecimal() or int(name) >= rows.firsts[-1]:
        raise FileNotFoundError(f"{address_of(path)} has no row {name}")
    row = int(name)
    group = bisect.bisect_right(rows.firsts, row) - 1
    value = _group(rows, group)[row - rows.firsts[group]].as_py()
    if isinstance(value, dict):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise Unreadable("the row holds no bytes of a picture")
    return value


def _group(rows: Rows, group: int) -> Any:
    """Reads the pictures of a row group, one thread at a time: the others want the same one."""
    key = (*_version(rows.path), group)
    with _lock:
        if key not in _groups:
            _groups[key] = _read_group(rows, group, rows.leaf)
            while len(_groups) > MAX_GROUPS:
                _groups.popitem(last=False)
        _groups.move_to_end(key)
        return _groups[key]


def _read_group(rows: Rows, group: int, column: str) -> Any:
    def read(store: Any = None) -> Any:
        return rows.file.read_row_group(group, columns=[column]).column(0)

    try:
        return asked(address_of(rows.path), read) if is_remote(rows.path) else read()
    except Exception as error:  # damaged pages make pyarrow raise several types
        raise Unreadable(f"row group {group} cannot be read: {' '.join(str(error).split())}") from error


def _version(path: Path) -> tuple[Path, int, int]:
    if is_remote(path):
        return path, 0, 0
    status = path.stat()
    return path, status.st_size, status.st_mtime_ns


@functools.lru_cache(MAX_FILES)
def _open_rows(path: Path, size: int, changed: int) -> Rows:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"Parquet needs pyarrow; run: {INSTALL}") from error
    try:
        file = read_with(path, pyarrow.parquet.ParquetFile)
    except (FileNotFoundError, PermissionError, Unreadable, ModuleNotFoundError):
        raise
    except Exception as error:  # a damaged footer makes pyarrow raise several types
        raise ValueError(
            f"{address_of(path)}: no whole Parquet file: {' '.join(str(error).split())}"
        ) from error
    schema = file.schema_arrow
    given = _given_columns(path.parent)
    for name in given.values():
        if name not in schema.names:
            raise ValueError(
                f"{address_of(path)}: got the columns {', '.join(schema.names)}, expected {name!r} among"
                f" them, as {COLUMNS_FILE} says"
            )
    leaves = {field.name: leaf for field in schema if (leaf := _leaf_of(field))}
    named = [name for name in schema.names if name.lower() in PICTURE_NAMES and name in leaves]
    clear = next((names for names in (named, list(leaves)) if len(names) == 1), [""])
    picture = given.get("image", clear[0])
    if picture not in leaves:
        raise ValueError(
            f"{address_of(path)}: got the columns {', '.join(schema.names)}, expected one that clearly holds"
            f' pictures, as bytes or {{bytes, path}}; write {{"image": NAME}} into {COLUMNS_FILE} beside it'
        )
    texts = [field.name for field in schema if _is_text(field.type)]
    by_name = {name.lower(): name for name in texts}
    caption = given.get("caption") or next((by_name[n] for n in CAPTION_NAMES if n in by_name), None)
    if caption is not None and caption not in texts:
        raise ValueError(
            f"{address_of(path)}: got {schema.field(caption).type} in the column {caption!r}, expected texts"
            f" or lists of texts; name another in {COLUMNS_FILE} beside it"
        )
    counts = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
    firsts = tuple(sum(counts[:number]) for number in range(len(counts) + 1))
    return Rows(path, file, picture, leaves[picture], caption, firsts)


def _leaf_of(field: Any) -> str:
    """Returns what to read of a column of pictures; nothing of another column."""
    from pyarrow import types

    kind, leaf = field.type, field.name
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind, leaf = kind.field("bytes").type, f"{leaf}.bytes"
    return leaf if types.is_binary(kind) or types.is_large_binary(kind) else ""


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind)


@functools.cache
def _given_columns(folder: Path) -> dict[str, str]:
    path = folder / COLUMNS_FILE
    try:
        values = json.loads(read_range(path))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{address_of(path)}: got no JSON ({error})") from error
    texts = isinstance(values, dict) and all(isinstance(value, str) for value in values.values())
    if not texts or not set(values) <= {"image", "caption"}:
        raise ValueError(
            f'{address_of(path)}: got {json.dumps(values)[:80]}, expected {{"image": NAME, "caption": NAME}}'
        )
    return values
