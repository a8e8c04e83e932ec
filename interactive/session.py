"""One person's search session: search, mark pictures, refine the query, step back.

Every step is a step of `feedback.rounds`, with a single query and a user that hands over the person's marks.
The target is unknown while a person searches; `interactive.study.with_target` fills it in afterwards.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from PIL import Image

from evaluation.report import mark_changes
from feedback.history import NextQuery, Strategy
from feedback.protocols import Protocol
from feedback.rounds import next_searches, search_round, take_feedback
from feedback.users import View
from interactive.search_context import SearchContext, UserError
from records import Feedback, Query, Round
from retriever import SearchQuery

MAX_SHOWN = 40  # below feedback.rounds.DEPTH: a ranking no longer than what is shown means nothing is left
MAX_ROUNDS = 50
MAX_LETTERS = 500  # of a query
EDITED = "edited by the person"  # recorded where a rewrite's fallback reason would stand

Mark = Literal["like", "dislike", "none"]
Say = Callable[[str], None]


def _silently(stage: str) -> None:
    """Reports progress to nobody."""


@dataclass(frozen=True)
class Options:
    """What the person can set.

    Attributes:
        strategy: How feedback changes the query.
        shown: Pictures per round, at most `MAX_SHOWN`.
        threshold: Minimum cosine similarity of a shown picture, or None. No effect where the strategy ranks
            by other scores.
        shows_again: Whether pictures from earlier rounds may be shown again.
    """

    strategy: str
    shown: int = 10
    threshold: float | None = None
    shows_again: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.shown <= MAX_SHOWN:
            raise UserError(f"pictures per round: got {self.shown}, expected 1 to {MAX_SHOWN}")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise UserError(f"minimum similarity: got {self.threshold}, expected -1 to 1")

    @property
    def protocol(self) -> Protocol:
        """The experiments' rules for these options; the person may mark any picture."""
        return Protocol(
            shown=self.shown,
            hit_rank=self.shown,
            removes_shown=not self.shows_again,
            target_may_be_picked=True,
            stops_when_worse=False,
        )


@dataclass(frozen=True)
class Turn:
    """One round, with what its record has no field for.

    Attributes:
        record: The round.
        search: The query as searched: its text, with the vector or scores made from it.
        strategy: The strategy that produced the query.
        shows_again: Whether pictures from earlier rounds were candidates.
        hidden: Number of pictures that the minimum similarity hides.
        set_aside: Marks of pictures that options now hide; they count again once shown again.
    """

    record: Round
    search: SearchQuery
    strategy: str
    shows_again: bool
    hidden: int = 0
    set_aside: Mapping[str, Mark] = field(default_factory=dict)

    @property
    def shown_ids(self) -> tuple[str, ...]:
        """The pictures that the person sees, best first."""
        return self.record.image_ids[: self.record.shown]

    @property
    def marks(self) -> dict[str, Mark]:
        """All marks by image id, those set aside included."""
        liked: dict[str, Mark] = dict.fromkeys(self.record.liked, "like")
        return {**self.set_aside, **liked, **dict.fromkeys(self.record.disliked, "dislike")}

    def with_marks(self, marks: Mapping[str, Mark]) -> Turn:
        """Returns the round with other marks, in the order shown; captions must be asked for again."""
        liked, disliked = (
            tuple(image_id for image_id in self.shown_ids if marks.get(image_id) == kind)
            for kind in ("like", "dislike")
        )
        set_aside = {image_id: mark for image_id, mark in marks.items() if image_id not in self.shown_ids}
        record = replace(self.record, liked=liked, disliked=disliked, captions=())
        return replace(self, record=record, set_aside=set_aside)


@dataclass(frozen=True)
class _Marks:
    """The loop's user: hands over the person's marks."""

    feedback: Feedback

    def judge(self, views: Sequence[View]) -> list[Feedback]:
        return [self.feedback for _ in views]


