"""Other people's dialogues as they are: files of ChatIR and PlugIR, scored as they score them.

    python -m experiments.dialogues --dialogues FILE.json --search-space FILE.json --root FOLDER

A dialogue file is a JSON list of ``{"img": path, "dialog": [caption, "question? answer", ...]}``, the search
space a JSON list of image paths; both name images by their path below ROOT. In round r the first r + 1 turns
are searched, joined by ", ". Nobody points at anything here: who answered saw the target, and the dialogue
was held before. Results: runs/chatir-FILE/measures.json with cumulative Hits@10 and BRI per round; a report.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluation.measures import measure_sessions
from evaluation.plots import plot_recall_f1
from evaluation.report import write_report
from evaluation.runs import append_rounds, stream_rounds
from evaluation.sessions import build_sessions
from evaluation.tables import format_table
from evaluation.trec import write_trec
from experiments.identity import image_set_identity
from experiments.open_index import embed_images, open_retriever
from experiments.own_models import OwnModels
from experiments.run_folder import run_folder
from feedback.history import NextQuery
from feedback.protocols import PROTOCOLS
from feedback.rounds import search_round
from files import parse_json, write_json
from playground import open_dataset
from records import Dataset, Image, Query, Round
from retriever import Retriever, SearchQuery
from settings import DialogueSettings, read_settings, run_script

log = logging.getLogger(__name__)

PROTOCOL = PROTOCOLS["chatir"]
SEPARATOR = ", "  # between turns, as ChatIR joins them
COLUMNS = ("Hits@1", "Hits@5", "Hits@10", "Recall@10", "Mean rank", "BRI")


@dataclass(frozen=True)
class Dialogue:
    """What was said about one image."""

    id: str  # unique in the file: the image and the dialogue's place
    image_id: str  # the target
    turns: tuple[str, ...]  # the first caption, then a question with its answer each

    @property
    def query(self) -> Query:
        """The query that it begins with."""
        return Query(self.id, self.turns[0], self.image_id, frozenset({self.image_id}))

    def text(self, number: int, alone: bool) -> str:
        """Returns what is searched in a round, from 0: the last turn `alone`, or all turns so far joined.

        After the last turn the text stays what it was.
        """
        said = self.turns[: number + 1]
        return said[-1] if alone else SEPARATOR.join(said)


def read_dialogues(path: Path) -> list[Dialogue]:
    """Reads a dialogue file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no list of dialogues; names the entry.
    """
    dialogues = []
    for number, entry in enumerate(_read_list(path, "dialogues")):
        image_id, turns = (entry.get("img"), entry.get("dialog")) if isinstance(entry, dict) else (None, None)
        if not isinstance(image_id, str) or not isinstance(turns, list) or not turns:
            raise ValueError(f'{path}, entry {number}: expected {{"img": path, "dialog": [text, ...]}}')
        if not all(isinstance(turn, str) and turn.strip() for turn in turns):
            raise ValueError(f"{path}, entry {number}: a turn of {image_id!r} is blank or no text")
        dialogues.append(Dialogue(f"{image_id}#{number}", image_id, tuple(turns)))
    return dialogues


def read_search_space(path: Path, root: Path) -> Dataset:
    """Reads the images among which dialogues search: a JSON list of paths below `root`, which are their ids.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no list of paths, or holds one twice.
    """
    ids = _read_list(path, "image paths")
    wrong = [entry for entry in ids if not isinstance(entry, str) or not entry]
    if wrong:
        raise ValueError(f"{path}: got {wrong[0]!r}, expected image paths")
    image_id, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{path}: {image_id!r} is listed {times} times, expected every image once")
    return Dataset(path.stem, root, tuple(Image(image_id, root / image_id) for image_id in ids), ())


def play_dialogues(
    dialogues: Sequence[Dialogue],
    retriever: Retriever,
    round_count: int,
    *,
    alone: bool = False,
    batch_size: int = 256,
    played: Iterable[Round] = (),
) -> Iterator[list[Round]]:
    """Searches every round of every dialogue; none stops early, found or not.

    `round_count` includes the first caption's; what `played`, an earlier run, holds is not searched again.

    Yields:
        The new records, batch by batch.

    Raises:
        ValueError: If an image is not in the index.
    """
    done = {(record.query_id, record.number) for record in played}
    with tqdm(total=round_count * len(dialogues), desc="searching", unit="turn") as bar:
        for number in range(round_count):
            for start in range(0, len(dialogues), batch_size):
                part = dialogues[start : start + batch_size]
                due = [dialogue for dialogue in part if (dialogue.id, number) not in done]
                if due:
                    searches = [NextQuery(SearchQuery(text=one.text(number, alone))) for one in due]
                    queries = [dialogue.query for dialogue in due]
                    yield search_round(queries, [[] for _ in due], searches, number, retriever, PROTOCOL)
                bar.update(len(part))


def run_dialogues(settings: DialogueSettings, own: OwnModels | None = None) -> Path:
    """Evaluates a dialogue file; returns the run's folder, whose files are those of `run_experiment`.

    Of `own`, the encoder and the image vectors are used.

    Raises:
        FileNotFoundError: If a file or the checkpoint is missing.
        ValueError: If one cannot be used, a dialogue's image is not in the search space, or the folder holds
            a run with other settings.
    """
    settings = settings.resolved()
    assert settings.dialogues is not None  # resolved
    dialogues = read_dialogues(settings.dialogues)
    dataset = (
        read_search_space(settings.search_space, settings.root or Path())
        if settings.search_space
        else open_dataset(settings.dataset, settings.root, settings.split or "all")
    )
    known = {image.id for image in dataset.images}
    strange = [dialogue.image_id for dialogue in dialogues if dialogue.image_id not in known]
    if strange:
        raise ValueError(
            f"{settings.dialogues}: {len(strange)} images are not in the search space of {len(known)}, first "
            f"{strange[0]!r}; name the search space that belongs to it"
        )
    encoder = own.given_encoder() if own else None
    if encoder is not None:
        embed_images(dataset, settings, encoder, encoder.embed_parts)
    elif settings.search_space:  # no other command knows which images these are
        embed_images(dataset, settings)
    retriever = open_retriever(settings, encoder)
    indexed = frozenset(retriever.index.ids)
    asked = [dialogue for dialogue in dialogues if dialogue.image_id in indexed]
    left_out = [dialogue.id for dialogue in dialogues if dialogue.image_id not in indexed]
    if left_out:
        log.warning("left out %d dialogues: their pictures cannot be read", len(left_out))
    round_count = settings.rounds or max(len(dialogue.turns) for dialogue in dialogues)
    identity = image_set_identity(dataset.images) | {
        "encoder_fingerprint": retriever.encoder.fingerprint,
        "dialogues_sha256": hashlib.sha256(settings.dialogues.read_bytes()).hexdigest(),
    }
    with run_folder(settings, identity) as folder:
        path = folder / "rounds.jsonl"
        played = stream_rounds(path) if path.is_file() else ()
        alone, size = settings.turns == "alone", settings.query_batch
        for fresh in play_dialogues(
            asked, retriever, round_count, alone=alone, batch_size=size, played=played
        ):
            append_rounds(path, fresh)
        sessions = build_sessions(stream_rounds(path), round_count, [dialogue.query for dialogue in asked])
        measures = measure_sessions(sessions, round_count, len(retriever.index))
        extra = {"images": len(retriever.index), "queries_left_out": left_out}
        write_json(folder / "measures.json", measures.to_json() | extra)
        write_trec(folder / "trec", stream_rounds(path), sessions, round_count)
        summary = measures.summary()
        plot_recall_f1({"dialogues": summary}, folder / "recall_f1.png")
        write_report(folder, dataset.folder, sessions, title="Dialogues")
        print(format_table(summary, COLUMNS))  # noqa: T201  the final table is the command's answer
        log.info("written: %s", folder / "report.html")
    return folder


def _read_list(path: Path, what: str) -> list[Any]:
    try:
        entries = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}; expected a list of {what}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected a JSON list of {what}, with at least one")
    return entries


def main() -> None:
    """Reads the command line, and evaluates."""
    run_dialogues(read_settings(DialogueSettings, {}))


if __name__ == "__main__":
    raise SystemExit(run_script(main))
