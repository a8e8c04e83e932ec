"""Captions all images of a dataset ahead, so that runs find them ready; goes on where it was stopped.

    python caption_images.py                                   # the constants below
    python caption_images.py --dataset demo --preset demo      # any constant, overridden

Captions are kept in one file for all datasets and runs: playground/data/captions.sqlite. ``--engine ray`` has
the workers of a Ray cluster make them.
"""

from __future__ import annotations

import logging

from settings import CaptioningSettings, read_settings, run_script

DATASET = "flickr30k"  # or another of docs/datasets.md
# All other constants: python caption_images.py --help; for example
# PRESET = "rtx3090-int4"
# CAPTION_BATCH = 8


def main() -> None:
    """Reads the constants and the command line, and captions."""
    settings = read_settings(CaptioningSettings, globals())
    if settings.engine == "ray":
        from scale.ray_jobs import caption_on_ray

        counts = caption_on_ray(settings)
    else:
        from experiments.captions import caption_dataset

        counts = caption_dataset(settings).counts()
    logging.getLogger(__name__).info("%s", counts)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
