"""Searches a dataset once and prints place, similarity and file of the best pictures.

    python search_images.py --dataset demo --text "a dog on a beach"
    python search_images.py --dataset image_folder --root ~/Pictures --text "two children in the snow"

The index is opened as it stands; embed_image_as_faiss.py makes it. To give feedback: interactive_search.py
"""

from __future__ import annotations

from settings import SearchSettings, read_settings, run_script

DATASET = "flickr30k"  # or another of docs/datasets.md
SHOWN = 10  # pictures
# All other constants: python search_images.py --help


def main() -> None:
    """Reads the constants and the command line, searches and prints."""
    settings = read_settings(SearchSettings, globals())
    from experiments.dataset_index import search_dataset

    index = None
    if isinstance(settings.index, str):
        from scale.milvus import MilvusIndex

        index = MilvusIndex.open(settings.index)

    for place, (path, score) in enumerate(search_dataset(settings, index), start=1):
        name = "".join(c if c.isprintable() else "?" for c in str(path))  # no orders to the terminal
        print(f"{place:3d}  {score:.3f}  {name}")  # noqa: T201


if __name__ == "__main__":
    raise SystemExit(run_script(main))
