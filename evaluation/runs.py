"""The records of a run: rounds.jsonl, one round a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from files import append_lines, read_lines
from records import Round


def read_rounds(path: Path) -> list[Round]:
    """Reads all records of a run; errors as `stream_rounds`."""
    return list(stream_rounds(path))


def stream_rounds(path: Path) -> Iterator[Round]:
    """Reads the records of a run one at a time, in the order of the file.

    A last line without its newline is what a killed process leaves; it is left out, with a warning.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a whole line is not a record, or has changed since; names file and line.
    """
    for number, values in read_lines(path):
        try:
            if not isinstance(values, dict):
                raise ValueError(f"expected a JSON object, got {type(values).__name__}")
            yield Round.from_json(values)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; mend or remove the line") from error


def append_rounds(path: Path, rounds: Iterable[Round]) -> None:
    """Appends records to a rounds.jsonl and waits until they are on the disk; errors as `append_lines`."""
    append_lines(path, [record.to_json() for record in rounds], checked=True)
