"""What all sessions share: retriever, captions and strategies of one collection, and the error for people."""

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
from retriever import Retriever

EDITABLE = tuple(name for name, entry in STRATEGIES.items() if entry.moves_query)


class UserError(ValueError):
    """Something that cannot be done as asked. The message names no path and may be shown to anyone."""


@dataclass(frozen=True)
class SearchContext:
    """The collection and its models. The models are only used from the threads of `interactive.visitors`.

    Attributes:
        name: Name of the collection, for people.
        retriever: Searches the collection.
        captions: Captions of its pictures; each is made once.
        describe: Captions a picture from outside the collection.
        strategy: Returns a strategy by name.
        paths: The picture files, by image id.
        strategies: Names of the strategies on offer.
    """

    name: str
    retriever: Retriever
    captions: Captions
    describe: Callable[[Image.Image], str]
    strategy: Callable[[str], Strategy]
    paths: Mapping[str, Path]
    strategies: tuple[str, ...] = EDITABLE
    _known_captions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, setup: Setup, strategy: str) -> SearchContext:
        """Takes what a person's session needs from an experiment's setup.

        Args:
            setup: The opened parts.
            strategy: The initial strategy; on offer even if it ranks by scores, which nobody can edit.
        """
        settings = setup.settings
        return cls(
            name=settings.dataset if settings.split == "all" else f"{settings.dataset} {settings.split}",
            retriever=setup.retriever,
            captions=setup.captions,
            describe=setup.captions.describe,
            strategy=setup.strategy,
            paths={image.id: image.path for image in setup.dataset.images},
            strategies=EDITABLE if strategy in EDITABLE else (*EDITABLE, strategy),
        )

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The image ids, by row of the index."""
        return self.retriever.index.ids

    @cached_property
    def version(self) -> str:
        """Identifies the collection in picture URLs, so that no browser cache shows another one's."""
        return hashlib.sha256("\n".join(self.ids).encode("utf-8", "surrogatepass")).hexdigest()[:8]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.ids)}

    def number_of(self, image_id: str) -> int:
        """Returns the number that stands for a picture in URLs and forms: its row in the index.

        Raises:
            KeyError: If the index has no such picture.
        """
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
        """Returns captions, making those that are missing, and remembers them for `known_caption`."""
        captions = self.captions.captions_of(image_ids)
        self._known_captions.update(zip(image_ids, captions, strict=True))
        return captions

    def known_caption(self, image_id: str) -> str | None:
        """Returns a picture's caption if it has been asked for before; calls no model."""
        return self._known_captions.get(image_id)
