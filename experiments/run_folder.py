"""A run's folder belongs to one set of settings: they are saved beside it, and others are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from files import locked_folder, read_json, settings_that_differ, write_errors, write_json
from settings import PROJECT, DialogueSettings, SessionSettings, result_settings


@contextmanager
def run_folder(
    settings: SessionSettings | DialogueSettings, identity: Mapping[str, str | int | None]
) -> Iterator[Path]:
    """Makes the run's folder, writes the settings into it, and keeps other processes out meanwhile.

    Args:
        settings: Resolved.
        identity: What the results depend on besides the settings: pictures, queries, models.

    Yields:
        The folder.

    Raises:
        ValueError: If it holds a run with other settings or data, which the message names, or another
            process plays in it.
        WriteFailed: (an OSError) If it cannot be written.
    """
    folder = settings.output
    if folder is None:
        raise ValueError("output: the settings are not resolved")
    with locked_folder(folder, "is playing this run", "choose another --output"):
        matters = result_settings(type(settings)) | set(identity)
        restart = getattr(settings, "restart", False)
        _keep_settings(folder, _ours(settings) | dict(identity), matters, restart)
        yield folder


def check_run_folder(settings: SessionSettings | DialogueSettings) -> None:
    """Refuses, before anything is loaded, a folder of other settings; `run_folder` looks at models and data.

    Raises:
        ValueError: If the output folder holds a run with other settings that is not to be discarded.
    """
    if settings.output is not None and not getattr(settings, "restart", False):
        _check_settings(settings.output, _ours(settings), result_settings(type(settings)))


def _ours(settings: SessionSettings | DialogueSettings) -> dict[str, Any]:
    fields = (field.name for field in dataclasses.fields(settings) if field.name != "restart")
    return {name: _jsonable(getattr(settings, name)) for name in fields}


def _keep_settings(folder: Path, ours: dict[str, Any], matters: Set[str], restart: bool) -> None:
    path = folder / "settings.json"
    if restart:
        with write_errors(folder):
            for old in (*folder.glob("*rounds.jsonl"), folder / "study.csv", folder / "costs.json", path):
                old.unlink(missing_ok=True)
    _check_settings(folder, ours, matters)
    write_json(path, ours)


def _check_settings(folder: Path, ours: dict[str, Any], matters: Set[str]) -> None:
    path = folder / "settings.json"
    if path.is_file() and any(folder.glob("*rounds.jsonl")):  # a run that never began has nothing to mix up
        differing = settings_that_differ(read_json(path), ours, [name for name in ours if name in matters])
        if differing:
            again = "; embed changed pictures again, with embed_image_as_faiss.py"
            raise ValueError(
                f"{folder} holds a run with other settings or data ({differing}); choose another --output, "
                f"or --restart{again if 'image_files_sha256' in differing else ''}"
            )


def _jsonable(value: Any) -> Any:
    if isinstance(value, Path):
        return value.relative_to(PROJECT).as_posix() if value.is_relative_to(PROJECT) else value.as_posix()
    return list(value) if isinstance(value, tuple) else value
