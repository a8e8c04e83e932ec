"""What the page shows of a person's session: plain values for the templates."""

from __future__ import annotations

from typing import Any

from interactive.people import Person
from interactive.search_context import SearchContext
from interactive.session import EDITED, MAX_SHOWN, Session, changes_between
from interactive.study import Study

SAMPLES = 12  # pictures of the collection that the empty page shows
STRATEGY_WORDS = {
    "original": "Your words only",
    "append": "Append captions",
    "append-anchored": "Append, anchored to your words",
    "rewrite": "Rewrite the last query",
    "rewrite-original": "Rewrite your words",
    "rewrite-anchored": "Rewrite, anchored to your words",
    "rewrite-chosen": "Rewrite, the best of several",
    "rocchio": "Towards the pictures you liked (Rocchio)",
    "fusion": "Words, captions and pictures together",
    "slerp": "Turn towards the captions (Slerp)",
}


def view(person: Person, study: Study, names_shown: bool, describes: bool) -> dict[str, Any]:
    """Describes the page as it is now.

    Args:
        person: Whose.
        study: Gives the pictures to find.
        names_shown: Whether the pictures' names in the collection may be shown.
        describes: Whether captions of all shown pictures are on their way.
    """
    busy = person.is_waiting
    session, task = person.steady, person.task
    context = session.context
    values: dict[str, Any] = {
        "context": context,
        "count": len(context.ids),
        "options": session.options,
        "describes": describes,
        "max_shown": MAX_SHOWN,
        "strategies": [(name, STRATEGY_WORDS.get(name, name)) for name in context.strategies],
        "busy": busy,
        "stage": person.job.stage if busy and person.job else "",
        "notice": person.notice[0],
        "notice_is_error": person.notice[1],
        "verdict": person.verdict,
        "is_study": task is not None,
        "turn": None,
    }
    if task is not None:
        values["task"] = {
            "number": context.number_of(task.target),
            "seconds": int(study.clock() - task.begun),
            "rounds": len(session.turns),
            "place": person.tasks_given,
        }
    if not session.turns:
        ids = context.ids
        step = max(1, len(ids) // SAMPLES)
        values["samples"] = [_picture(context, ids[row]) for row in range(0, len(ids), step)][:SAMPLES]
        return values
    turn = session.now
    record = turn.record
    values |= {
        "turn": turn,
        "number": session.at,
        "trail": [
            {"number": number, "text": each.record.text, "is_current": number == session.at}
            for number, each in enumerate(session.turns)
        ],
        "changes": session.changes(),
        "edited": record.fallback == EDITED,
        "by_picture": session.picture is not None and turn.search.vector is not None,
        "fallback": "" if record.fallback == EDITED else record.fallback,
        "liked_before": _liked(session, session.at - 1) if session.at else [],
        "pictures": [
            _picture(context, image_id)
            | {
                "rank": rank,
                "score": score,
                "mark": "like"
                if image_id in record.liked
                else "dislike"
                if image_id in record.disliked
                else "",
                "name": image_id if names_shown else "",
            }
            for rank, (image_id, score) in enumerate(
                zip(turn.shown_ids, record.scores, strict=False), start=1
            )
        ],
        "hidden": min(session.options.shown, len(record.image_ids)) - record.shown,
        "liked": len(record.liked),
        "disliked": len(record.disliked),
        "stop": record.stop,
    }
    if session.proposal is not None:
        text = session.proposal.search.text or ""
        values["proposal"] = {
            "text": text,
            "changes": changes_between(record.text, text),
            "fallback": session.proposal.fallback,
            "liked": _liked(session, session.at),
        }
    return values


def _liked(session: Session, number: int) -> list[dict[str, Any]]:
    return [_picture(session.context, image_id) for image_id in session.turns[number].record.liked]


def _picture(context: SearchContext, image_id: str) -> dict[str, Any]:
    return {"number": context.number_of(image_id), "caption": context.known(image_id) or ""}


def captions_shown(person: Person) -> dict[int, str]:
    """Returns the captions made so far of the pictures that the person sees, by number."""
    session = person.steady
    if not session.turns:
        return {}
    known = {image_id: session.context.known(image_id) for image_id in session.now.shown_ids}
    return {session.context.number_of(image_id): caption for image_id, caption in known.items() if caption}
