"""A session as a file, and back. A file from outside is checked field by field before it is believed."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.sessions import build_sessions
from feedback.rounds import DEPTH
from interactive.errors import UserError
from interactive.search_context import SearchContext
from interactive.session import MAX_LETTERS, MAX_ROUNDS, MAX_SHOWN, Options, Session, Turn
from records import Round
from retriever import SearchQuery

FORMAT = 1
MAX_BYTES = 10 * 2**20
MAX_CAPTION_LETTERS = 2000


def save_session(session: Session) -> str:
    """Writes a session as JSON.

    Raises:
        UserError: If nothing has been searched yet, or the file would be too large to be opened.
    """
    turn = session.now  # says that there is nothing to save
    options = session.options
    text = json.dumps(
        {
            "format": FORMAT,
            "model": session.context.retriever.encoder.fingerprint,
            "collection": session.context.version,
            "at": turn.record.number,
            "options": {
                "strategy": options.strategy,
                "shown": options.shown,
                "threshold": options.threshold,
                "shows_again": options.shows_again,
            },
            "picture": _packed(session.picture),
            "turns": [
                {
                    "record": turn.record.to_json(),
                    "vector": _packed(turn.search.vector),
                    "scores": _packed(turn.search.scores),
                    "strategy": turn.strategy,
                    "shows_again": turn.shows_again,
                }
                for turn in session.turns
            ],
        },
        ensure_ascii=False,
        allow_nan=False,
    )
    if len(text.encode()) > MAX_BYTES:
        raise UserError("this session has grown too large to be opened again; export its rounds instead")
    return text


def open_session(text: str, context: SearchContext) -> Session:
    """Takes up a saved session.

    Args:
        text: What `save_session` wrote.
        context: The parts; of the same collection and model.

    Raises:
        UserError: If it is no saved session, or one of another collection; the message may be shown.
    """
    try:
        values = json.loads(text)
        kind = values["format"], values["model"], values["collection"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError("this is not a saved session; choose a file that this page saved") from error
    if kind[0] != FORMAT:
        raise UserError("this session was saved by another version; open it with that version")
    if kind[1:] != (context.retriever.encoder.fingerprint, context.version):
        raise UserError("this session belongs to another collection or model; open it there")
    try:
        return _opened(values, context)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError("this saved session is damaged; choose another file") from error


def _opened(values: dict[str, Any], context: SearchContext) -> Session:
    options = Options(
        strategy=_one_of(values["options"]["strategy"], context.strategies),
        shown=_whole(values["options"]["shown"]),
        threshold=None if values["options"]["threshold"] is None else float(values["options"]["threshold"]),
        shows_again=values["options"]["shows_again"] is True,
    )
    turns = [_turn(turn, number, context) for number, turn in enumerate(values["turns"])]
    at = _whole(values["at"])
    if not 1 <= len(turns) <= MAX_ROUNDS or not 0 <= at < len(turns):
        raise ValueError("the rounds do not fit")
    records = [turn.record for turn in turns]
    if len({record.query_id for record in records}) > 1:
        raise ValueError("the rounds are of several sessions")
    build_sessions(records, len(records))
    session = Session(context, options)
    session.resume(turns, at, _unpacked(values["picture"], context.retriever.index.dimension))
    return session


def _turn(values: dict[str, Any], number: int, context: SearchContext) -> Turn:
    record = Round.from_json(values["record"])
    shown = record.image_ids[: record.shown]
    _texts((record.query_id, record.text, record.fallback, record.stop), MAX_LETTERS * 10)
    _texts(record.captions, MAX_CAPTION_LETTERS)
    for ids in (record.image_ids, record.liked, record.disliked):
        _texts(ids, MAX_CAPTION_LETTERS)
        for image_id in ids:
            context.number_of(image_id)  # a KeyError where the index lacks it
    fits = (
        _whole(record.number) == number,
        _whole(record.shown) <= MAX_SHOWN,
        len(record.image_ids) <= max(DEPTH, MAX_SHOWN),
        len(record.scores) == len(record.image_ids) and np.isfinite(np.array(record.scores, float)).all(),
        {*record.liked, *record.disliked} <= {*shown} and not {*record.liked} & {*record.disliked},
        len(record.captions) in (0, len(record.liked)),
        (record.target, record.relevant, record.target_rank) == (None, (), None),
        record.stop in ("", "exhausted"),
    )
    if not all(fits):
        raise ValueError("a round does not fit")
    strategy = _one_of(values["strategy"], context.strategies)
    vector = _unpacked(values["vector"], context.retriever.index.dimension)
    scores = _unpacked(values["scores"], len(context.retriever.index))
    if vector is None and scores is None:
        raise ValueError("a round does not say what it searched")
    return Turn(record, SearchQuery(record.text, vector, scores), strategy, values["shows_again"] is True)


def _packed(numbers: np.ndarray | None) -> str | None:
    return None if numbers is None else base64.b64encode(numbers.astype("<f4").tobytes()).decode()


def _unpacked(text: str | None, count: int) -> np.ndarray | None:
    if text is None:
        return None
    numbers = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float32)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError("a vector does not fit")
    return numbers


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("not a whole number")
    return value


def _one_of(value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError("not one of the choices")
    return value


def _texts(values: Sequence[object], max_letters: int) -> None:
    if not all(isinstance(value, str) and len(value) <= max_letters for value in values):
        raise TypeError("not a text of a sensible length")


def export_rounds(records: Sequence[Round]) -> str:
    """Writes records as a rounds.jsonl, as `evaluation.runs.read_rounds` reads it."""
    return "".join(
        json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False) + "\n" for record in records
    )
