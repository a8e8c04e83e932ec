"""Compares strategies, simulated users and seeds on one dataset: each against scrolling; and their cost.

    python compare.py --dataset demo --split dev --caption-numbers 4
    python compare.py --dataset demo --users independent caption random first --noises 0 0.3 --seeds 3

Run again, it goes on where it was stopped. Results: runs/compare-DATASET-SPLIT-PROTOCOL/comparison.md.
"""

from __future__ import annotations

from settings import ComparisonSettings, read_settings, run_script

DATASET = "flickr30k"  # or another of docs/datasets.md
STRATEGIES = ("append", "rewrite", "rewrite-original", "rewrite-anchored")
USERS = ("independent", "reference", "random", "first")
PROTOCOL = "honest"  # "honest", "reference", "paper" or "chatir"
ROUNDS = 4
# All other constants: python compare.py --help


def main() -> None:
    """Reads the constants and the command line, and compares."""
    settings = read_settings(ComparisonSettings, globals())
    from experiments.compare import run_comparison

    run_comparison(settings)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
