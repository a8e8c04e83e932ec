"""The report of a run: one HTML file with settings, table, plot and the cases worth looking at.

It reads the run folder and the pictures, nothing else, and opens without a network: pictures are embedded as
thumbnails, each once, as the background of a CSS class.
"""

from __future__ import annotations

import base64
import difflib
import io
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.runs import read_rounds
from evaluation.sessions import Session, build_sessions
from evaluation.tables import COLUMNS, COLUMNS_WITHOUT_TARGET, format_value
from files import read_json, write_bytes
from records import Round

logger = logging.getLogger(__name__)

THUMBNAIL_PIXELS = 160  # shown at 60 to 150; the rest is for dense screens
PICTURES_PER_ROUND = 10
TEMPLATE = "report.html.j2"


@dataclass
class Thumbnails:
    """Pictures met so far: a CSS class for each, or None for one that could not be read."""

    folder: Path
    classes: dict[str, str | None] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)

    def css_class(self, image_id: str) -> str | None:
        """Returns the class whose background is the picture, or None when the file cannot be read."""
        if image_id not in self.classes:
            encoded = _encode_thumbnail(self.folder / image_id)
            name = None if encoded is None else f"i{len(self.data)}"
            if name is not None and encoded is not None:
                self.data[name] = encoded
            self.classes[image_id] = name
        return self.classes[image_id]

    def missing(self) -> list[str]:
        """Returns the ids of the pictures that could not be read."""
        return [image_id for image_id, name in self.classes.items() if name is None]


