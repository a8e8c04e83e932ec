"""TREC run files and relevance judgements (qrels), so that outside tools can check the measures.

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

from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from evaluation.sessions import build_sessions
from files import write_bytes
from records import Query, Round


def write_trec(
    folder: Path,
    rounds: Iterable[Round],
    round_count: int,
    queries: Sequence[Query] | None = None,
    tag: str = "interactive",
) -> list[Path]:
    """Writes a run as TREC files.

    Args:
        folder: Where to; made when missing.
        rounds: The run's records in any order.
        round_count: How many rounds the run was to have.
        queries: The queries that were asked; None: those that the run holds.
        tag: Name of the run, the last column.

    Returns:
        The files written.

    Raises:
        ValueError: As `evaluation.sessions.build_sessions`, or if an id or the tag is empty.
    """
    sessions = build_sessions(rounds, round_count, queries)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "target.qrels": [
            f"{encode_id(session.query_id)} 0 {encode_id(session.target)} 1"
            for session in sessions
            if session.target is not None
        ]
    }
    for number in range(round_count):
        run = files[f"round{number}.run"] = []
        qrels = files[f"round{number}.relevant.qrels"] = []
        for session in sessions:
            state = session.state(number)
            query = encode_id(session.query_id)
            relevant = session.relevant if state is None else state.relevant
            qrels.extend(f"{query} 0 {encode_id(image)} 1" for image in sorted(relevant))
            images = () if state is None else state.image_ids
            run.extend(
                f"{query} Q0 {encode_id(image)} {rank} {len(images) - rank + 1} {encode_id(tag)}"
                for rank, image in enumerate(images, start=1)
            )
    for name, lines in files.items():
        write_bytes(folder / name, "".join(f"{line}\n" for line in lines).encode())
    return [folder / name for name in files]


def read_run(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Reads a TREC run file.

    Returns:
        For each query its images and scores, best first; equal scores stay in the order of the rank column.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not six columns with a whole rank and a number as score, or lists an image
            twice; names file and line.
    """
    ranked: dict[str, dict[str, tuple[float, int]]] = {}
    for where, columns in _read_columns(path, 6, "query Q0 image rank score tag"):
        query, image = decode_id(columns[0]), decode_id(columns[2])
        try:
            place = (-float(columns[4]), int(columns[3]))
        except ValueError as error:
            raise ValueError(
                f"{where}: rank {columns[3]!r} and score {columns[4]!r} must be numbers"
            ) from error
        images = ranked.setdefault(query, {})
        if image in images:
            raise ValueError(f"{where}: image {image!r} is listed twice for query {query!r}")
        images[image] = place
    return {
        query: [(image, -images[image][0]) for image in sorted(images, key=lambda image: images[image])]
        for query, images in ranked.items()
    }


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Reads a TREC file of relevance judgements.

    Returns:
        For each query its judged images with their grades.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not four columns with a whole grade, or judges an image twice; names file and
            line.
    """
    judged: dict[str, dict[str, int]] = {}
    for where, columns in _read_columns(path, 4, "query 0 image grade"):
        query, image = decode_id(columns[0]), decode_id(columns[2])
        try:
            grade = int(columns[3])
        except ValueError as error:
            raise ValueError(f"{where}: grade {columns[3]!r} must be a whole number") from error
        grades = judged.setdefault(query, {})
        if image in grades:
            raise ValueError(f"{where}: image {image!r} is judged twice for query {query!r}")
        grades[image] = grade
    return judged


def encode_id(name: str) -> str:
    """Returns an id without white space, reversibly.

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


def decode_id(name: str) -> str:
    """Returns the id that `encode_id` was given."""
    return unquote(name, errors="surrogatepass")


def _read_columns(path: Path, count: int, names: str) -> Iterable[tuple[str, list[str]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            columns = line.split()
            if len(columns) != count:
                raise ValueError(f"{path}, line {number}: {len(columns)} columns; expected {count}: {names}")
            yield f"{path}, line {number}", columns
