"""A person searches: type, look, point at what comes closest, search again. Opens a local page.

    python interactive_search.py --dataset demo                                        # then open the address
    python interactive_search.py --dataset image_folder --root ~/Pictures --preset demo
    python interactive_search.py --dataset demo --terminal                             # without a browser
    python interactive_search.py --dataset demo --text "a dog -beach" --picture x.jpg   # once, prints files

The guide is docs/interactive.md.
"""

from __future__ import annotations

from settings import InteractiveSettings, read_settings, run_script

DATASET = "flickr30k"  # or another of docs/datasets.md
STRATEGY = (
    "auto"  # the first choice: what found most; "rewrite-anchored", "bayes" or another of docs/feedback.md
)
SHOWN = 10  # pictures a round
HOST = "127.0.0.1"  # any other address lets others in who have the token
PORT = 7860
# All other constants: python interactive_search.py --help


def main() -> None:
    """Reads the constants and the command line; opens the page, or searches once."""
    settings = read_settings(InteractiveSettings, globals()).resolved()
    index = None
    if isinstance(settings.index, str):
        from scale.milvus import MilvusIndex

        index = MilvusIndex.open(settings.index)
    if settings.text is None and settings.picture is None:
        from interactive.server import run_interactive

        run_interactive(settings, index)
        return
    from interactive.once import search_once

    for line in search_once(settings, index):
        print(line)  # noqa: T201


if __name__ == "__main__":
    raise SystemExit(run_script(main, "searches that were not saved are gone, a study's results are kept"))