def write_report(
    run_folder: Path, image_folder: Path, cases: int = 4, title: str = "Interactive image retrieval"
) -> Path:
    """Writes ``report.html`` into a run folder.

    Args:
        run_folder: Holds ``rounds.jsonl``, ``settings.json``, ``measures.json`` and ``recall_f1.png``.
        image_folder: Image ids are paths relative to it. A picture that is not there becomes a placeholder,
            and the report counts them.
        cases: How many of the best and how many of the worst queries to show round by round.
        title: Heading of the report.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: If a file of the run is missing.
        ValueError: If one is broken, or the records are not whole.
    """
    import jinja2

    for name in ("rounds.jsonl", "settings.json", "measures.json", "recall_f1.png"):
        if not (run_folder / name).is_file():
            raise FileNotFoundError(f"{run_folder / name} is missing; finish the run before its report")
    settings, measures = (read_json(run_folder / name) for name in ("settings.json", "measures.json"))
    means = measures.get("means_per_round")
    if not isinstance(means, dict) or not means:
        raise ValueError(f"{run_folder / 'measures.json'}: no means_per_round; evaluate the run again")
    round_count = len(next(iter(means.values())))
    sessions = build_sessions(read_rounds(run_folder / "rounds.jsonl"), round_count)
    best, worst = choose_cases(sessions, cases)
    thumbnails = Thumbnails(image_folder)
    sections = [
        {"title": heading, "cases": [_describe_case(session, thumbnails) for session in chosen]}
        for heading, chosen in (("Most gained", best), ("Least gained, or lost", worst))
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(TEMPLATE).render(
        title=title,
        settings=_flatten(settings),
        measures=measures,
        table=_table(means),
        plot=base64.b64encode((run_folder / "recall_f1.png").read_bytes()).decode(),
        sections=sections,
        queries=[_describe_query(session, round_count) for session in sessions],
        round_count=round_count,
        thumbnails=thumbnails.data,
        missing=thumbnails.missing(),
    )
    path = run_folder / "report.html"
    # A dataset's text may hold halves of surrogate pairs, which UTF-8 cannot; they become question marks.
    write_bytes(path, html.encode("utf-8", errors="replace"))
    if thumbnails.missing():
        logger.warning("%s: %d pictures could not be read", path, len(thumbnails.missing()))
    return path


def choose_cases(sessions: Sequence[Session], count: int) -> tuple[list[Session], list[Session]]:
    """Picks the queries that gained most and least, without overlap.

    The gain is log(first rank / last rank) of the target, so that 20 to 2 counts as much as 1,000 to 100;
    without a target, the share of the relevant images shown in the end. Equal gains go by query id.

    Args:
        sessions: All queries.
        count: At most how many of each.

    Returns:
        The best, best first, and the worst, worst first.
    """
    ordered = sorted(
        (session for session in sessions if session.rounds),
        key=lambda session: (-_gain(session), session.query_id),
    )
    best = ordered[: min(count, (len(ordered) + 1) // 2)]
    worst = ordered[len(best) :][::-1][:count]
    return best, worst


def mark_changes(before: str, after: str) -> list[tuple[str, str]]:
    """Compares two texts word by word.

    Args:
        before: Text of the round before.
        after: Text of this round.

    Returns:
        Runs of words, each with "same", "added" or "removed", in reading order; a removal comes before what
        replaced it.

    Example:
        ``mark_changes("a red dog", "a brown dog")`` gives ``("same", "a")``, ``("removed", "red")``,
        ``("added", "brown")`` and ``("same", "dog")``.
    """
    old, new = _words(before), _words(after)
    marked = []
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for kind, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        if kind == "equal":
            marked.append(("same", _joined(new[new_start:new_end])))
            continue
        if old_end > old_start:
            marked.append(("removed", _joined(old[old_start:old_end])))
        if new_end > new_start:
            marked.append(("added", _joined(new[new_start:new_end])))
    return marked


def _words(text: str) -> list[str]:
    """Splits at spaces and before closing punctuation, so that "dog" and "dog," hold the same word."""
    return re.findall(r"\S*\w|\S", text)


def _joined(words: list[str]) -> str:
    return re.sub(r" ([,.;:!?])", r"\1", " ".join(words))


def _gain(session: Session) -> float:
    ranks = [record.target_rank for record in session.rounds if record.target_rank is not None]
    if ranks:
        return math.log(ranks[0] / ranks[-1])
    seen = {image for record in session.rounds for image in record.image_ids[: record.shown]}
    return len(seen & session.relevant) / max(1, len(session.relevant))


def _describe_case(session: Session, thumbnails: Thumbnails) -> dict[str, Any]:
    wanted = [session.target] if session.target is not None else sorted(session.relevant)[:3]
    rounds = []
    for place, record in enumerate(session.rounds):
        before = session.rounds[place - 1].text if place else record.text
        shown = record.image_ids[: record.shown]
        telling = {*record.liked, *record.disliked, session.target}
        # Of a long list, the first pictures and those that something happened to.
        pictures = [
            _describe_picture(record, rank, image, session, thumbnails)
            for rank, image in enumerate(shown, start=1)
            if rank <= PICTURES_PER_ROUND or image in telling
        ]
        rounds.append(
            {
                "record": record,
                "words": mark_changes(before, record.text),
                "pictures": pictures,
                "left_out": len(shown) - len(pictures),
                "captions": [caption for caption in record.captions if caption],
            }
        )
    return {
        "session": session,
        "wanted": [{"id": image, "css_class": thumbnails.css_class(image)} for image in wanted],
        "ranks": [record.target_rank for record in session.rounds],
        "rounds": rounds,
    }


def _describe_picture(
    record: Round, rank: int, image: str, session: Session, thumbnails: Thumbnails
) -> dict[str, Any]:
    marks = []
    if image == session.target:
        marks.append("target")
    elif session.target is None and image in session.relevant:
        marks.append("relevant")
    if image in record.liked:
        marks.append("picked")
    if image in record.disliked:
        marks.append("declined")
    return {"id": image, "rank": rank, "css_class": thumbnails.css_class(image), "marks": marks}


def _describe_query(session: Session, round_count: int) -> dict[str, Any]:
    ranks = [record.target_rank for record in session.rounds]
    return {
        "id": session.query_id,
        "text": session.rounds[0].text,
        "ranks": ranks + [None] * (round_count - len(ranks)),
        "stop": session.rounds[-1].stop,
    }


def _table(means: dict[str, list[float]]) -> dict[str, Any]:
    usual = (*COLUMNS, "Hits@10", "MRR", "BRI") if "Mean rank" in means else COLUMNS_WITHOUT_TARGET
    columns = [name for name in usual if name in means]
    rows = zip(*(means[name] for name in columns), strict=True)
    return {
        "columns": columns,
        "rows": [
            [format_value(name, value) for name, value in zip(columns, row, strict=True)] for row in rows
        ],
    }


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat = []
    for name, value in values.items():
        if isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{name}.")
        else:
            flat.append((f"{prefix}{name}", str(value)))
    return flat


def _encode_thumbnail(path: Path) -> str | None:
    from index.decode import BrokenImage, open_image  # Pillow is loaded for a report with pictures only

    try:
        picture = open_image(path)
    except (BrokenImage, OSError) as error:
        logger.debug("no thumbnail: %s", error)  # counted in the report and in one warning at its end
        return None
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=80, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
