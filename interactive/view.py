"""What the templates get to see of a visitor's page."""

from __future__ import annotations

from typing import Any

from interactive.search_context import SearchContext
from interactive.session import EDITED, MAX_LETTERS, MAX_SHOWN, changes_between
from interactive.study import Study
from interactive.visitors import Visitor

SAMPLES = 12  # pictures of the collection on the empty page
STRATEGY_LABELS = {
    "original": "Your words only",
    "append": "Append captions",
    "append-anchored": "Append, anchored to your words",
    "rewrite": "Rewrite the last query",
    "rewrite-original": "Rewrite your words",
    "rewrite-anchored": "Rewrite, anchored to your words",
    "rewrite-chosen": "Rewrite, best of several",
    "rocchio": "Move towards liked pictures (Rocchio)",
    "fusion": "Words, captions and pictures combined",
    "slerp": "Turn towards the captions (Slerp)",
}


def view(visitor: Visitor, study: Study, names_shown: bool, describes: bool) -> dict[str, Any]:
    """Returns what the templates show: the objects themselves, and what they cannot work out.

    Args:
        visitor: Whose page.
        study: Hands out pictures to find.
        names_shown: Whether the pictures' names in the collection may be shown.
        describes: Whether all shown pictures are being captioned.
    """
    is_busy = visitor.job is not None  # until its outcome has been shown, even if it is done by now
    session = visitor.before if is_busy and visitor.before else visitor.session
    context, task = session.context, visitor.task
    step = max(1, len(context.ids) // SAMPLES)
    return {
        "visitor": visitor,
        "session": session,
        "busy": is_busy,
        "turn": session.current if session.turns else None,
        "task": task,
        "task_seconds": int(study.clock() - task.begun) if task else 0,
        "context": context,
        "picture": lambda image_id: picture(context, image_id),
        "samples": context.ids[::step][:SAMPLES],
        "strategies": [(name, STRATEGY_LABELS.get(name, name)) for name in context.strategies],
        "changes_between": changes_between,
        "names_shown": names_shown,
        "describes": describes,
        "EDITED": EDITED,
        "MAX_LETTERS": MAX_LETTERS,
        "MAX_SHOWN": MAX_SHOWN,
    }


def picture(context: SearchContext, image_id: str) -> dict[str, Any]:
    """Returns what may be said of a picture: its number, and its caption if it has been made."""
    return {"number": context.number_of(image_id), "caption": context.known_caption(image_id) or ""}


def captions_shown(visitor: Visitor) -> dict[int, str]:
    """Returns the captions made so far of the pictures that the visitor sees, by number."""
    session = visitor.steady_session
    shown = session.current.shown_ids if session.turns else ()
    pictures = [picture(session.context, image_id) for image_id in shown]
    return {each["number"]: each["caption"] for each in pictures if each["caption"]}
