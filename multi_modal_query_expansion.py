"""Plays the rounds over Flickr30k: search, feedback, caption, rewrite, search again; recall and F1 per round.

    python multi_modal_query_expansion.py                                # the constants below
    python multi_modal_query_expansion.py --dataset demo --queries 200   # any constant, overridden

Run again, it goes on where it was stopped, or shows the finished run. Results: runs/DATASET-.../report.html.
"""

from __future__ import annotations

from settings import ExperimentSettings, read_settings, run_script

DATASET = "flickr30k"  # or another of docs/datasets.md
QUANTIZATION = None  # "int8", "int4", "fp16", "bf16", "fp32"; None: the preset's (int8)
STRATEGY = "rewrite"  # "original", "append", "rewrite", "rewrite-original" or "rewrite-anchored"
PROTOCOL = "honest"  # "honest", "reference", "paper" or "chatir"
USER = "independent"  # "independent", "caption", "reference", "ground-truth", "random" or "first"
ROUNDS = 4
# All other constants: python multi_modal_query_expansion.py --help; for example
# PRESET = "rtx3090-int4"


def main() -> None:
    """Reads the constants and the command line, and plays."""
    settings = read_settings(ExperimentSettings, globals())
    from experiments.run import run_experiment

    run_experiment(settings)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
