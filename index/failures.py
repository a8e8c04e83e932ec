"""Pictures that gave no vector: their list beside an index, and how many are too many."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path

from files import replace_file
from records import Image, Skip

log = logging.getLogger(__name__)

FAILED_FILE = "failed_images.csv"


def put_in_order(skipped: list[Skip], images: Sequence[Image]) -> None:
    """Orders what was left out as the collection is."""
    left_out = {skip.what for skip in skipped}
    place_of = {image.id: place for place, image in enumerate(images) if image.id in left_out}
    skipped.sort(key=lambda skip: place_of[skip.what])


def check_failures(count: int, skipped: Sequence[Skip], max_failed_share: float) -> None:
    """Refuses a build of which too much was left out, and warns of the rest.

    Raises:
        ValueError: If all images are broken, or a larger share than is allowed.
    """
    if not skipped:
        return
    first = f"the first is {skipped[0].what!r}: {skipped[0].why}"
    if len(skipped) == count:
        raise ValueError(f"embedding: all {count} images are broken; {first}; check the image folder")
    if len(skipped) > max_failed_share * count:
        raise ValueError(
            f"embedding: {len(skipped)} of {count} images are broken, expected at most "
            f"{max_failed_share:.0%}; {first}; all are in {FAILED_FILE}; repair or remove them, or allow "
            "a larger share with --max-failed-share"
        )
    log.warning("%d of %d images are broken and left out; %s", len(skipped), count, first)


def write_failed(folder: Path, skipped: Sequence[Skip]) -> None:
    """Writes the list into an index's folder; an empty one when nothing was left out."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["image_name", "reason"])
    writer.writerows((skip.what, skip.why) for skip in skipped)
    replace_file(folder / FAILED_FILE, lambda path: path.write_text(text.getvalue(), "utf-8", newline=""))


def read_failed(folder: Path) -> frozenset[str]:
    """Returns the names in the list of broken images; none if it is not there or not such a list."""
    try:
        with (folder / FAILED_FILE).open(encoding="utf-8", newline="") as file:
            return frozenset(row["image_name"] for row in csv.DictReader(file))
    except (FileNotFoundError, KeyError, ValueError, csv.Error) as error:
        log.warning("%s: cannot be used, trying its images again: %s", folder / FAILED_FILE, error)
        return frozenset()
