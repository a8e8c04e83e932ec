"""Draws the demo scenes: ``python -m playground.demo [--split test] [--root playground/data/demo]``."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from playground.demo.generate import SPLITS, ensure_split


def main() -> int:
    """Generates one split, or all that are asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m playground.demo", description="Draw the demo scenes.")
    parser.add_argument(
        "--split", choices=(*SPLITS, "all"), default="test", help="which scenes (default: test)"
    )
    parser.add_argument("--root", type=Path, default=Path("playground/data/demo"), help="where to write them")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for split in SPLITS if options.split == "all" else (options.split,):
            logging.info("%s", ensure_split(options.root, split))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        logging.error("error: %s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
