"""Writes a run as TREC run files and relevance judgements (qrels), which other tools can measure.

Files: ``round0.run``, ``round1.run``, ... (query, Q0, image, rank, score, tag); ``round0.relevant.qrels``,
... (query, 0, image, 1) with the relevant images not shown before that round; ``target.qrels`` with the one
target. Both kinds of a round follow the record that stands for the query in it, so a stopped query appears in
later rounds with its last list. A query the run lacks is in the qrels and not in the runs, which tools score
as 0.

The score column falls by one from place to place instead of holding similarities: tools sort by score and
break ties by document id, which would undo our order of equally similar images. Similarities are in
rounds.jsonl.

Ids: white space, ``%`` and unprintable characters are percent-encoded (UTF-8), since columns end at white
space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from evaluation.sessions import Session
from files import replace_file
from records import Round


def write_trec(
    folder: Path,
    rounds: Iterable[Round],
    sessions: Sequence[Session],
    round_count: int,
    tag: str = "interactive",
) -> list[Path]:
    """Writes a run as TREC files, line by line.

    Args:
        folder: Where to; made when missing.
        rounds: The run's records, read once more: the sessions hold only the top of each list.
        sessions: The same records, as `evaluation.sessions.build_sessions` grouped them.
        round_count: How many rounds the run was to have.
        tag: Name of the run, the last column.

    Returns:
        The files written.

    Raises:
        ValueError: If an id or the tag is empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    targets = folder / "target.qrels"
    relevant = [folder / f"round{number}.relevant.qrels" for number in range(round_count)]
    _write_lines(targets, _target_lines(sessions))
    for number, path in enumerate(relevant):
        _write_lines(path, _relevant_lines(sessions, number))
    runs = [folder / f"round{number}.run" for number in range(round_count)]
    by_query = {session.query_id: session for session in sessions}
    label = encode_id(tag)

    def fill(opened: Sequence[TextIO]) -> None:
        for record in rounds:
            session = by_query[record.query_id]
            lines = list(_run_lines(record, label))
            for number in range(record.number, round_count):
                state = session.state(number)
                if state is not None and state.number == record.number:
                    opened[number].writelines(lines)

    _replace_together(runs, fill)
    return [targets, *relevant, *runs]


def encode_id(name: str) -> str:
    """Returns an id without white space; `urllib.parse.unquote` gives it back.

    Raises:
        ValueError: If the id is empty, which would shift the columns.

    Example:
        ``encode_id("été 1/50%.jpg")`` is ``"été%201/50%25.jpg"``.
    """
    if not name:
        raise ValueError("an id is empty; TREC files need one for every query and image")
    return "".join(
        quote(character, safe="", errors="surrogatepass")
        if character == "%" or character.isspace() or not character.isprintable()
        else character
        for character in name
    )


def _run_lines(record: Round, tag: str) -> Iterator[str]:
    query, count = encode_id(record.query_id), len(record.image_ids)
    for rank, image in enumerate(record.image_ids, start=1):
        yield f"{query} Q0 {encode_id(image)} {rank} {count - rank + 1} {tag}\n"


def _target_lines(sessions: Sequence[Session]) -> Iterator[str]:
    for session in sessions:
        if session.target is not None:
            yield f"{encode_id(session.query_id)} 0 {encode_id(session.target)} 1\n"


def _relevant_lines(sessions: Sequence[Session], number: int) -> Iterator[str]:
    for session in sessions:
        state = session.state(number)
        query = encode_id(session.query_id)
        for image in sorted(session.relevant if state is None else state.relevant):
            yield f"{query} 0 {encode_id(image)} 1\n"


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    _replace_together([path], lambda opened: opened[0].writelines(lines))


def _replace_together(paths: Sequence[Path], fill: Callable[[Sequence[TextIO]], None]) -> None:
    """Replaces several files at once: all are open while they are filled, and each appears only complete."""

    def open_next(opened: tuple[TextIO, ...]) -> None:
        if len(opened) == len(paths):
            fill(opened)
            return

        def write(temporary: Path) -> None:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                open_next((*opened, file))

        replace_file(paths[len(opened)], write)

    open_next(())
