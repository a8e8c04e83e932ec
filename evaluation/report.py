"""The report of a run: one HTML file with settings, table, plot and the cases worth looking at.

It reads the run folder and the pictures, nothing else, and opens without a network: pictures are embedded as
thumbnails, each once, as the background of a CSS class. Cases and listed queries are few, however long the
run; everything is in rounds.jsonl.
"""

from __future__ import annotations

import base64
import difflib
import io
import logging
import math
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from evaluation.runs import stream_rounds
from evaluation.sessions import DEPTH, Session
from evaluation.tables import COLUMNS, COLUMNS_WITHOUT_TARGET, format_value
from files import read_json, write_bytes
from records import Round

log = logging.getLogger(__name__)

THUMBNAIL_PIXELS = 160  # shown at 60 to 150; the rest is for dense screens
PICTURES_PER_ROUND = 10
CASES = 4  # of each kind
LISTED_QUERIES = 200
NEVER = 1000.0  # searches that a query counts as which none of them answered
TEMPLATE = "report.html.j2"


@dataclass
class Thumbnails:
    """Pictures met so far: a CSS class for each and its data, or none for one that could not be read."""

    folder: Path
    classes: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)

    def css_class(self, image_id: str) -> str:
        """Returns the class whose background is the picture; empty when the file cannot be read."""
        if image_id not in self.classes:
            encoded = _encode_thumbnail(self.folder / image_id)
            name = f"i{len(self.data)}" if encoded else ""
            if encoded:
                self.data[name] = encoded
            self.classes[image_id] = name
        return self.classes[image_id]

    def missing(self) -> list[str]:
        """Returns the ids of the pictures that could not be read."""
        return [image_id for image_id, name in self.classes.items() if not name]


@dataclass(frozen=True)
class RunFiles:
    """What a report is made of.

    Attributes:
        measures: As ``measures.json``.
        rounds: Name of the file of the records.
        plot: Name of the picture of recall and F1.
        played: Settings of this run, where the folder holds several.
    """

    measures: Mapping[str, Any]
    rounds: str = "rounds.jsonl"
    plot: str = "recall_f1.png"
    played: Mapping[str, Any] = field(default_factory=dict)


def write_report(
    run_folder: Path,
    image_folder: Path,
    sessions: Sequence[Session],
    control_sessions: Sequence[Session] | None = None,
    title: str = "Interactive image retrieval",
    control: str = "scrolling",
    files: RunFiles | None = None,
) -> Path:
    """Writes ``report.html`` into a run folder, beside ``settings.json``.

    Args:
        run_folder: Holds the run's files.
        image_folder: Image ids are paths relative to it. A picture that is not there becomes a placeholder,
            and the report counts them.
        sessions: The run's records, as `evaluation.sessions.build_sessions` groups them.
        control_sessions: Those of the run without feedback, of the same queries; the cases are chosen against
            it, or against each query's first round when not given.
        title: Heading of the report.
        control: What to call the run without feedback, if the measures have one.
        files: What lies where in the folder; an experiment's when not given.
    """
    import jinja2

    files = files or RunFiles(read_json(run_folder / "measures.json"))
    settings = {**read_json(run_folder / "settings.json"), **files.played}
    measures = files.measures
    means = measures["means_per_round"]
    if control_sessions is None:
        firsts = [replace(session, rounds=session.rounds[:1]) for session in sessions]
        cases = choose_cases(sessions, firsts, "the first round")
    else:
        cases = choose_cases(sessions, control_sessions, control)
    listed = sessions[:LISTED_QUERIES]
    records: dict[str, list[Round]] = {session.query_id: [] for session in listed}
    records |= {session.query_id: [] for chosen in cases.values() for session in chosen}
    for record in stream_rounds(run_folder / files.rounds):
        if record.query_id in records:
            records[record.query_id].append(record)
    thumbnails = Thumbnails(image_folder)
    round_count = len(next(iter(means.values())))
    sections = [
        {
            "title": heading,
            "cases": [_describe_case(session, records[session.query_id], thumbnails) for session in chosen],
        }
        for heading, chosen in cases.items()
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
        facts=_facts(settings, (run_folder / files.rounds).stat().st_mtime),
        settings=settings,
        measures=measures,
        table=_table(means, measures.get("scrolling"), control),
        plot=base64.b64encode((run_folder / files.plot).read_bytes()).decode(),
        sections=sections,
        queries=[_describe_query(session, records[session.query_id], round_count) for session in listed],
        query_count=len(sessions),
        round_count=round_count,
        thumbnails=thumbnails.data,
        missing=thumbnails.missing(),
    )
    path = run_folder / "report.html"
    # A dataset's text may hold halves of surrogate pairs, which UTF-8 cannot; they become question marks.
    write_bytes(path, html.encode("utf-8", errors="replace"))
    if thumbnails.missing():
        log.warning("%s: %d pictures could not be read", path, len(thumbnails.missing()))
    return path


