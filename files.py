"""Files that a kill cannot spoil: written whole or not at all, lines appended and flushed, folders locked."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 2**26  # of a JSON Lines file: a record takes some thousand
_CRC = b', "crc32": '


class WriteFailed(OSError):
    """The system refused a write: the disk is full, or the place may not be written."""


class FolderBusy(ValueError):
    """Another process writes in the folder."""


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Names the file in an error of the block, which a full disk does not, and says what to do.

    Args:
        path: What the block writes.

    Raises:
        WriteFailed: (an OSError) If the block ends with an OSError.
    """
    try:
        yield
    except WriteFailed:
        raise
    except OSError as error:
        reason = error.strerror or f"{error}: is the disk full?"  # NumPy gives no error number
        raise WriteFailed(
            f"{path}: cannot be written ({reason}); make room or check the permissions, then run the same "
            "command again: finished work is kept"
        ) from error


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Has the block write a file under a temporary name, flushes it to disk, then renames it to `path`.

    The temporary name is always the same, so that the next write removes what a kill left; two processes
    must therefore not write one file at the same time (see `locked_folder`). The file is made anew: a link of
    that name, which a downloaded data set may bring, is removed and not followed.

    Args:
        path: The file to create or replace; its folder exists.

    Yields:
        The temporary path, beside `path`.

    Raises:
        WriteFailed: (an OSError) If the system refuses; an old file stays as it was.
    """
    temporary = path.with_name(path.name + ".building")
    with write_errors(path):
        try:
            temporary.unlink(missing_ok=True)
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if os.name != "nt":  # so that the rename itself survives a power cut
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path and renames what it writes to `path`; see `replaced`."""
    with replaced(path) as temporary:
        write(temporary)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all; errors as `replace_file`."""
    replace_file(path, lambda temporary: temporary.write_bytes(data))


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all.

    Raises:
        ValueError: If the value holds NaN or an infinity, which other tools cannot read.
        WriteFailed: (an OSError) If the system refuses.
    """
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a JSON object; names file and place.
    """
    try:
        value = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def own_sha256(values: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a JSON object without its field "own_sha256", which is for this."""
    others = {name: value for name, value in values.items() if name != "own_sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def settings_that_differ(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], names: Iterable[str] | None = None
) -> str:
    """Compares the settings saved in a folder with those given now, of which `names` matter (None: all).

    Returns:
        For an error message, such as ``seed: 0 there, 1 now``; empty if all that matter agree. Of a SHA-256
        the first eight digits.
    """

    def short(name: str, value: Any) -> str:
        return repr(value[:8] if name.endswith("_sha256") and isinstance(value, str) else value)

    return ", ".join(
        f"{name}: {short(name, theirs.get(name))} there, {short(name, ours[name])} now"
        for name in (ours if names is None else names)
        if theirs.get(name) != ours[name]
    )


def parse_json(data: bytes) -> Any:
    """Parses JSON; the ValueError says what is wrong and where."""
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read: nested too deeply") from error


def append_lines(path: Path, values: Iterable[Any], *, checked: bool = False) -> None:
    """Appends values to a JSON Lines file, making it if it is missing, and waits until they are on the disk.

    With `checked`, values are objects, and get a last field "crc32" of the bytes before it: `read_lines` then
    refuses a line that has changed.

    A torn last line, which a kill leaves, is cut off first; otherwise the next line would be glued to it.

    Raises:
        WriteFailed: (an OSError) If the system refuses, or the file is a link; the last line may be torn.
    """
    lines = [json.dumps(value, ensure_ascii=False, allow_nan=False).encode() for value in values]
    if checked:
        lines = [line[:-1] + _CRC + b"%d}" % zlib.crc32(line[:-1]) for line in lines]
    data = b"".join(line + b"\n" for line in lines)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(path, flags, 0o666), "a+b") as file:
            end = _end_of_last_line(file)
            torn = file.seek(0, os.SEEK_END) - end
            if torn:
                log.warning("%s: cut off a torn last line of %d bytes", path, torn)
                file.truncate(end)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Reads a JSON Lines file one line at a time.

    A last line without its newline is what a killed process leaves; it is left out, with a warning.

    Yields:
        The line's number, from 1, and its value, without its "crc32" if it has one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a whole line is not JSON, is longer than `MAX_LINE_BYTES`, or has changed since it was
            written; names file and line.
    """
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE_BYTES)
            if len(line) == MAX_LINE_BYTES:
                raise ValueError(
                    f"{path}, line {number}: got more than {MAX_LINE_BYTES >> 20} MB in one line, expected "
                    "JSON Lines; remove the line"
                )
            if not line:
                return
            if not line.endswith(b"\n"):
                said = "%s: left out a torn last line of %d bytes; resume the run to redo it"
                log.warning(said, path, len(line))
                return
            try:
                yield number, parse_json(_verified(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}; mend or remove the line") from error


def make_folder(folder: Path, instead: str = "name another folder") -> None:
    """Makes a folder to write in; one that is there must be no link, and this account's, unless root asks.

    A downloaded data set may bring either, to have files elsewhere overwritten.

    Raises:
        WriteFailed: (an OSError) If it cannot be made or is not ours; says what to do `instead`.
    """
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise WriteFailed(f"{folder}: got a link, expected a folder; remove it, or {instead}")
    if os.name != "nt" and os.geteuid() not in (0, status.st_uid):
        raise WriteFailed(
            f"{folder}: got a folder of another account (user id {status.st_uid}), expected your own, since "
            f"its owner could have other files overwritten; {instead}"
        )


def _verified(line: bytes) -> bytes:
    """Returns a line without its "crc32"; ValueError if the bytes before it have another."""
    before, found, after = line.rpartition(_CRC)
    if not found:
        return line
    if after != b"%d}\n" % zlib.crc32(before):
        raise ValueError("damaged: its crc32 is another")
    return before + b"}"


@contextmanager
def locked_folder(
    folder: Path,
    doing: str = "is building this index",
    instead: str = "name another folder with --index",
) -> Iterator[None]:
    """Keeps other processes from writing in the same folder; the system unlocks it when the process ends.

    Args:
        folder: Created if missing.
        doing: What the process that holds the lock does there, for the message.
        instead: What to do other than wait.

    Raises:
        FolderBusy: (a ValueError) If another process writes there.
        WriteFailed: (an OSError) As `make_folder`.
    """
    make_folder(folder, instead)
    if os.name == "nt":  # no such locks there
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise FolderBusy(
            f"{folder}: another process {doing}; wait until it has ended, or {instead}"
        ) from error
    except OSError as error:  # some network file systems have no locks
        log.warning("%s: cannot be locked (%s): let only one process write there at a time", folder, error)
    try:
        yield
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _end_of_last_line(file: Any) -> int:
    """Returns the byte after the last line feed of a file, 0 if it has none."""
    position = file.seek(0, os.SEEK_END)
    while position > 0:
        start = max(0, position - (1 << 16))
        file.seek(start)
        found = file.read(position - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0