class Session:
    """The rounds of one person.

    Attributes:
        context: The collection and its models.
        options: The latest options.
        turns: All rounds, round 0 first.
        position: Number of the round on view; the next round follows it.
        proposal: A rewritten query that waits for the person's approval.
        picture: (d,) float32 unit vector of the uploaded picture that the search started with, or None.
    """

    def __init__(self, context: SearchContext, options: Options) -> None:
        self.context = context
        self.options = options
        self.start_over()

    def start_over(self) -> None:
        """Forgets all rounds; the options stay."""
        self._query: Query | None = None
        self.turns: list[Turn] = []
        self.position = 0
        self.proposal: NextQuery | None = None
        self.picture: np.ndarray | None = None

    @property
    def current(self) -> Turn:
        """The round on view.

        Raises:
            UserError: If nothing has been searched yet.
        """
        if not self.turns:
            raise UserError("nothing has been searched yet; search first")
        return self.turns[self.position]

    @property
    def past(self) -> list[Round]:
        """The records before the round on view."""
        return [turn.record for turn in self.turns[: self.position]]

    def records(self) -> list[Round]:
        """Returns the records up to the round on view.

        Raises:
            UserError: If nothing has been searched yet.
        """
        return [*self.past, self.current.record]

    def search(self, words: str, picture: Image.Image | None = None, say: Say = _silently) -> None:
        """Starts a new search with words, a picture, or both with equal weight.

        The picture's vector stays part of the query in all rounds. Without words, the first round searches
        the picture alone, and its caption is the text that later rounds build on.

        Args:
            words: May be blank if there is a picture.
            picture: In mode RGB.
            say: Called with what is being done.

        Raises:
            UserError: If the words are too long, or blank without a picture.
        """
        text = checked_text(words) if words.strip() or picture is None else ""
        vector = None
        if picture is not None:
            say("Looking at your picture")
            vector = self.context.retriever.encode_images([picture])[0]
        if text:
            first, added = SearchQuery(text=text), vector
        else:
            say("Describing your picture")
            text = checked_text(self.context.describe(picture)) if picture is not None else text
            first, added = SearchQuery(text=text, vector=vector), None
        query = Query(f"person-{secrets.token_hex(6)}", text, None, frozenset())
        turn = self._search(query, [], NextQuery(first), "original", added, say)
        self.start_over()
        self._query, self.turns, self.picture = query, [turn], vector

    def mark(self, image_id: str, mark: Mark) -> None:
        """Likes or dislikes a shown picture, or takes that back.

        Raises:
            UserError: If it is not shown in this round.
        """
        turn = self.current
        self.require_shown(image_id)
        self.turns[self.position] = turn.with_marks({**turn.marks, image_id: mark})
        self.proposal = None

    def propose(self, say: Say = _silently) -> NextQuery:
        """Captions the liked pictures and asks the strategy for the next query; searches nothing.

        Raises:
            UserError: If nothing has been searched, or no further round is possible.
        """
        query, strategy = self._take_feedback(say)
        say("Writing the next query" if self.current.record.liked else "Preparing the next round")
        self.proposal = next_searches([query], [self.records()], strategy)[0]
        return self.proposal

    def next_round(self, text: str | None = None, say: Say = _silently) -> None:
        """Searches the next round.

        Args:
            text: The person's version of the query; None takes the strategy's.
            say: Called with what is being done.

        Raises:
            UserError: If nothing has been searched, no further round is possible, or the text is unusable.
        """
        query = self._continuing()
        edited = None if text is None else checked_text(text)
        if edited is not None and (self.proposal is None or edited != self.proposal.search.text):
            self._take_feedback(say)
            coming = NextQuery(SearchQuery(text=edited), EDITED)
        else:
            coming = self.proposal or self.propose(say)
        turn = self._search(query, self.records(), coming, self.options.strategy, self.picture, say)
        self.turns = [*self.turns[: self.position + 1], turn]
        self.position += 1
        self.proposal = None

    def set_options(self, options: Options, say: Say = _silently) -> str:
        """Changes the options. The latest round is shown by them at once; earlier ones stay as they are.

        Returns:
            What the person should know of the effect, as a clause; empty if there is nothing to tell.

        Raises:
            UserError: If the strategy is not on offer.
        """
        if options.strategy not in self.context.strategies:
            raise UserError(
                f"strategy: got {options.strategy!r}, expected one of {', '.join(self.context.strategies)}"
            )
        before, self.options = self.options, options
        if options.strategy != before.strategy:
            self.proposal = None
        if not self.turns or self._query is None or replace(options, strategy=before.strategy) == before:
            return ""
        if self.position + 1 < len(self.turns):
            return "the new options apply from the next search on; the rounds so far stay as they are"
        turn = self.current
        coming = NextQuery(turn.search, turn.record.fallback)
        new = self._search(self._query, self.past, coming, turn.strategy, None, say)
        self.turns[self.position] = new = new.with_marks(turn.marks)
        self.proposal = None
        if len(new.set_aside) <= len(turn.set_aside):
            return ""
        if len(new.set_aside) == 1:
            return "1 marked picture is no longer shown; its mark counts again once the options show it again"
        return (
            f"{len(new.set_aside)} marked pictures are no longer shown; "
            "their marks count again once the options show them again"
        )

    def go_to(self, number: int) -> None:
        """Steps to another round; later rounds stay until a new one follows this one.

        Raises:
            UserError: If there is no such round.
        """
        if not 0 <= number < len(self.turns):
            raise UserError(f"round: got {number + 1}, expected 1 to {len(self.turns)}")
        self.position, self.proposal = number, None

    def resume(self, turns: Sequence[Turn], position: int, picture: np.ndarray | None) -> None:
        """Continues saved rounds; see `interactive.saved`."""
        first = turns[0].record
        self._query = Query(first.query_id, first.text, None, frozenset())
        self.turns, self.position, self.proposal, self.picture = list(turns), position, None, picture

    def copy(self) -> Session:
        """Returns an independent session in the same state."""
        other = copy.copy(self)
        other.turns = list(self.turns)
        return other

    def changes(self) -> list[tuple[str, str]]:
        """Compares this round's query with the previous one; see `changes_between`."""
        text = self.current.record.text
        return changes_between(self.past[-1].text if self.past else text, text)

    def require_shown(self, image_id: str) -> None:
        """Raises `UserError` if a picture is not shown in this round."""
        if image_id not in self.current.shown_ids:
            raise UserError("that picture is not shown in this round")

    def _search(
        self,
        query: Query,
        past: list[Round],
        coming: NextQuery,
        strategy: str,
        picture: np.ndarray | None,
        say: Say,
    ) -> Turn:
        say("Searching")
        search = self.context.retriever.prepared([coming.search])[0]
        if picture is not None and search.vector is not None:
            search = replace(search, vector=search.vector + picture)  # both of unit length: equal weights
        asked, protocol = [NextQuery(search, coming.fallback)], self.options.protocol
        record = search_round([query], [past], asked, len(past), self.context.retriever, protocol)[0]
        hidden = 0
        if self.options.threshold is not None and search.scores is None:
            hidden = sum(score < self.options.threshold for score in record.scores[: record.shown])
        if hidden:  # hidden pictures were not seen: later rounds may show them, so nothing is exhausted
            record = replace(record, shown=record.shown - hidden, stop="")
        return Turn(record, search, strategy, self.options.shows_again, hidden)

    def _take_feedback(self, say: Say) -> tuple[Query, Strategy]:
        """Records the person's marks, with captions of the liked pictures."""
        query, turn = self._continuing(), self.current
        say("Opening the models")
        strategy = self.context.strategy(self.options.strategy)
        liked = turn.record.liked
        if liked and strategy.needs_captions:
            say(f"Describing the {'picture' if len(liked) == 1 else 'pictures'} you liked")
        user = _Marks(Feedback(liked, turn.record.disliked))
        protocol = self.options.protocol
        record = take_feedback([query], [self.past], [turn.record], user, strategy, self.context, protocol)[0]
        self.turns[self.position] = replace(turn, record=record)
        return query, strategy

    def _continuing(self) -> Query:
        turn = self.current
        if self._query is None or turn.record.stop:
            raise UserError("all pictures have been shown; allow showing them again, or start over")
        if self.position + 1 >= MAX_ROUNDS:
            raise UserError(f"a session has at most {MAX_ROUNDS} rounds; start over")
        return self._query


def changes_between(before: str, after: str) -> list[tuple[str, str]]:
    """Compares two queries word by word (`evaluation.report.mark_changes`); equal ones stay in one piece."""
    return [("same", after)] if before == after else mark_changes(before, after)


def checked_text(text: str) -> str:
    """Returns a query on one line, without control characters.

    Raises:
        UserError: If it is blank, or longer than `MAX_LETTERS`.
    """
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    if not line:
        raise UserError("the query is empty; describe a picture in a few words")
    if len(line) > MAX_LETTERS:
        raise UserError(f"the query has {len(line)} letters, expected at most {MAX_LETTERS}")
    return line
