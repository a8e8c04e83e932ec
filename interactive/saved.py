"""A session as a file, and back. A file from outside is checked against the types and bounds below."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from evaluation.sessions import build_sessions
from feedback.rounds import DEPTH
from interactive.search_context import SearchContext, UserError
from interactive.session import MAX_ROUNDS, MAX_SHOWN, Options, Session, Turn
from records import Round
from retriever import SearchQuery

FORMAT = 1
MAX_BYTES = 10 * 2**20
MAX_TEXT_LETTERS = 5000  # of a text in the file; captions and prompts' faults are longer than queries


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
    options = _checked(values["options"], Options)
    if options.strategy not in context.strategies:
        raise ValueError("not one of the strategies")
    turns = [_checked_turn(turn, number, context) for number, turn in enumerate(values["turns"])]
    position = _checked(values["at"], int)
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
    record = _checked(values["record"], Round)
    strategy = _checked(values["strategy"], str)
    hidden = _checked(values.get("hidden", 0), int)  # older files lack it
    for image_id in (*record.image_ids, *record.liked, *record.disliked):
        context.number_of(image_id)  # a KeyError if the index has no such picture
    vector = _unpacked(values["vector"], context.retriever.index.dimension)
    scores = _unpacked(values["scores"], len(context.retriever.index))
    shown = record.image_ids[: record.shown]
    fits = (
        record.number == number,
        0 <= record.shown <= MAX_SHOWN,
        0 <= hidden <= len(record.image_ids) - record.shown,
        len(record.scores) == len(record.image_ids) <= max(DEPTH, MAX_SHOWN),
        {*record.liked, *record.disliked} <= {*shown} and not {*record.liked} & {*record.disliked},
        len(record.captions) in (0, len(record.liked)),
        (record.target, record.relevant, record.target_rank) == (None, (), None),
        record.stop in ("", "exhausted"),
        strategy in context.strategies,
        vector is not None or scores is not None,
    )
    if not all(fits):
        raise ValueError("a round does not fit")
    search = SearchQuery(record.text, vector, scores)
    return Turn(record, search, strategy, _checked(values["shows_again"], bool), hidden)


def _checked(value: Any, hint: Any) -> Any:
    """Returns a JSON value as an annotated type: a dataclass, a tuple, an optional or a plain type.

    Raises:
        ValueError, TypeError, KeyError, OverflowError: If it is of another type, too long, or not finite.
    """
    if get_origin(hint) is UnionType:
        if value is None:
            return None
        hint = next(each for each in get_args(hint) if each is not type(None))
    if get_origin(hint) is tuple:
        return tuple(_checked(each, get_args(hint)[0]) for each in _checked(value, list))
    if hint in (Options, Round):
        hints = get_type_hints(hint)
        if set(_checked(value, dict)) != set(hints):
            raise ValueError("missing or unknown fields")
        return hint(**{name: _checked(value[name], kind) for name, kind in hints.items()})
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:  # isinstance would take True for a number
        raise TypeError(f"not of type {hint}")
    if (hint is float and not math.isfinite(value)) or (hint is str and len(value) > MAX_TEXT_LETTERS):
        raise ValueError("not finite, or too long")
    return value


def _packed(numbers: np.ndarray | None) -> str | None:
    return None if numbers is None else base64.b64encode(numbers.astype("<f4").tobytes()).decode()


def _unpacked(text: str | None, count: int) -> np.ndarray | None:
    if text is None:
        return None
    numbers = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float32)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError("a vector does not fit")
    return numbers


def export_rounds(records: Sequence[Round]) -> str:
    """Writes records as a ``rounds.jsonl`` that `evaluation.runs.read_rounds` reads."""
    return "".join(
        json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False) + "\n" for record in records
    )
