"""What every person's session works with: the retriever, captions and strategies, shared by all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image

from experiments.setup import Setup
from feedback.history import Strategy
from feedback.rounds import Captions
from feedback.strategies import STRATEGIES
from interactive.errors import UserError
from retriever import Retriever

EDITABLE = tuple(name for name, entry in STRATEGIES.items() if entry.moves_query)


@dataclass(frozen=True)
class SearchContext:
    """The parts that sessions share. Models among them are used from the worker's threads alone.

    Attributes:
        name: Of the collection, for people.
        retriever: Searches it.
        captions: Of its pictures, made once ever.
        describe: Captions a picture that is not of the collection.
        strategy: A strategy by name.
        paths: Where the pictures lie, by image id.
        strategies: Names to choose from.
    """

    name: str
    retriever: Retriever
    captions: Captions
    describe: Callable[[Image.Image], str]
    strategy: Callable[[str], Strategy]
    paths: Mapping[str, Path]
    strategies: tuple[str, ...] = EDITABLE
    _known: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: Setup, strategy: str) -> SearchContext:
        """Takes what a person's session needs of an experiment's parts.

        Args:
            parts: The parts.
            strategy: What the person starts with; offered even if it ranks by scores, which nobody can edit.
        """
        settings = parts.settings
        return cls(
            name=settings.dataset if settings.split == "all" else f"{settings.dataset} {settings.split}",
            retriever=parts.retriever,
            captions=parts.captions,
            describe=parts.captions.describe,
            strategy=parts.strategy,
            paths={image.id: image.path for image in parts.dataset.images},
            strategies=EDITABLE if strategy in EDITABLE else (*EDITABLE, strategy),
        )

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The image ids, by row of the index."""
        return self.retriever.index.ids

    @cached_property
    def version(self) -> str:
        """Names the collection in the pictures' addresses, so that no browser shows another one's."""
        return hashlib.sha256("\n".join(self.ids).encode("utf-8", "surrogatepass")).hexdigest()[:8]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.ids)}

    def number_of(self, image_id: str) -> int:
        """Returns the number by which pages call a picture: its row in the index."""
        return self._numbers[image_id]

    def id_of(self, number: int) -> str:
        """Returns the id of a picture's number.

        Raises:
            UserError: If the index has no such picture.
        """
        if not 0 <= number < len(self.ids):
            raise UserError(f"picture: got number {number}, expected 0 to {len(self.ids) - 1}")
        return self.ids[number]

    def captions_of(self, image_ids: Sequence[str]) -> list[str]:
        """Returns captions, made where they are missing, and remembers them for `known`."""
        captions = self.captions.captions_of(image_ids)
        self._known.update(zip(image_ids, captions, strict=True))
        return captions

    def known(self, image_id: str) -> str | None:
        """Returns a picture's caption if it has been asked for before; asks no model."""
        return self._known.get(image_id)
