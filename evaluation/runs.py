"""The files of a run: rounds.jsonl, one record per line, and small files written whole or not at all."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from indexes.replace_file import naming, replace_file
from records import Round

logger = logging.getLogger(__name__)


def read_rounds(path: Path) -> list[Round]:
    """Reads the records of a run.

    A last line without its newline is what a killed process leaves; it is left out, with a warning.

    Args:
        path: A rounds.jsonl.

    Returns:
        The records in the order of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a whole line is not a record, naming file and line.
    """
    whole, torn = _split_torn(path)
    if torn:
        logger.warning(
            "%s: left out a torn last line of %d bytes; resume the run to redo it", path, len(torn)
        )
    rounds = []
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            values = _parse(line)
            if not isinstance(values, dict):
                raise ValueError(f"expected a JSON object, got {type(values).__name__}")
            rounds.append(Round.from_json(values))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; mend or remove the line") from error
    return rounds


def append_rounds(path: Path, rounds: Iterable[Round]) -> None:
    """Appends records to a rounds.jsonl and waits until they are on the disk.

    Args:
        path: The file; made when it is missing, its folder too.
        rounds: Records to add.

    Raises:
        WriteFailed: (an OSError) If the system refuses; a part may be there, the last line of it torn.
    """
    append_lines(path, [record.to_json() for record in rounds])


def append_lines(path: Path, values: Iterable[Any]) -> None:
    """Appends values to a file of one JSON a line, and waits until they are on the disk.

    A torn last line is cut off first; otherwise the next one would be glued to it.

    Args:
        path: The file; made when it is missing, its folder too.
        values: What ``json`` can write.

    Raises:
        WriteFailed: (an OSError) If the system refuses.
    """
    lines = [json.dumps(value, ensure_ascii=False, allow_nan=False) for value in values]
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, lines)


def _append(path: Path, lines: list[str]) -> None:
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        if file.read(1) not in (b"", b"\n"):
            whole, torn = _split_torn(path)
            logger.warning("%s: cut off a torn last line of %d bytes", path, len(torn))
            file.truncate(len(whole))
        file.write("".join(f"{line}\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all.

    Args:
        path: The file; its folder must exist.
        value: What ``json`` can write; NaN and infinities are refused, since other tools cannot read them.

    Raises:
        ValueError: If ``value`` holds NaN or an infinity.
    """
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON object, naming file and place.
    """
    try:
        value = _parse(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that a reader, or a crash, finds the old content or the new, never a part.

    Args:
        path: The file; its folder must exist.
        data: Its new content.

    Raises:
        WriteFailed: (an OSError) If the system refuses.
    """
    replace_file(path, lambda temporary: temporary.write_bytes(data))


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from error


def _split_torn(path: Path) -> tuple[bytes, bytes]:
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]
