"""Writes a run as TREC run files and relevance judgements (qrels), which other tools can measure.

Files: ``round0.run``, ... (query, Q0, image, rank, score, tag); ``round0.relevant.qrels``, ... (query, 0,
image, 1) with the relevant images not shown before that round; ``target.qrels``. A stopped query appears in
later rounds with its last list; one that the run lacks is in the qrels alone, which tools score as 0.

The score column falls by one from place to place instead of holding similarities: tools sort by score and
break ties by document id, which would undo our order of equally similar images. In ids, white space, ``%``
and unprintable characters are percent-encoded (UTF-8), since columns end at white space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from evaluation.sessions import Session
from files import make_folder, replaced
from records import Round


def write_trec(folder: Path, rounds: Iterable[Round], sessions: Sequence[Session], round_count: int) -> None:
    """Writes a run as TREC files, line by line.

    The records are read once more, in `rounds`: sessions hold only the top of each list.

    Raises:
        ValueError: If an id is empty.
    """
    make_folder(folder)
    with _opened(folder / "target.qrels") as file:
        for session in sessions:
            if session.target is not None:
                file.write(f"{encode_id(session.query_id)} 0 {encode_id(session.target)} 1\n")
    for number in range(round_count):
        with _opened(folder / f"round{number}.relevant.qrels") as file:
            for session in sessions:
                file.writelines(_relevant_lines(session, number))
    by_query = {session.query_id: session for session in sessions}
    with ExitStack() as stack:  # all open while the records are read once
        runs = [stack.enter_context(_opened(folder / f"round{n}.run")) for n in range(round_count)]
        for record in rounds:
            session = by_query[record.query_id]
            lines = list(_run_lines(record))
            for number in range(record.number, round_count):
                state = session.state(number)
                if state is not None and state.number == record.number:
                    runs[number].writelines(lines)


def encode_id(name: str) -> str:
    """Returns an id without white space: "été 1/50%.jpg" is "été%201/50%25.jpg"; `unquote` gives it back.

    Raises:
        ValueError: If the id is empty, which would shift the columns.
    """
    if not name:
        raise ValueError("an id is empty; TREC files need one for every query and image")
    return "".join(
        quote(character, safe="", errors="surrogatepass")
        if character == "%" or character.isspace() or not character.isprintable()
        else character
        for character in name
    )


def _run_lines(record: Round) -> Iterator[str]:
    query, count = encode_id(record.query_id), len(record.image_ids)
    for rank, image in enumerate(record.image_ids, start=1):
        yield f"{query} Q0 {encode_id(image)} {rank} {count - rank + 1} interactive\n"


def _relevant_lines(session: Session, number: int) -> Iterator[str]:
    state = session.state(number)
    query = encode_id(session.query_id)
    for image in sorted(session.relevant if state is None else state.relevant):
        yield f"{query} 0 {encode_id(image)} 1\n"


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """Opens a file for writing that appears only complete."""
    with replaced(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        yield file