def choose_cases(
    sessions: Sequence[Session], control: Sequence[Session], name: str = "scrolling", count: int = CASES
) -> dict[str, list[Session]]:
    """Picks at most `count` queries each that gained most, lost most, or were never found, under headings.

    Gain and loss are against the control's session of the same query, which is called `name`: the search in
    which each found the target, or where the target stood in the end; without a target, the share of relevant
    images shown. Never found are those of which no round showed the target (or any relevant image); the worst
    rank comes first. Ties go by query id. No query stands in two groups.
    """
    efforts = {session.query_id: _effort(session) for session in control if session.rounds}
    played = [session for session in sessions if session.query_id in efforts and session.rounds]
    gains = sorted(
        (_effort(session) - efforts[session.query_id], session.query_id, place)
        for place, session in enumerate(played)
    )
    gained = [place for loss, _, place in gains[:count] if loss < 0]
    lost = [place for loss, _, place in gains[: -count - 1 : -1] if loss > 0]
    shown = {*gained, *lost}
    hidden = sorted(
        (-(session.rounds[-1].target_rank or 0), session.query_id, place)
        for place, session in enumerate(played)
        if place not in shown and not _is_found(session)
    )
    chosen = {
        f"Most gained over {name}": gained,
        f"Most lost against {name}": lost,
        "Never found": [place for *_, place in hidden[:count]],
    }
    return {heading: [played[place] for place in places] for heading, places in chosen.items()}


def mark_changes(before: str, after: str) -> list[tuple[str, str]]:
    """Compares two texts word by word.

    Returns:
        Runs of words, each with "same", "added" or "removed", in reading order; a removal comes before what
        replaced it: "a red dog" and "a brown dog" give ``("same", "a")``, ``("removed", "red")``,
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


def _effort(session: Session) -> float:
    """Says how much a query cost, the less the better: the number of the search that found the target.

    Where none did, more than any number and the logarithm of the target's last rank; without a target, minus
    the share of the relevant images that were shown.
    """
    if session.target is None:
        seen = {image for outcome in session.rounds for image in outcome.image_ids[: outcome.shown]}
        return -len(seen & session.relevant) / max(1, len(session.relevant))
    for outcome in session.rounds:
        if outcome.target_rank is not None and outcome.target_rank <= DEPTH:
            return outcome.number
    return NEVER + math.log(session.rounds[-1].target_rank or 1)


def _is_found(session: Session) -> bool:
    wanted = session.relevant if session.target is None else {session.target}
    return any(wanted.intersection(outcome.image_ids[: outcome.shown]) for outcome in session.rounds)


def _describe_case(session: Session, records: list[Round], thumbnails: Thumbnails) -> dict[str, Any]:
    wanted = [session.target] if session.target is not None else sorted(session.relevant)[:3]
    records.sort(key=lambda record: record.number)
    rounds = []
    for place, record in enumerate(records):
        before = records[place - 1].text if place else record.text
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
            }
        )
    return {
        "session": session,
        "wanted": [{"id": image, "css_class": thumbnails.css_class(image)} for image in wanted],
        "ranks": [record.target_rank for record in records],
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


def _describe_query(session: Session, records: Sequence[Round], round_count: int) -> dict[str, Any]:
    ranks = [outcome.target_rank for outcome in session.rounds]
    return {
        "id": session.query_id,
        "text": next((record.text for record in records if record.number == 0), "not in the run"),
        "ranks": ranks + [None] * (round_count - len(ranks)),
        "stop": session.rounds[-1].stop if session.rounds else "",
    }


def _facts(settings: Mapping[str, Any], played: float) -> list[str]:
    """Names what a reader of the figures must know, as far as the settings tell."""
    names = {name: name for name in ("dataset", "split", "strategy", "user", "protocol", "seed")}
    names["user"] = "simulated user"
    facts = [f"{word} {settings[name]}" for name, word in names.items() if settings.get(name) is not None]
    facts.append(f"played {datetime.fromtimestamp(played, timezone.utc):%Y-%m-%d}")
    commit = _commit()
    return [*facts, f"commit {commit}"] if commit else facts


def _commit() -> str:
    """Returns the short hash of the code's commit; empty where there is no git or no repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _table(
    means: Mapping[str, list[float]], control: Mapping[str, list[float]] | None, control_name: str
) -> dict[str, Any]:
    usual = (*COLUMNS, "Hits@10", "MRR", "BRI") if "Mean rank" in means else COLUMNS_WITHOUT_TARGET
    columns = [name for name in usual if name in means]
    groups = {"with feedback": means} | ({f"{control_name}, the control": control} if control else {})
    return {
        "columns": columns,
        "groups": {
            title: [
                [format_value(name, value) for name, value in zip(columns, row, strict=True)]
                for row in zip(*(summary[name] for name in columns), strict=True)
            ]
            for title, summary in groups.items()
        },
    }


def _encode_thumbnail(path: Path) -> str | None:
    from index.decode import BrokenImage, open_image

    try:
        picture = open_image(path)
    except BrokenImage as error:
        log.debug("no thumbnail: %s", error)  # counted in the report and in one warning at its end
        return None
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=80, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
