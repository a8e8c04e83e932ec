"""One person's search session: search, mark pictures, refine the query, step back.

Every step is a step of `feedback.rounds`, with a single query and a user that hands over the person's marks.
The target is unknown while a person searches; `interactive.study.with_target` fills it in afterwards.
"""

from __future__ import annotations

import copy
import hashlib
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from evaluation.report import mark_changes
from experiments.captions import GivenCaptions
from experiments.setup import Setup
from feedback.history import NextQuery, Strategy
from feedback.protocols import Protocol
from feedback.rounds import next_searches, search_round, take_feedback
from feedback.strategies import STRATEGIES
from feedback.users import View
from generation.captions import ImageCaptions
from index.decode import as_jpeg, open_image
from interactive.match import MatchScale
from interactive.words import Signed, beside_words, doubt, split_signs
from records import Feedback, Query, Round
from retriever import Retriever, SearchQuery

EDITABLE = tuple(name for name, entry in STRATEGIES.items() if entry.moves_query)
MAX_SHOWN = 100  # pictures that a person may ask for at a time
MAX_PICTURES = 10_000  # in one round, with all that was appended
MAX_ROUNDS = 50
LARGE_PIXELS = 1024  # longest side of an enlarged picture, and of an uploaded one that is kept
MAX_LETTERS = 500  # of a query
EDITED = "edited by the person"  # recorded where a rewrite's fallback reason would stand

Mark = Literal["like", "dislike", "none"]
Say = Callable[[str], None]


def _silently(stage: str) -> None:
    """Reports progress to nobody."""


class UserError(ValueError):
    """Something that cannot be done as asked. The message names no path and may be shown to anyone."""


