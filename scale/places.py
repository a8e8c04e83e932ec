"""Pictures that are no plain files: in a tar, in a Parquet file, in an object store.

Each has a path all the same, so that an image's id stays a path relative to a folder and whatever opens
pictures opens these. The path of a tar goes on with the member's name, `shards/00007.tar/000123.jpg`; that of
a Parquet file with the row's number, `train.parquet/17`; and an address is the path that `Path` makes of it,
`s3:/bucket/a.jpg` of `s3://bucket/a.jpg`. A plain file of such a name wins.
"""

from __future__ import annotations

import functools
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

CONTAINERS = (".tar", ".parquet")
INSTALL = "pip install -r requirements/stores.txt"
ATTEMPTS = 3
FIRST_WAIT_SECONDS = 0.5
NO_RANGES = "the server gives no parts of a file; copy it here, or use another store"
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)  # two letters and more: no drive's
_LOCAL = ("file", "local")

Answer = TypeVar("Answer")


class Unreadable(OSError):
    """Something stored that cannot be had; the words say why, without the path."""


def is_remote(path: Path) -> bool:
    """Tells whether a path stands for an address, such as s3://bucket/pictures."""
    return _ADDRESS.fullmatch(path.as_posix()) is not None


def address_of(path: Path) -> str:
    """Returns the address that a path stands for; the path itself of a local one."""
    found = _ADDRESS.fullmatch(path.as_posix())
    if found is None:
        return path.as_posix()
    return f"{found[1]}:///{found[2]}" if found[1] in _LOCAL else f"{found[1]}://{found[2]}"


def file_of(path: Path) -> tuple[Path, str]:
    """Says in which file a picture is.

    In a store, which is not asked, the last part of the path that looks like such a file is it: Spark writes
    folders called `train.parquet` with files of that ending inside.

    Returns:
        The tar or Parquet file and what its path goes on with; else the path itself and nothing.
    """
    text = path.as_posix()
    if not any(f"{suffix}/" in text for suffix in CONTAINERS):
        return path, ""
    for above in path.parents:
        if above.suffix in CONTAINERS and (is_remote(path) or above.is_file()):
            return above, path.relative_to(above).as_posix()
    return path, ""


def stored_bytes(path: Path) -> bytes | None:
    """Reads a picture that is no plain file.

    Returns:
        Its bytes; None of a plain file, whether it is there or not.

    Raises:
        FileNotFoundError: If there is no such member, row or object.
        Unreadable: (an OSError) If it is cut off, or the store does not give it.
        ModuleNotFoundError: If the package that reads it is not installed.
        ValueError: If the tar or Parquet file as a whole is of no use.
    """
    file, inside = file_of(path)
    if not inside:
        return read_range(path) if is_remote(path) else None
    if file.suffix == ".tar":
        from scale.tar_members import member_bytes

        return member_bytes(file, inside)
    from scale.parquet_rows import row_bytes

    return row_bytes(file, inside)


def stored_sha256(path: Path) -> str | None:
    """Returns the hexadecimal SHA-256 of what `stored_bytes` reads; None of a plain file."""
    data = stored_bytes(path)
    return None if data is None else hashlib.sha256(data).hexdigest()


def read_range(path: Path, start: int | None = None, size: int | None = None) -> bytes:
    """Reads a file, here or in a store, or `size` bytes of it.

    Raises:
        FileNotFoundError: If it is not there.
        Unreadable: (an OSError) If there are fewer bytes, or the store does not give them.
        ModuleNotFoundError: If the package for this kind of store is not installed.
    """
    if size == 0:
        return b""  # a range of no bytes is none: servers would send the whole
    if is_remote(path):
        address = address_of(path)
        end = None if start is None or size is None else start + size
        data = asked(address, lambda store: store.cat_file(address, start=start, end=end))
    else:
        with path.open("rb") as file:
            file.seek(start or 0)
            data = file.read(-1 if size is None else size)
    return data if size is None else _whole(data, size)


