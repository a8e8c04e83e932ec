"""A session as a file, and back. A file from outside is checked field by field before it is believed."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from evaluation.sessions import build_sessions
from feedback.rounds import DEPTH
from interactive.search_context import SearchContext, UserError
from interactive.session import MAX_LETTERS, MAX_ROUNDS, MAX_SHOWN, Options, Session, Turn
from records import Round
from retriever import SearchQuery

FORMAT = 1
MAX_BYTES = 10 * 2**20
MAX_CAPTION_LETTERS = 2000


def save_session(session: Session) -> str:
    """Writes a session as JSON.

    Raises:
        UserError: If nothing has been searched yet, or the file would be too large to open again.
    """
    values = {
        "format": FORMAT,
        "model": session.context.retriever.encoder.fingerprint,
        "collection": session.context.version,
        "at": session.current.record.number,
        "options": asdict(session.options),
        "picture": _packed(session.picture),
        "turns": [
            {
                "record": turn.record.to_json(),
                "vector": _packed(turn.search.vector),
                "scores": _packed(turn.search.scores),
                "strategy": turn.strategy,
                "shows_again": turn.shows_again,
                "hidden": turn.hidden,
            }
            for turn in session.turns
        ],
    }
    text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    if len(text.encode()) > MAX_BYTES:
        raise UserError("this session has become too large to open again; export its rounds instead")
    return text


def open_session(text: str, context: SearchContext) -> Session:
    """Continues a saved session.

    Args:
        text: What `save_session` wrote.
        context: Of the same collection and model.

    Raises:
        UserError: If it is no saved session, or one of another collection or model.
    """
    try:
        values = json.loads(text)
        version, *origin = values["format"], values["model"], values["collection"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError("this is not a saved session; choose a file that was saved here") from error
    if version != FORMAT:
        raise UserError("this session was saved by another version; open it with that version")
    if origin != [context.retriever.encoder.fingerprint, context.version]:
        raise UserError("this session belongs to another collection or model; open it there")
    try:
        return _checked_session(values, context)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError("this saved session is damaged; choose another file") from error


def _checked_session(values: dict[str, Any], context: SearchContext) -> Session:
    options = Options(
        strategy=_one_of(values["options"]["strategy"], context.strategies),
        shown=_integer(values["options"]["shown"]),
        threshold=None if values["options"]["threshold"] is None else float(values["options"]["threshold"]),
        shows_again=values["options"]["shows_again"] is True,
    )
    turns = [_checked_turn(turn, number, context) for number, turn in enumerate(values["turns"])]
    position = _integer(values["at"])
    if not 1 <= len(turns) <= MAX_ROUNDS or not 0 <= position < len(turns):
        raise ValueError("the rounds do not fit")
    records = [turn.record for turn in turns]
    if len({record.query_id for record in records}) > 1:
        raise ValueError("the rounds are of several sessions")
    build_sessions(records, len(records))
    session = Session(context, options)
    session.resume(turns, position, _unpacked(values["picture"], context.retriever.index.dimension))
    return session


def _checked_turn(values: dict[str, Any], number: int, context: SearchContext) -> Turn:
    record = Round.from_json(values["record"])
    shown = record.image_ids[: record.shown]
    hidden = _integer(values.get("hidden", 0))  # older files lack it
    _check_texts((record.query_id, record.text, record.fallback, record.stop), MAX_LETTERS * 10)
    for texts in (record.captions, record.image_ids, record.liked, record.disliked):
        _check_texts(texts, MAX_CAPTION_LETTERS)
    for image_id in (*record.image_ids, *record.liked, *record.disliked):
        context.number_of(image_id)  # a KeyError if the index has no such picture
    fits = (
        _integer(record.number) == number,
        _integer(record.shown) <= MAX_SHOWN,
        0 <= hidden <= len(record.image_ids) - record.shown,
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
        raise ValueError("a round does not say what was searched")
    search = SearchQuery(record.text, vector, scores)
    return Turn(record, search, strategy, values["shows_again"] is True, hidden)


def _packed(numbers: np.ndarray | None) -> str | None:
    return None if numbers is None else base64.b64encode(numbers.astype("<f4").tobytes()).decode()


def _unpacked(text: str | None, count: int) -> np.ndarray | None:
    if text is None:
        return None
    numbers = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float32)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError("a vector does not fit")
    return numbers


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("not an integer")
    return value


def _one_of(value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError("not one of the choices")
    return value


def _check_texts(values: Sequence[object], max_letters: int) -> None:
    if not all(isinstance(value, str) and len(value) <= max_letters for value in values):
        raise TypeError("not a text of a sensible length")


def export_rounds(records: Sequence[Round]) -> str:
    """Writes records as a ``rounds.jsonl`` that `evaluation.runs.read_rounds` reads."""
    return "".join(
        json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False) + "\n" for record in records
    )
