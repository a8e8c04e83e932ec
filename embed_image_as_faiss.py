"""Embeds the images of a dataset and saves them as a FAISS index.

    python embed_image_as_faiss.py                     # the constants below
    python embed_image_as_faiss.py --dataset demo      # any constant, overridden

Run again, it goes on where it was stopped, embeds what is new and drops what has vanished. No other command
writes an index. ``--captions`` also captions all images, for the strategies that compare captions;
``--engine ray`` embeds on a Ray cluster; ``python -m index.merge`` joins indexes.
"""

from __future__ import annotations

from settings import EmbeddingSettings, read_settings, run_script

DATASET = "flickr30k"  # or another of docs/datasets.md
# All other constants: python embed_image_as_faiss.py --help; for example
# ENCODER = "google/siglip2-base-patch16-224"
# IMAGE_SIZE = 224


def main() -> None:
    """Reads the constants and the command line, and embeds."""
    settings = read_settings(EmbeddingSettings, globals())
    if settings.engine == "ray":
        from scale.ray_jobs import embed_on_ray

        embed_on_ray(settings)
    else:
        from experiments.open_index import embed_dataset

        embed_dataset(settings)
    if settings.captions:
        from experiments.caption_vectors import embed_dataset_captions

        embed_dataset_captions(settings)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
