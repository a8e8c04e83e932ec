"""One person's session: search, point, refine, step back. The rounds are the experiments' own.

The steps are those of `feedback.rounds`, with one query and a user who hands over what the person
clicked. A person's target is not known while they search, so the records have none; `interactive.verdict`
fills it in when the person declares a picture found.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from evaluation.report import mark_changes
from feedback.history import NextQuery, Strategy
from feedback.protocols import Protocol
from feedback.rounds import next_searches, search_round, take_feedback
from feedback.users import View
from interactive.errors import UserError
from interactive.search_context import SearchContext
from records import Feedback, Query, Round
from retriever import SearchQuery

MAX_SHOWN = 40  # below feedback.rounds.DEPTH: a list as long as what is shown means that no more is left
MAX_ROUNDS = 50
MAX_LETTERS = 500  # of a query
EDITED = "edited by the person"  # stands where a record says why a rewrite was replaced

Mark = Literal["like", "dislike", "none"]
Say = Callable[[str], None]


def _silently(stage: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Options:
    """What the person may set.

    Attributes:
        strategy: How feedback moves the query.
        shown: Pictures a round, at most `MAX_SHOWN`.
        threshold: Least cosine similarity of a picture that is shown, or None. No effect where the strategy
            ranks by other scores.
        shows_again: Whether pictures of earlier rounds may come again.
    """

    strategy: str
    shown: int = 10
    threshold: float | None = None
    shows_again: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.shown <= MAX_SHOWN:
            raise UserError(f"pictures shown: got {self.shown}, expected 1 to {MAX_SHOWN}")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise UserError(f"threshold: got {self.threshold}, expected -1 to 1")

    @property
    def protocol(self) -> Protocol:
        """The experiments' rules that these options stand for; the person may point at anything."""
        return Protocol(
            shown=self.shown,
            hit_rank=self.shown,
            removes_shown=not self.shows_again,
            target_may_be_picked=True,
            stops_when_worse=False,
        )


@dataclass(frozen=True)
class Turn:
    """One round, with what a record has no place for.

    Attributes:
        record: The round.
        search: What was searched: its text, with the vector or the scores that were made of it.
        strategy: What moved the query here.
        shows_again: Whether pictures of earlier rounds were candidates.
    """

    record: Round
    search: SearchQuery
    strategy: str
    shows_again: bool

    @property
    def shown_ids(self) -> tuple[str, ...]:
        """The pictures that the person sees, best first."""
        return self.record.image_ids[: self.record.shown]


class Clicks:
    """The loop's user: hands over what the person clicked."""

    def __init__(self, liked: tuple[str, ...], disliked: tuple[str, ...]) -> None:
        self._feedback = Feedback(liked, disliked)

    def judge(self, views: Sequence[View]) -> list[Feedback]:
        """Returns the clicks; there is one view."""
        return [self._feedback for _ in views]


