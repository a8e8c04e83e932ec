"""Compares BLIP's outputs with those a reference recorded: ``python -m BLIP.verify FOLDER``.

The folder holds weights and the reference's recorded outputs (see `BLIP.recorded`). Exit status: 0 when all
agree, 1 when any differs, 2 when the folder cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: None takes those of the process.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m BLIP.verify", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "folder", type=Path, help="holds itm.* and/or captioner.*, their outputs and vocab.txt"
    )
    folder: Path = parser.parse_args(arguments).folder

    from BLIP.recorded import ATOL, RTOL, check_folder  # torch takes seconds to import, --help should not

    try:
        results = check_folder(folder)
    except (OSError, ValueError) as error:
        print(f"cannot verify: {error}", file=sys.stderr)  # noqa: T201
        return 2
    lines = []
    for check in results.checks:
        number = f"{check.difference:.2e}" if check.unit == "max abs diff" else f"{check.difference:g}"
        verdict = "ok" if check.passed else f"DIFFERS {check.note}".rstrip()
        lines.append(f"{check.source:20} {check.name:34} {check.unit} {number:10} {verdict}")
    if results.inputs:
        lines.append(f"inputs, not compared: {', '.join(results.inputs)}")
    lines += [f"NOT CHECKED {what}" for what in results.unchecked]
    failed = sum(not check.passed for check in results.checks)
    verdict = "all agree" if not failed else f"{failed} DIFFER"
    unchecked = f"; {len(results.unchecked)} not checked" if results.unchecked else ""
    tolerance = f"floats within {ATOL:g} + {RTOL:g} x |recorded|, ids exact"
    lines.append(f"{verdict} of {len(results.checks)} ({tolerance}){unchecked}")
    print("\n".join(lines))  # noqa: T201
    return 1 if failed or not results.checks else 0


if __name__ == "__main__":
    sys.exit(main())
