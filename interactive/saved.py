"""A session as a file, and back. A file holds queries and marks; opening it searches every round again.

So no ranking in a file is believed. What is taken from it is checked against types and bounds.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from feedback.history import NextQuery
from index.decode import as_jpeg
from interactive.pictures import read_upload
from interactive.session import LARGE_PIXELS, MAX_ROUNDS, Options, SearchContext, Session, UserError
from records import Round
from retriever import SearchQuery

FORMAT = 3
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
        "query_id": session.current.record.query_id,
        "at": session.position,
        "options": asdict(session.options),
        "upload": session.upload and base64.b64encode(session.upload).decode(),
        "similar": session.similar,
        "typed": session.typed,
        "signed": session.signed,
        "added": _packed(session.added),
        "turns": [
            {
                "text": turn.record.text,
                "fallback": turn.record.fallback,
                "vector": _packed(turn.search.vector),
                "scores": _packed(turn.search.scores),
                "options": asdict(turn.options),
                "marks": dict(turn.marks),
                "captions": turn.record.captions,
            }
            for turn in session.turns
        ],
    }
    text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    if len(text.encode()) > MAX_BYTES:
        raise UserError("this session has become too large to open again; export its rounds instead")
    return text


def open_session(text: str, context: SearchContext) -> Session:
    """Continues a session that `save_session` wrote, with a context of the same collection and model.

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
        return _replayed(values, context)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError("this saved session is damaged; choose another file") from error


def _replayed(values: dict[str, Any], context: SearchContext) -> Session:
    options, position, query_id = (
        _options(values["options"], context),
        values["at"],
        _text(values["query_id"]),
    )
    if not 1 <= len(values["turns"]) <= MAX_ROUNDS or position not in range(len(values["turns"])):
        raise ValueError("the rounds do not fit")
    dimension, count = context.retriever.index.dimension, len(context.ids)
    session = Session(context, options)
    for turn in values["turns"]:
        if (turn["vector"] is None) == (turn["scores"] is None):
            raise ValueError("expected a vector or scores")
        vector, scores = _unpacked(turn["vector"], dimension), _unpacked(turn["scores"], count)
        for image_id, mark in turn["marks"].items():
            context.number_of(image_id)  # a KeyError if the index has no such picture
            if mark not in ("like", "dislike", "none"):
                raise ValueError("not a mark")
        session.replay(
            query_id,
            NextQuery(SearchQuery(_text(turn["text"]), vector, scores), _text(turn["fallback"])),
            _options(turn["options"], context),
            turn["marks"],
            [_text(caption) for caption in turn["captions"]],
        )
    session.options, session.position = options, int(position)
    session.added = _unpacked(values["added"], dimension)
    session.typed = _text(values["typed"])
    session.signed = tuple((_sign(sign), _text(words)) for sign, words in values["signed"])
    if values["similar"] is not None:
        session.similar = context.ids[context.number_of(values["similar"])]
    if values["upload"] is not None:  # as suspicious as any other upload
        upload = read_upload(base64.b64decode(values["upload"], validate=True))
        session.upload = as_jpeg(upload, LARGE_PIXELS)
    return session


def _options(values: dict[str, Any], context: SearchContext) -> Options:
    options = Options(**values)  # which checks the ranges
    # isinstance would take True for a number
    types = type(options.shown), type(options.threshold), type(options.shows_again)
    if types not in ((int, float, bool), (int, int, bool), (int, type(None), bool)):
        raise TypeError("an option is of another type")
    if options.strategy not in context.strategies:
        raise ValueError("not one of the strategies")
    return options


def _sign(value: str) -> str:
    if value not in ("+", "-"):
        raise ValueError("not a sign")
    return value


def _text(value: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT_LETTERS:
        raise TypeError("not a text, or too long")
    value.encode()  # a ValueError for half of a surrogate pair, which nothing could write again
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