class Session:
    """The rounds of one person.

    Attributes:
        context: The shared parts.
        options: As set last.
        turns: All rounds, round 0 first.
        at: The round that the person looks at; the next round follows it.
        proposal: A rewritten query that waits for the person's word.
        picture: (d,) unit vector of an uploaded picture that the search began with, or None.
    """

    def __init__(self, context: SearchContext, options: Options) -> None:
        self.context = context
        self.options = options
        self.turns: list[Turn] = []
        self.at = 0
        self.proposal: NextQuery | None = None
        self.picture: np.ndarray | None = None
        self._query: Query | None = None

    @property
    def now(self) -> Turn:
        """The round that the person looks at.

        Raises:
            UserError: If nothing has been searched yet.
        """
        if not self.turns:
            raise UserError("nothing has been searched yet; search first")
        return self.turns[self.at]

    @property
    def past(self) -> list[Round]:
        """The records before the round that the person looks at."""
        return [turn.record for turn in self.turns[: self.at]]

    def search(self, words: str, say: Say = _silently) -> None:
        """Begins anew with words.

        Raises:
            UserError: If they are blank or too long.
        """
        self._begin(checked_text(words), None, say)

    def search_picture(self, picture: Image.Image, words: str = "", say: Say = _silently) -> None:
        """Begins anew with a picture, and words if there are any.

        The picture's vector stays in the query for the whole session, with the same weight as the text's.
        Without words, its caption becomes the text that later rounds rewrite.

        Args:
            picture: RGB.
            words: May be blank.
            say: Told what is being done.
        """
        say("Looking at your picture")
        vector = self.context.retriever.encode_images([picture])[0]
        if not words.strip():
            say("Describing your picture")
        self._begin(checked_text(words) if words.strip() else self.context.describe(picture), vector, say)

    def _begin(self, text: str, picture: np.ndarray | None, say: Say) -> None:
        query = Query(f"person-{secrets.token_hex(6)}", text, None, frozenset())
        first = next_searches([query], [[]], self.context.strategy("original"))[0]
        turn = self._searched(query, [], first, "original", picture, say)
        self._query, self.turns, self.at, self.proposal, self.picture = query, [turn], 0, None, picture

    def mark(self, image_id: str, mark: Mark) -> None:
        """Likes or dislikes a shown picture, or takes that back.

        Raises:
            UserError: If it is not shown in this round.
        """
        record = self.now.record
        self._require_shown(image_id)
        marks = dict.fromkeys(record.liked, "like") | dict.fromkeys(record.disliked, "dislike")
        marks[image_id] = mark
        liked, disliked = (
            tuple(shown for shown in self.now.shown_ids if marks.get(shown) == kind)
            for kind in ("like", "dislike")
        )
        self.turns[self.at] = replace(
            self.now, record=replace(record, liked=liked, disliked=disliked, captions=())
        )
        self.proposal = None

    def propose(self, say: Say = _silently) -> NextQuery:
        """Has the liked pictures captioned and asks the strategy for the next query; searches nothing.

        Raises:
            UserError: If nothing has been searched, or the session is at its end.
        """
        query, strategy = self._feedback(say)
        say("Writing the next query" if self.now.record.liked else "Preparing the next round")
        self.proposal = next_searches([query], [[*self.past, self.now.record]], strategy)[0]
        return self.proposal

    def more(self, text: str | None = None, say: Say = _silently) -> None:
        """Plays the next round.

        Args:
            text: The person's version of the query; None takes the strategy's as it is.
            say: Told what is being done.

        Raises:
            UserError: If nothing has been searched, the session is at its end, or the text is unusable.
        """
        edited = None if text is None else checked_text(text)
        if edited is not None and (self.proposal is None or edited != self.proposal.search.text):
            query, _ = self._feedback(say)
            coming = NextQuery(SearchQuery(text=edited), EDITED)
        else:
            query, _ = self._going()
            coming = self.proposal or self.propose(say)
        turn = self.now
        past = [*self.past, turn.record]
        new = self._searched(query, past, coming, self.options.strategy, self.picture, say)
        self.turns = [*self.turns[: self.at + 1], new]
        self.at += 1
        self.proposal = None

    def set_options(self, options: Options, say: Say = _silently) -> None:
        """Changes the options; number shown and threshold take effect on this round at once.

        The rounds after the one looked at are dropped if this round's pictures change.

        Raises:
            UserError: If there is no such strategy.
        """
        if options.strategy not in self.context.strategies:
            raise UserError(
                f"strategy: got {options.strategy!r}, expected one of {', '.join(self.context.strategies)}"
            )
        before, self.options = self.options, options
        if options.strategy != before.strategy:
            self.proposal = None
        if not self.turns or replace(options, strategy=before.strategy) == before:
            return
        turn, query = self.now, self._query
        if query is None:
            raise UserError("nothing has been searched yet; search first")
        search = NextQuery(turn.search, turn.record.fallback)
        new = self._searched(query, self.past, search, turn.strategy, None, say)
        liked, disliked = (
            tuple(image_id for image_id in kind if image_id in new.shown_ids)
            for kind in (turn.record.liked, turn.record.disliked)
        )
        self.turns = [
            *self.turns[: self.at],
            replace(new, record=replace(new.record, liked=liked, disliked=disliked)),
        ]
        self.proposal = None

    def go_to(self, number: int) -> None:
        """Steps to another round; later ones stay until a new round follows this one.

        Raises:
            UserError: If there is no such round.
        """
        if not 0 <= number < len(self.turns):
            raise UserError(f"round: got {number}, expected 0 to {len(self.turns) - 1}")
        self.at, self.proposal = number, None

    def over(self) -> None:
        """Forgets all rounds; the options stay."""
        self.turns, self.at, self.proposal, self.picture, self._query = [], 0, None, None, None

    def resume(self, turns: Sequence[Turn], at: int, picture: np.ndarray | None) -> None:
        """Takes up rounds that were saved; see `interactive.saved`."""
        first = turns[0].record
        self._query = Query(first.query_id, first.text, None, frozenset())
        self.turns, self.at, self.proposal, self.picture = list(turns), at, None, picture

    def copy(self) -> Session:
        """Returns another session in the same state, which goes its own way."""
        other = copy.copy(self)
        other.turns = list(self.turns)
        return other

    def changes(self) -> list[tuple[str, str]]:
        """Compares this round's query with the one before; see `changes_between`."""
        text = self.now.record.text
        return changes_between(self.past[-1].text if self.past else text, text)

    def _searched(
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
            search = replace(search, vector=search.vector + picture if past else picture)
        asked, protocol = [NextQuery(search, coming.fallback)], self.options.protocol
        record = search_round([query], [past], asked, len(past), self.context.retriever, protocol)[0]
        if self.options.threshold is not None and search.scores is None:
            near = sum(score >= self.options.threshold for score in record.scores[: record.shown])
            if near < record.shown:  # what the threshold hides was not shown: it may come in later rounds
                record = replace(record, shown=near, stop="")
        return Turn(record, search, strategy, self.options.shows_again)

    def _feedback(self, say: Say) -> tuple[Query, Strategy]:
        """Puts the person's clicks on record, with captions of what they liked."""
        query, turn = self._going()
        say("Opening the models")
        strategy = self.context.strategy(self.options.strategy)
        liked = turn.record.liked
        if liked and strategy.needs_captions:
            say(
                "Describing the picture you liked" if len(liked) == 1 else "Describing the pictures you liked"
            )
        user = Clicks(liked, turn.record.disliked)
        protocol = self.options.protocol
        record = take_feedback([query], [self.past], [turn.record], user, strategy, self.context, protocol)[0]
        self.turns[self.at] = replace(turn, record=record)
        return query, strategy

    def _going(self) -> tuple[Query, Turn]:
        turn = self.now
        if self._query is None:
            raise UserError("nothing has been searched yet; search first")
        if turn.record.stop:
            raise UserError("all pictures have been shown; let them be shown again, or start over")
        if self.at + 1 >= MAX_ROUNDS:
            raise UserError(f"this was round {MAX_ROUNDS}; start over")
        return self._query, turn

    def _require_shown(self, image_id: str) -> None:
        if image_id not in self.now.shown_ids:
            raise UserError("that picture is not shown in this round")


def changes_between(before: str, after: str) -> list[tuple[str, str]]:
    """Compares two queries word by word (`evaluation.report.mark_changes`); an equal one stays as it is."""
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
