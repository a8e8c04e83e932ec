"""What a strategy may know of a session: the person's words and what they pointed at. Never the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from records import Round
from retriever import SearchQuery


@dataclass(frozen=True)
class Turn:
    """One round, as the system saw it.

    Attributes:
        text: What was searched.
        shown: Ids of the images that the person saw, best first.
        liked: Ids of the picked images.
        disliked: Ids of those turned down.
        captions: Captions of ``liked``, in order; none for a picture that could not be read.
        said: What the person added in words; empty where nothing.
    """

    text: str
    shown: tuple[str, ...]
    liked: tuple[str, ...]
    disliked: tuple[str, ...]
    captions: tuple[str, ...]
    said: str = ""


@dataclass(frozen=True)
class History:
    """The rounds of a session so far, oldest first; the first turn's text is the person's own."""

    turns: tuple[Turn, ...]

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> History:
        """Takes from the records what a strategy may know."""
        return cls(
            tuple(
                Turn(
                    turn.text,
                    turn.image_ids[: turn.shown],
                    turn.liked,
                    turn.disliked,
                    tuple(caption for caption in turn.captions if caption),
                    turn.said,
                )
                for turn in rounds
            )
        )

    @property
    def said(self) -> tuple[str, ...]:
        """What the person added in words, in order."""
        return tuple(turn.said for turn in self.turns if turn.said)

    @property
    def words(self) -> str:
        """The person's own words: those of the first round, and what was added to them."""
        return ", ".join((self.turns[0].text, *self.said))

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions so far, each once, in the order in which they came."""
        return tuple(dict.fromkeys(caption for turn in self.turns for caption in turn.captions))

    @property
    def liked(self) -> tuple[str, ...]:
        """All picks so far; an image that was picked twice is there twice."""
        return tuple(image_id for turn in self.turns for image_id in turn.liked)

    @property
    def last(self) -> Turn:
        """The latest round."""
        return self.turns[-1]


@dataclass(frozen=True)
class NextQuery:
    """What to search in the next round.

    Attributes:
        search: Its text, and a vector if it is not the text's own.
        fallback: Why the strategy did something else than meant; empty when it did not.
    """

    search: SearchQuery
    fallback: str = ""


class Strategy(Protocol):
    """How a query moves from round to round.

    Attributes:
        needs_captions: Whether picked images must be captioned.
    """

    needs_captions: bool

    def next(self, histories: Sequence[History]) -> list[NextQuery]:
        """Returns the next query of each session, in order."""
        ...
