"""Draws the demo scenes: ``python -m playground.demo [--split test] [--root playground/data/demo]``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from playground.demo.generate import SPLITS, ensure_split
from settings import run_script

log = logging.getLogger(__name__)


def main() -> None:
    """Generates one split, or all that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m playground.demo", description="Draw the demo scenes.")
    parser.add_argument(
        "--split", choices=(*SPLITS, "all"), default="test", help="which scenes (default: test)"
    )
    parser.add_argument("--root", type=Path, default=Path("playground/data/demo"), help="where to write them")
    options = parser.parse_args()
    for split in SPLITS if options.split == "all" else (options.split,):
        log.info("%s", ensure_split(options.root, split))


if __name__ == "__main__":
    raise SystemExit(run_script(main))