@dataclass(frozen=True)
class SearchContext:
    """What all sessions share. The models are only used from the threads of `interactive.visitors`.

    Attributes:
        name: Name of the collection, for people.
        retriever: Searches the collection.
        captions: Captions of its pictures, each made once, and of a picture from outside.
        strategy: Returns a strategy by name.
        paths: The picture files, by image id.
        strategies: Names of the strategies on offer.
    """

    name: str
    retriever: Retriever
    captions: ImageCaptions | GivenCaptions
    strategy: Callable[[str], Strategy]
    paths: Mapping[str, Path]
    strategies: tuple[str, ...] = EDITABLE
    _known_captions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, setup: Setup) -> SearchContext:
        """Takes what a person's session needs from an experiment's setup.

        The settings' own strategies are on offer even if they rank by scores, which nobody can edit.
        """
        settings = setup.settings
        return cls(
            name=settings.dataset if settings.split == "all" else f"{settings.dataset} {settings.split}",
            retriever=setup.retriever,
            captions=setup.captions,
            strategy=setup.strategy,
            paths={image.id: image.path for image in setup.dataset.images},
            strategies=tuple(dict.fromkeys((*EDITABLE, *setup.strategies))),
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
    def match_scale(self) -> MatchScale:
        """Puts scores on the scale that people see."""
        return MatchScale(self.retriever)

    def number_of(self, image_id: str) -> int:
        """Returns a picture's number in URLs and forms: its row in the index; KeyError if it is not there."""
        return self.retriever.index.row_of[image_id]

    def id_of(self, number: int) -> str:
        """Returns the id of a picture's number; UserError if the index has no such picture."""
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


@dataclass(frozen=True)
class Options:
    """What the person can set.

    Attributes:
        strategy: How feedback changes the query.
        shown: Pictures per round.
        threshold: Minimum match of a shown picture, on the scale of `interactive.match`, or None.
        shows_again: Whether pictures from earlier rounds may be shown again.
    """

    strategy: str
    shown: int = 10
    threshold: float | None = None
    shows_again: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.shown <= MAX_PICTURES:
            raise UserError(f"pictures per round: got {self.shown}, expected 1 to {MAX_PICTURES}")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise UserError(f"minimum match: got {self.threshold}, expected a number")

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
        options: By which it was searched; their strategy is the one that produced the query, and `shown`
            counts what was appended.
        matches: Of the record's images: their scores on one scale, see `interactive.match`.
        marks: All marks by image id. Those of pictures that the options now hide count again once shown.
    """

    record: Round
    search: SearchQuery
    options: Options
    matches: tuple[float, ...]
    marks: Mapping[str, Mark] = field(default_factory=dict)

    @property
    def shown_ids(self) -> tuple[str, ...]:
        """The pictures that the person sees, best first."""
        return self.record.image_ids[: self.record.shown]

    @property
    def hidden(self) -> int:
        """Number of pictures that the minimum similarity hides."""
        return min(self.options.shown, len(self.record.image_ids)) - self.record.shown

    def with_marks(self, marks: Mapping[str, Mark]) -> Turn:
        """Returns the round with other marks, in the order shown; captions must be asked for again."""
        liked, disliked = (
            tuple(image_id for image_id in self.shown_ids if marks.get(image_id) == kind)
            for kind in ("like", "dislike")
        )
        record = replace(self.record, liked=liked, disliked=disliked, captions=())
        return replace(self, record=record, marks=dict(marks))


@dataclass(frozen=True)
class _Marks:
    """The loop's user: hands over the person's marks."""

    feedback: Feedback

    def judge(self, views: Sequence[View]) -> list[Feedback]:
        return [self.feedback for _ in views]


class Session:
    """The rounds of one person.

    What cannot be done raises UserError: no search yet, no further round, text that is blank or too long, a
    picture that is not shown.

    Attributes:
        context: The collection and its models.
        options: The latest options.
        turns: All rounds, round 0 first.
        position: Number of the round on view; the next round follows it.
        proposal: A rewritten query that waits for the person's approval.
        upload: The uploaded picture that the search started with, a JPEG, or None.
        similar: Id of the collection's picture that it started with, or None.
        typed: The words that it started with, signs included; may be empty beside a picture.
        signed: The words with a sign, which count in every round.
        added: (d,) float32 vector of picture and signed words, added to every round's query, or None.
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
        self.upload: bytes | None = None
        self.similar: str | None = None
        self.typed = ""
        self.signed: tuple[Signed, ...] = ()
        self.added: np.ndarray | None = None

    @property
    def id(self) -> str:
        """Names the search; another one once rounds would be lost. Empty before the first."""
        return self._query.id if self._query else ""

    @property
    def current(self) -> Turn:
        """The round on view."""
        if not self.turns:
            raise UserError("nothing has been searched yet; search first")
        return self.turns[self.position]

    @property
    def past(self) -> list[Round]:
        """The records before the round on view."""
        return [turn.record for turn in self.turns[: self.position]]

    @property
    def needs_models(self) -> bool:
        """Whether the next round asks captioner or language model."""
        if not self.turns or self.proposal:
            return False
        entry = STRATEGIES[self.options.strategy]
        liked = any(record.liked for record in self.records())
        return not self.turns[0].record.text or (liked and (entry.needs_captioner or entry.needs_rewriter))

    def records(self) -> list[Round]:
        """Returns the records up to the round on view."""
        return [*self.past, self.current.record]

    def search(
        self,
        words: str,
        picture: Image.Image | None = None,
        similar: str | None = None,
        say: Say = _silently,
    ) -> str:
        """Starts a new search with words, a picture from outside or of the collection, or words and picture.

        Words and picture have equal weight, and the picture stays part of the query in all rounds. Without
        words, the first round searches the picture alone; later rounds build on its caption. Words with a
        sign count in all rounds (`interactive.signed_words`).

        Returns a clause about words that the encoder does not know; empty if there is nothing to tell.
        """
        has_picture = picture is not None or similar is not None
        typed = checked_text(words) if words.strip() or not has_picture else ""
        text, signed = split_signs(typed)
        if not text and not has_picture:
            raise UserError(f"got only words with a sign ({typed}); say what to look for, too")
        vector = None
        if picture is not None:
            say("Looking at your picture")
            vector = self.context.retriever.encode_images([picture])[0]
        elif similar is not None:
            vector = self.context.retriever.vectors_of([similar])[0]
        added = beside_words(signed, vector, self.context.retriever)
        first = SearchQuery(text=text) if text else SearchQuery(vector=added)
        query = Query(_new_id(), text, None, frozenset())
        options = replace(self.options, strategy="original")
        turn = self._search(query, [], NextQuery(first), options, added if text else None, say)
        self.start_over()
        self._query, self.turns, self.signed, self.similar = query, [turn], signed, similar
        self.typed = typed
        self.upload = as_jpeg(picture, LARGE_PIXELS) if picture is not None else None
        self.added = added
        return doubt(text, self.context.retriever.encoder)

    def mark(self, image_id: str, mark: Mark) -> None:
        """Likes or dislikes a shown picture, or takes that back."""
        turn = self.current
        self.require_shown(image_id)
        self.turns[self.position] = turn.with_marks({**turn.marks, image_id: mark})
        self.proposal = None

    def propose(self, say: Say = _silently) -> NextQuery:
        """Captions the liked pictures and asks the strategy for the next query; searches nothing."""
        query, strategy = self._take_feedback(say)
        say("Writing the next query" if self.current.record.liked else "Preparing the next round")
        self.proposal = next_searches([query], [self.records()], strategy)[0]
        return self.proposal

    def next_round(self, text: str | None = None, say: Say = _silently) -> None:
        """Searches the next round with the person's version of the query; None takes the strategy's."""
        self._continuing()
        edited = None if text is None else checked_text(text)
        if edited is not None and (self.proposal is None or edited != self.proposal.search.text):
            edited, signed = split_signs(edited)
            if not edited:
                raise UserError("got only words with a sign; say what to look for, too")
            self.signed += signed
            self.added = beside_words(signed, self.added, self.context.retriever)
            self._take_feedback(say)
            coming = NextQuery(SearchQuery(text=edited), EDITED)
        else:
            coming = self.proposal or self.propose(say)
        self._fork()
        turn = self._search(self._continuing(), self.records(), coming, self.options, self.added, say)
        self.turns = [*self.turns[: self.position + 1], turn]
        self.position += 1
        self.proposal = None

    def show_more(self, say: Say = _silently) -> None:
        """Appends the next best pictures to the round on view, as many as the options say."""
        self._continuing()
        turn = self.current
        self._fork()
        self._search_again(replace(turn.options, shown=turn.options.shown + self.options.shown), say)

    def set_options(self, options: Options, say: Say = _silently) -> str:
        """Changes the options. The latest round is shown by them at once; earlier ones stay as they are.

        Returns a clause about the effect, for the person; empty if there is nothing to tell.
        """
        if options.strategy not in self.context.strategies:
            raise UserError(
                f"strategy: got {options.strategy!r}, expected one of {', '.join(self.context.strategies)}"
            )
        before, self.options = self.options, options
        if options.strategy != before.strategy:
            self.proposal = None
        if not self.turns or replace(options, strategy=before.strategy) == before:
            return ""
        if self.position + 1 < len(self.turns):
            return "the new options apply from the next search on; the rounds so far stay as they are"
        used = self.current.options
        shown = used.shown if options.shown == before.shown else options.shown  # what was appended stays
        self._search_again(replace(options, strategy=used.strategy, shown=shown), say)
        return ""

    def go_to(self, number: int) -> None:
        """Steps to another round; later rounds stay until a new one follows this one."""
        if not 0 <= number < len(self.turns):
            raise UserError(f"round: got {number + 1}, expected 1 to {len(self.turns)}")
        self.position, self.proposal = number, None

    def replay(
        self, query_id: str, coming: NextQuery, options: Options, marks: Mapping[str, Mark],
        captions: Sequence[str],
    ) -> None:  # fmt: skip
        """Adds a saved round by searching it again; a ValueError if search or captions do not fit."""
        self._query = self._query or Query(query_id, coming.search.text or "", None, frozenset())
        past = [turn.record for turn in self.turns]
        turn = self._search(self._query, past, coming, options, None, _silently).with_marks(marks)
        if len(captions) not in (0, len(turn.record.liked)):
            raise ValueError("captions do not fit")
        record = replace(turn.record, captions=tuple(captions))
        self.turns.append(replace(turn, record=record, search=coming.search))

    def copy(self) -> Session:
        """Returns an independent session in the same state."""
        other = copy.copy(self)
        other.turns = list(self.turns)
        return other

    def changes(self) -> list[tuple[str, str]]:
        """Compares this round's query with the one before; see `changes_between`."""
        text = self.current.record.text
        return changes_between(self.past[-1].text if self.past else text, text)

    def liked_before(self) -> tuple[str, ...]:
        """Returns the pictures liked in earlier rounds, the latest first."""
        return tuple(dict.fromkeys(one for record in reversed(self.past) for one in record.liked))

    def require_shown(self, image_id: str) -> None:
        """Raises `UserError` if a picture is not shown in this round."""
        if image_id not in self.current.shown_ids:
            raise UserError("that picture is not shown in this round")

    def _search(
        self, query: Query, past: list[Round], coming: NextQuery, options: Options, added: np.ndarray | None,
        say: Say,
    ) -> Turn:  # fmt: skip
        say("Searching")
        search = self.context.retriever.prepared([coming.search])[0]
        if added is not None and search.vector is not None:
            search = replace(search, vector=search.vector + added)  # of unit length: equal weights
        elif added is not None:
            search = replace(search, scores=self._beside_scores(search, added))
        asked = [NextQuery(search, coming.fallback)]
        record = search_round(
            [query], [past], asked, len(past), self.context.retriever, options.protocol
        )[0]  # fmt: skip
        seen = {image_id for each in past for image_id in each.image_ids[: each.shown]}
        if record.stop and len(self.context.ids) > len(seen) + record.shown:
            record = replace(record, stop="")  # the ranking ended with what is shown, the collection did not
        matches = self.context.match_scale.of(search, record.scores)
        if options.threshold is not None:
            hidden = sum(match < options.threshold for match in matches[: record.shown])
            if hidden:  # hidden pictures were not seen: later rounds may show them, so nothing is exhausted
                record = replace(record, shown=record.shown - hidden, stop="")
        return Turn(record, search, options, matches)

    def _beside_scores(self, search: SearchQuery, added: np.ndarray) -> np.ndarray:
        """Adds what a picture and signed words say to a query's scores, (images,) float32.

        It is as strong beside the scores as it would be beside the cosines of the query's words.
        """
        retriever = self.context.retriever
        vectors, scores = retriever.vectors_of(self.context.ids), np.asarray(search.scores)
        cosines = vectors @ retriever.encode_texts([search.text or ""])[0]
        return scores + vectors @ added * (scores.std() / (cosines.std() or 1))

    def _search_again(self, options: Options, say: Say) -> None:
        """Searches the round on view by other options; its marks stay, later rounds do not."""
        turn = self.current
        coming = NextQuery(turn.search, turn.record.fallback)
        query = self._query or Query(turn.record.query_id, turn.record.text, None, frozenset())
        new = self._search(query, self.past, coming, options, None, say)
        self.turns = [*self.turns[: self.position], new.with_marks(turn.marks)]
        self.proposal = None

    def _fork(self) -> None:
        """Goes on under another id where later rounds are about to be replaced.

        Whoever keeps the session as it was, by its id, then loses none of them.
        """
        if self.position + 1 == len(self.turns):
            return
        self._query = replace(self._continuing(), id=_new_id())
        self.turns = [
            replace(turn, record=replace(turn.record, query_id=self._query.id)) for turn in self.turns
        ]

    def _take_feedback(self, say: Say) -> tuple[Query, Strategy]:
        """Records the person's marks, with captions of the liked pictures."""
        self._describe_start(say)
        query, turn = self._continuing(), self.current
        strategy = self.context.strategy(self.options.strategy)
        liked = turn.record.liked
        if liked and strategy.needs_captions:
            say(f"Describing the {'picture' if len(liked) == 1 else 'pictures'} you liked")
        user = _Marks(Feedback(liked, turn.record.disliked))
        protocol = self.options.protocol
        record = take_feedback([query], [self.past], [turn.record], user, strategy, self.context, protocol)[0]
        self.turns[self.position] = replace(turn, record=record)
        return query, strategy

    def _describe_start(self, say: Say) -> None:
        """Gives a search that began with a picture alone that picture's caption as its words."""
        first = self.turns[0] if self.turns else self.current
        if first.record.text or self._query is None:
            return
        say("Describing the picture you began with")
        if self.upload is not None:
            text = self.context.captions.describe(open_image(self.upload))
        else:
            text = self.context.captions_of([self.similar or ""])[0]
        text = checked_text(text)
        self._query = replace(self._query, text=text)
        record, search = replace(first.record, text=text), replace(first.search, text=text)
        self.turns[0] = replace(first, record=record, search=search)

    def _continuing(self) -> Query:
        turn = self.current
        if self._query is None or turn.record.stop:
            raise UserError("all pictures have been shown; allow showing them again, or start over")
        if self.position + 1 >= MAX_ROUNDS:
            raise UserError(f"a session has at most {MAX_ROUNDS} rounds; start over")
        return self._query


def _new_id() -> str:
    return f"person-{secrets.token_hex(6)}"


def changes_between(before: str, after: str) -> list[tuple[str, str]]:
    """Compares two queries word by word (`evaluation.report.mark_changes`); equal ones stay in one piece."""
    return [("same", after)] if before == after else mark_changes(before, after)


def checked_text(text: str) -> str:
    """Returns a query on one line, without control characters; UserError if it is blank or too long."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    if not line:
        raise UserError("the query is empty; describe a picture in a few words")
    if len(line) > MAX_LETTERS:
        raise UserError(f"the query has {len(line)} letters, expected at most {MAX_LETTERS}")
    return line
