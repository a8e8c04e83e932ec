"""The records that travel through the system: images, queries, feedback, rounds.

All are frozen; a stage reads records and returns new ones. An image is named by its id everywhere:
the path of its file relative to the dataset's image folder, with forward slashes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Image:
    """One picture of a collection.

    Attributes:
        id: Path relative to the image folder, forward slashes; unique in the dataset.
        path: Where the file lies.
        captions: What people wrote about it (may be empty). Never shown to a strategy.
    """

    id: str
    path: Path
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Query:
    """What a person asks for, and what would satisfy them.

    Attributes:
        id: Unique in the dataset.
        text: The person's words.
        target: Id of the one image the person has in mind, or None when any relevant image will do.
        relevant: Ids of all images that answer the words; holds the target when there is one. Empty when only
            the person knows.
    """

    id: str
    text: str
    target: str | None
    relevant: frozenset[str]


@dataclass(frozen=True)
class Skip:
    """Something a reader or builder left out, and why; counted and reported, never silent."""

    what: str
    why: str


@dataclass(frozen=True)
class Dataset:
    """A collection of images with the queries asked of it.

    Attributes:
        name: Such as ``flickr30k``.
        folder: The image folder; ids are relative to it.
        images: In a fixed order.
        queries: In a fixed order.
        skipped: What the reader left out.
    """

    name: str
    folder: Path
    images: tuple[Image, ...]
    queries: tuple[Query, ...]
    skipped: tuple[Skip, ...] = ()


@dataclass(frozen=True)
class Feedback:
    """What the person pointed at: ids of liked and of disliked images, in the order shown.

    Attributes:
        liked: Ids the person picked.
        disliked: Ids the person turned down.
        said: One more thing that the person said about the image in mind; empty where nothing.
        abandons: Whether the person stops searching here; then nothing is liked, disliked or said.
    """

    liked: tuple[str, ...] = ()
    disliked: tuple[str, ...] = ()
    said: str = ""
    abandons: bool = False


@dataclass(frozen=True)
class Round:
    """One turn of one query: what was searched, what came, what the person did.

    Attributes:
        query_id: The query's id.
        number: 0 for the person's own words, then 1, 2, ...
        text: The query text that was searched.
        target: The query's target, or None.
        relevant: Relevant images that had not been shown before this round (residual collection).
        image_ids: This round's ranking, best first: at least all that was shown, at most the recorded depth.
        scores: Of ``image_ids``: cosine similarities, or what the strategy scored all images by.
        shown: How many images, from the top of ``image_ids``, the person saw.
        target_rank: 1-based rank of the target among this round's candidates; None without a target.
        liked: Ids the person picked from those shown.
        disliked: Ids the person turned down from those shown.
        captions: The captions of ``liked``, in the same order.
        said: What the person added in words; empty where nothing.
        fallback: Why the rewrite that led to ``text`` was replaced; empty when it was used as written.
        stop: Why the query ended after this round ("found", "worse", "exhausted", "abandoned"); empty while
            it goes on.
    """

    query_id: str
    number: int
    text: str
    target: str | None
    relevant: tuple[str, ...]
    image_ids: tuple[str, ...]
    scores: tuple[float, ...]
    shown: int
    target_rank: int | None
    liked: tuple[str, ...] = ()
    disliked: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    said: str = ""
    fallback: str = ""
    stop: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON object, field by field."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Round:
        """Reads what `to_json` wrote; records of before there was ``said`` have none.

        Raises:
            ValueError: If a field is missing or unknown.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        values = {"said": "", **values}
        if set(values) != names:
            differing = ", ".join(n if n.isidentifier() else repr(n) for n in sorted(names ^ set(values)))
            raise ValueError(f"not a Round record: missing or unknown fields: {differing}")
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**fields)