def read_ranges(path: Path, places: Sequence[tuple[int, int]]) -> list[bytes]:
    """Reads pieces of a file, here or in a store, where many are asked for at a time.

    Args:
        path: The file.
        places: First byte and length of each piece.

    Raises:
        FileNotFoundError, Unreadable, ModuleNotFoundError: As `read_range`.
    """
    if not is_remote(path):
        with path.open("rb") as file:
            return [_piece(file, *place) for place in places]
    address = address_of(path)
    starts, ends = [start for start, _ in places], [start + size for start, size in places]

    def pieces(store: Any) -> list[bytes]:
        got = store.cat_ranges([address] * len(places), starts, ends, on_error="return")
        for piece in got:
            if isinstance(piece, BaseException):  # some stores return what they should raise
                raise piece
        return got

    got = asked(address, pieces)
    return [_whole(piece, size) for piece, (_, size) in zip(got, places, strict=True)]


def read_with(path: Path, read: Callable[[BinaryIO], Answer]) -> Answer:
    """Reads a file, here or in a store, with something that goes to any place of it.

    Args:
        path: The file.
        read: Is given it open, and closes it when done; called again after failures that may pass.

    Raises:
        FileNotFoundError, Unreadable, ModuleNotFoundError: As `read_range`.
    """
    if not is_remote(path):
        return read(path.open("rb"))
    address = address_of(path)

    def question(store: Any) -> Answer:
        file = store.open(address, "rb")
        if not file.seekable():
            raise Unreadable(NO_RANGES)
        try:  # some servers promise parts and then send the whole
            file.seek(max(0, file.seek(0, 2) - 1))
            file.read(1)
        except ValueError as error:
            raise Unreadable(NO_RANGES) from error
        file.seek(0)
        return read(file)

    return asked(address, question)


def list_stored(folder: Path) -> list[str]:
    """Lists the files of a store below a folder, at any depth.

    Returns:
        Their names relative to it, sorted.

    Raises:
        FileNotFoundError: If there is no such folder.
        Unreadable, ModuleNotFoundError: As `read_range`.
    """
    address = address_of(folder)

    def names(store: Any) -> list[str]:
        base = store._strip_protocol(address).rstrip("/")
        return [name[len(base) :].strip("/") for name in store.find(address) if name.startswith(f"{base}/")]

    found = sorted(asked(address, names))
    if not found:
        raise FileNotFoundError(f"{address}: no such folder, or nothing in it")
    return found


@contextmanager
def naming_place(path: Path) -> Iterator[None]:
    """Ends with the address where something cannot be had, and nothing else would name it.

    Raises:
        ValueError: In the place of Unreadable.
    """
    try:
        yield
    except Unreadable as error:
        raise ValueError(f"{address_of(path)}: {error}") from error


def asked(address: str, question: Callable[[Any], Answer]) -> Answer:
    """Asks a store, again after failures that may pass.

    Args:
        address: Of what is asked for; its beginning says which kind of store.
        question: Asked of an fsspec file system.

    Raises:
        FileNotFoundError, Unreadable, ModuleNotFoundError: As `read_range`.
    """
    store = _store(address.split("://")[0])
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return question(store)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{address}: no such file or folder in the store") from error
        except (ValueError, Unreadable):  # would come again
            raise
        except PermissionError as error:
            raise Unreadable(f"the store refuses it: {error}") from error
        except Exception as error:  # each kind of store raises its own
            if attempt == ATTEMPTS:
                said = " ".join(f"{type(error).__name__}: {error}".split())
                raise Unreadable(f"not given by the store after {ATTEMPTS} attempts: {said}") from error
            time.sleep(FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
    raise AssertionError("the last attempt returns or raises")


def _whole(data: bytes, size: int) -> bytes:
    if len(data) == size:
        return data
    raise Unreadable(f"cut off: got {len(data)} of {size} bytes" if len(data) < size else NO_RANGES)


def _piece(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return _whole(file.read(size), size)


@functools.cache
def _store(protocol: str) -> Any:
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{protocol}:// needs fsspec; run: {INSTALL}") from error
    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:
        raise ModuleNotFoundError(f"{protocol}://: {error}; see requirements/stores.txt") from error
    except ValueError as error:
        raise ValueError(f"{protocol}://: {error}; expected such as s3, gs, http or https") from error
