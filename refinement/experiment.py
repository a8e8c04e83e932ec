"""Wires settings, dataset, models, the loop and the results: the one place where they meet."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from embedding.build import build_index
from evaluation.measures import Measures, evaluate
from evaluation.plots import plot_recall_f1
from evaluation.report import write_report
from evaluation.runs import append_rounds, read_json, read_rounds, write_json
from evaluation.tables import format_table
from evaluation.trec import write_trec
from generation.caption_store import CaptionStore
from indexes.faiss_index import FaissIndex
from playground import open_dataset
from records import Dataset, Query, Round
from refinement.protocols import PROTOCOLS
from refinement.rounds import play_rounds
from refinement.strategies import Rewriter, make_strategy
from refinement.users import FirstUser, NearestUser, RandomUser, User, caption_vectors
from retriever import Retriever
from settings import PROJECT, ExperimentSettings, IndexSettings

log = logging.getLogger(__name__)

# What does not change a run's results, and so may differ when it is resumed.
FREE_SETTINGS = frozenset(
    ("root", "index", "image_batch", "workers", "rebuild", "caption_batch", "rewrite_batch", "query_batch")
    + ("output", "restart", "preset")
)
SCROLLING = "scrolling"  # the control: the person's own words in every round, only more images


def embed_dataset(settings: IndexSettings) -> FaissIndex:
    """Embeds a dataset's images, or opens the index that is there.

    Args:
        settings: Dataset, model, folder.

    Raises:
        FileNotFoundError: If dataset or checkpoint are missing.
        ValueError: If they cannot be used.
    """
    settings = settings.resolved()
    dataset = _open_dataset(settings)
    return _open_index(settings, dataset, _open_encoder(settings))


def run_experiment(settings: ExperimentSettings) -> Path:
    """Plays the rounds, or what is left of them, and writes all results.

    Args:
        settings: Everything; see `ExperimentSettings`.

    Returns:
        The run's folder with ``settings.json``, ``rounds.jsonl``, ``measures.json``, ``recall_f1.png``,
        ``report.html``, the scrolling control's ``scrolling.rounds.jsonl`` and, for other tools, ``trec/``.

    Raises:
        FileNotFoundError: If dataset, checkpoint or index are missing.
        ValueError: If they cannot be used, or the folder holds a run with other settings.
    """
    started = time.monotonic()
    settings = settings.resolved()
    folder = _claim(settings)
    dataset = _open_dataset(settings)
    encoder = _open_encoder(settings)
    retriever = Retriever(encoder, _open_index(settings, dataset, encoder))
    queries = choose_queries(dataset, settings, retriever.index.ids)
    captions = _open_captions(settings, dataset)
    play = partial(
        play_rounds,
        queries,
        retriever=retriever,
        protocol=PROTOCOLS[settings.protocol],
        captions=captions,
        round_count=settings.rounds,
        batch_size=settings.query_batch,
    )
    strategy = make_strategy(settings.strategy, _open_rewriter(settings))
    rounds = _play_into(
        folder / "rounds.jsonl",
        partial(play, strategy=strategy, user=_open_user(settings, dataset, retriever)),
    )
    control = _play_into(
        folder / f"{SCROLLING}.rounds.jsonl",
        partial(play, strategy=make_strategy("original", None), user=FirstUser()),
    )
    measures = evaluate(rounds, settings.rounds, queries, len(retriever.index))
    control_measures = evaluate(control, settings.rounds, queries, len(retriever.index))
    _write_results(folder, dataset, queries, rounds, measures, control_measures, settings)
    _log_summary(rounds, captions, time.monotonic() - started)
    return folder


def choose_queries(dataset: Dataset, settings: ExperimentSettings, indexed: Sequence[str]) -> list[Query]:
    """Takes the queries that the settings ask for.

    Queries whose target picture could not be embedded cannot be answered by anyone: they are left out, and
    counted in the log.

    Raises:
        ValueError: If none is left.
    """
    wanted = settings.caption_numbers
    queries = [q for q in dataset.queries if wanted is None or q.id.rsplit("#", 1)[-1] in wanted]
    there = frozenset(indexed)
    usable = [
        dataclasses.replace(query, relevant=query.relevant & there)
        for query in queries
        if (query.target is None or query.target in there) and query.relevant & there
    ]
    if len(usable) < len(queries):
        log.warning(
            "left out %d queries: their target pictures are not in the index", len(queries) - len(usable)
        )
    if not usable:
        raise ValueError(f"dataset {dataset.name} has no queries for caption numbers {wanted or 'all'}")
    count = min(settings.queries or len(usable), len(usable))
    return [usable[number * len(usable) // count] for number in range(count)]


def _claim(settings: ExperimentSettings) -> Path:
    """Writes the settings beside the run, or refuses a folder that holds a run with others."""
    folder = settings.output
    if folder is None:
        raise ValueError("output: the settings are not resolved")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    ours = {
        field.name: _jsonable(getattr(settings, field.name))
        for field in dataclasses.fields(settings)
        if field.name != "restart"
    }
    if settings.restart:
        for name in ("rounds.jsonl", f"{SCROLLING}.rounds.jsonl", "settings.json"):
            (folder / name).unlink(missing_ok=True)
    if path.is_file():
        theirs = read_json(path)
        differing = [name for name in ours if name not in FREE_SETTINGS and theirs.get(name) != ours[name]]
        if differing:
            named = ", ".join(f"{name}: {theirs.get(name)!r} there, {ours[name]!r} now" for name in differing)
            raise ValueError(
                f"{folder} holds a run with other settings ({named}); choose another --output or --restart"
            )
    write_json(path, ours)
    return folder


def _jsonable(value: Any) -> Any:
    if isinstance(value, Path):
        return value.relative_to(PROJECT).as_posix() if value.is_relative_to(PROJECT) else value.as_posix()
    return list(value) if isinstance(value, tuple) else value


def _open_dataset(settings: IndexSettings) -> Dataset:
    return open_dataset(settings.dataset, settings.root, settings.split or "all")


def _open_encoder(settings: IndexSettings) -> Any:
    import torch

    from BLIP.model import BlipEncoder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = PROJECT / (settings.blip or "")
    return BlipEncoder.open(path, settings.image_size, device, batch_size=settings.image_batch or 32)


def _open_index(settings: IndexSettings, dataset: Dataset, encoder: Any) -> FaissIndex:
    if settings.index is None:
        raise ValueError("index: the settings are not resolved")
    return build_index(
        dataset.images,
        encoder,
        settings.index,
        model_name=settings.blip or "",
        dataset=dataset.name,
        image_folder=dataset.folder,
        batch_size=settings.image_batch or 32,
        workers=settings.workers,
        rebuild=settings.rebuild,
    )


def _open_captions(settings: ExperimentSettings, dataset: Dataset) -> CaptionStore:
    from captioning import Captioning

    model_id = settings.caption_model or ""
    local = PROJECT / model_id
    captioner = Captioning(
        str(local) if local.exists() else model_id, _quantization(settings), settings.caption_batch or 8
    )
    name = captioner.name.replace(str(local), model_id)
    words = "".join(letter if letter.isalnum() else "-" for letter in name.split(":")[0])
    path = settings.index / f"captions-{words}.jsonl" if settings.index else None
    return CaptionStore(captioner, name, dataset.images, path)


def _open_rewriter(settings: ExperimentSettings) -> Rewriter | None:
    if not settings.strategy.startswith("rewrite"):
        return None
    from query_editing import QueryEditing

    return QueryEditing(settings.rewrite_model or "", _quantization(settings), settings.rewrite_batch or 8)


def _quantization(settings: ExperimentSettings) -> str | bool:
    from generation.precision import fastest_precision

    return fastest_precision() if settings.quantization in ("auto", None) else settings.quantization


def _open_user(settings: ExperimentSettings, dataset: Dataset, retriever: Retriever) -> User:
    if settings.strategy == "original" or settings.user == "first":
        return FirstUser()
    if settings.user == "random":
        return RandomUser(settings.seed)
    if settings.user == "reference":
        return NearestUser(retriever.vectors_of)
    from refinement.sentence_encoder import open_sentence_encoder

    indexed = frozenset(retriever.index.ids)
    images = [image for image in dataset.images if image.id in indexed]
    return NearestUser(caption_vectors(images, open_sentence_encoder(settings.user_model).encode_texts))


def _play_into(path: Path, play: Any) -> list[Round]:
    played = read_rounds(path) if path.is_file() else []
    if played:
        log.info("%s: going on after %d records", path, len(played))
    return play(played=played, keep=partial(append_rounds, path))


def _write_results(
    folder: Path,
    dataset: Dataset,
    queries: Sequence[Query],
    rounds: Sequence[Round],
    measures: Measures,
    control: Measures,
    settings: ExperimentSettings,
) -> None:
    write_json(
        folder / "measures.json",
        measures.to_json()
        | {
            SCROLLING: control.to_json()["means_per_round"],
            "images": len(dataset.images),
            "skipped_by_the_reader": len(dataset.skipped),
            "fallbacks": sum(bool(record.fallback) for record in rounds),
        },
    )
    write_trec(folder / "trec", rounds, settings.rounds, queries)
    curves = {settings.strategy: measures.summary()}
    if settings.strategy != "original":
        curves[SCROLLING] = control.summary()
    plot_recall_f1(curves, folder / "recall_f1.png")
    write_report(folder, dataset.folder)
    print(format_table(measures.summary()))  # noqa: T201  the final table is the script's answer
    log.info("scrolling, the control without feedback: Recall@10 %s", _per_round(control, "Recall@10"))
    log.info("written: %s", folder / "report.html")


def _per_round(measures: Measures, name: str) -> str:
    return " ".join(f"{value:.3f}" for value in measures.summary().get(name, ()))


def _log_summary(rounds: Sequence[Round], captions: CaptionStore, seconds: float) -> None:
    moved = sum(record.number > 0 for record in rounds)
    reasons = Counter(record.fallback.split(" ")[0] for record in rounds if record.fallback)
    log.info(
        "%d refined queries, %d fell back to appending (%s); %d captions made; %.0f s",
        moved,
        sum(reasons.values()),
        ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "none",
        captions.made,
        seconds,
    )
