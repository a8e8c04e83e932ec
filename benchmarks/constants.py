"""The constants of the estimates: `benchmarks/constants.yaml`, each with its unit and its source."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

CONSTANTS = Path(__file__).with_suffix(".yaml")
FIELDS = {"value", "unit", "source"}


def read_constants(changes: Iterable[tuple[str, float]] = (), path: Path = CONSTANTS) -> dict[str, float]:
    """Reads all constants by name.

    Args:
        changes: Names and values that replace the file's.
        path: The file.

    Raises:
        ValueError: If a constant lacks its unit or its source, or a change names none.
    """
    constants: dict[str, float] = {}
    for name, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        if not isinstance(entry, dict) or set(entry) != FIELDS or not all(map(str, entry.values())):
            raise ValueError(f"{path}: {name}: got {entry!r}, expected {', '.join(sorted(FIELDS))}")
        if not isinstance(entry["value"], int | float) or entry["value"] <= 0:
            raise ValueError(f"{path}: {name}: got {entry['value']!r}, expected a number above zero")
        constants[name] = float(entry["value"])
    for name, value in changes:
        if name not in constants:
            raise ValueError(f"--set: got {name!r}, expected one of {', '.join(constants)}")
        if value <= 0:
            raise ValueError(f"--set {name}: got {value}, expected a number above zero")
        constants[name] = value
    return constants
