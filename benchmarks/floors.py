"""How far each stage is from what the machine could do at best.

    python -m benchmarks.floors
    python -m benchmarks.floors --full-size      # BLIP base at 384 pixels too, with random weights

First the machine is probed: matrix products, reading memory, writing a file. Then every stage is run on the
demo's models and pictures, with one thread, and its CPU seconds are put beside its floor: the operations that
it cannot do without over those a second, or the bytes over those a second, whichever takes longer
(`benchmarks.model_work`). Results: two tables, ``floors.json`` and ``floors.md``.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.growth import DIMENSION, LISTED, make_index
from benchmarks.model_work import (
    Machine,
    Work,
    looks_at_image,
    reads_image,
    reads_text,
    step_bytes,
    writes_tokens,
)
from benchmarks.search import Watch, in_a_process, plain_settings, where
from evaluation.tables import as_markdown
from files import write_json
from settings import PRESETS, PROJECT, run_script

log = logging.getLogger(__name__)

PROBES = 7  # the best of so many counts: other work on the machine can only slow one down
MATRIX = 1536
READ_BYTES = 256 << 20
WRITTEN_BYTES = 64 << 20
RECORDS = 256
DEMO_BLIP = str(PROJECT / PRESETS["demo"]["blip"])


@dataclass(frozen=True)
class FloorSettings:
    """Compares each stage with its floor.

    Attributes:
        images: Pictures decoded and embedded.
        captioned: Pictures captioned.
        pairs: Queries rewritten.
        batch: Pictures captioned, or queries rewritten, at a time.
        vectors: In the collection that is searched.
        queries: Encoded, and searched together.
        rewrite_model: A language model that completes; the demo's when not given.
        full_size: Also embed pictures with BLIP base at 384 pixels, with random weights.
        output: Folder of the results.
    """

    images: int = 256
    captioned: int = 64
    pairs: int = 64
    batch: int = 32
    vectors: int = 100_000
    queries: int = 256
    rewrite_model: str | None = None
    full_size: bool = False
    output: Path = Path("runs/benchmark-floors")


@dataclass(frozen=True)
class Probe:
    """What the machine can do, measured with one thread.

    Attributes:
        float32: Operations a second of a matrix product, the best of NumPy, MKL and oneDNN.
        bfloat16: The same in bfloat16.
        memory: Bytes read a second.
        file: Bytes a second into a file, until they are on the disk.
    """

    float32: float
    bfloat16: float
    memory: float
    file: float


@dataclass(frozen=True)
class Stage:
    """One stage, for one item.

    Attributes:
        name: Which.
        item: Of what.
        bound: What the floor is made of.
        floor_ms: The least time.
        measured_ms: Of the processor; of the clock where a disk decides.
    """

    name: str
    item: str
    bound: str
    floor_ms: float
    measured_ms: float


def main() -> None:
    """Runs from the command line."""
    import tyro

    settings = tyro.cli(FloorSettings)
    probe, stages = in_a_process(1, measure, settings)
    settings.output.mkdir(parents=True, exist_ok=True)
    found = {
        "settings": plain_settings(settings),
        "machine": where("benchmarks.floors"),
        "probe": vars(probe),
        "stages": [vars(stage) | {"ratio": stage.measured_ms / stage.floor_ms} for stage in stages],
    }
    write_json(settings.output / "floors.json", found)
    text = f"{probe_table(probe)}\n\n{stage_table(stages)}"
    (settings.output / "floors.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    log.info("written: %s", settings.output / "floors.json")


def measure(settings: FloorSettings) -> tuple[Probe, list[Stage]]:
    """Probes the machine and runs all stages, in this process and with its number of threads.

    Raises:
        FileNotFoundError: If the demo has not been made.
    """
    probe = probe_machine()
    log.info("%s", probe)
    stages = []
    for stage in _stages(settings, probe):
        log.info("%s", stage)
        stages.append(stage)
    return probe, stages


def probe_machine() -> Probe:
    """Measures matrix products, reading and writing; the best of several."""
    import torch

    from BLIP.packed import PackedLinear, can_pack

    def product(dtype: torch.dtype) -> float:
        left, right = torch.ones(MATRIX, MATRIX, dtype=dtype), torch.ones(MATRIX, MATRIX, dtype=dtype)
        return 2 * MATRIX**3 / _best(lambda: left @ right)

    plain = np.ones((MATRIX, MATRIX), dtype=np.float32)
    rates = [product(torch.float32), 2 * MATRIX**3 / _best(lambda: plain @ plain)]
    if can_pack():
        packed, rows = PackedLinear(torch.nn.Linear(MATRIX, MATRIX)), torch.ones(MATRIX, MATRIX)
        with torch.inference_mode():
            rates.append(2 * MATRIX**3 / _best(lambda: packed(rows)))
    numbers = np.ones(READ_BYTES // 4, dtype=np.float32)
    return Probe(
        float32=max(rates),
        bfloat16=product(torch.bfloat16),
        memory=READ_BYTES / _best(lambda: numbers.max()),
        file=WRITTEN_BYTES / min(_written() for _ in range(3)),
    )


def _best(work: Callable[[], Any]) -> float:
    work()
    seconds = []
    for _ in range(PROBES):
        watch = Watch()
        work()
        seconds.append(watch.seconds()[1])
    return min(seconds)


def _written() -> float:
    data = os.urandom(WRITTEN_BYTES)
    with tempfile.TemporaryFile() as file:
        started = time.perf_counter()
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return time.perf_counter() - started


def _stages(settings: FloorSettings, probe: Probe) -> Iterator[Stage]:
    from BLIP.model import BlipEncoder
    from playground import open_dataset

    dataset = open_dataset("demo", None, "test")
    paths = [image.path for image in dataset.images]
    encoder = BlipEncoder.open(DEMO_BLIP, batch_size=64)
    yield _decoding(paths[: settings.images], encoder)
    yield _embedding("embed a picture, the demo's BLIP", DEMO_BLIP, encoder, paths[: settings.images], probe)
    if settings.full_size:
        from benchmarks.full_size import BLIP, make_blip

        with tempfile.TemporaryDirectory() as folder:
            make_blip(Path(folder), tiny=False)
            base = BlipEncoder.open(Path(folder), batch_size=4)
        yield _embedding("embed a picture, BLIP base at 384 pixels", BLIP, base, paths[:16], probe)
        del base
    texts = [query.text for query in dataset.queries[: settings.queries]]
    yield _encoding_texts(texts, encoder, probe)
    yield from _searching(settings, probe)
    yield _captioning(paths[: settings.captioned], settings.batch, probe)
    yield from _rewriting(texts[: settings.pairs], settings, probe)
    yield _recording(probe)


def _decoding(paths: Sequence[Path], encoder: Any) -> Stage:
    from PIL import Image

    from index.decode import open_image

    def alone() -> None:
        for path in paths:
            with Image.open(path) as picture:
                picture.load()

    floor, spent = (
        _best_of_two(alone),
        _best_of_two(lambda: [encoder.prepare_image(open_image(path)) for path in paths]),
    )
    each = 1000 / len(paths)
    return Stage("decode and resize", "picture", "Pillow's decoder alone", floor * each, spent * each)


def _embedding(name: str, model: str, encoder: Any, paths: Sequence[Path], probe: Probe) -> Stage:
    from generation.footprint import configuration
    from index.decode import open_image

    ready = [encoder.prepare_image(open_image(path)) for path in paths]
    encoder.encode_images(ready[:8])
    spent = _best_of_two(lambda: encoder.encode_images(ready))
    work = reads_image(configuration(model).vision_config)
    floor = Machine(probe.float32, probe.memory).seconds(work)
    return Stage(name, "picture", "operations, fp32", 1000 * floor, 1000 * spent / len(ready))


def _encoding_texts(texts: Sequence[str], encoder: Any, probe: Probe) -> Stage:
    from generation.footprint import configuration

    encoder.encode_texts(texts[:8])
    spent = _best_of_two(lambda: encoder.encode_texts(texts))
    config = configuration(DEMO_BLIP).text_config
    lengths = encoder.tokenizer.encode(texts, encoder.text_limit).mask.sum(1).tolist()
    work = sum((reads_text(config, length, causal=False) for length in lengths), Work(0))
    floor = Machine(probe.float32, probe.memory).seconds(work)
    each = 1000 / len(texts)
    return Stage("encode a query, the demo's BLIP", "query", "operations, fp32", floor * each, spent * each)


def _searching(settings: FloorSettings, probe: Probe) -> Iterator[Stage]:
    from index.faiss_index import FaissIndex

    with tempfile.TemporaryDirectory() as name:
        make_index(Path(name), settings.vectors, "flat", 0)
        index = FaissIndex.open(Path(name))
        random = np.random.default_rng(0)
        asked = random.standard_normal((settings.queries, DIMENSION), dtype=np.float32)
        asked /= np.linalg.norm(asked, axis=1, keepdims=True)
        targets = [index.ids[row] for row in random.integers(len(index), size=len(asked))]
        machine = Machine(probe.float32, probe.memory)
        size = 4.0 * len(index) * DIMENSION
        together = Work(2.0 * len(index) * DIMENSION * len(asked), size)
        alone = Work(2.0 * len(index) * DIMENSION, size)
        index.search(asked[:1], LISTED)
        for stage, queries, work, run in (
            (f"search {settings.vectors:,} images, {len(asked)} queries", len(asked), together,
             lambda: index.search(asked, LISTED)),
            (f"count the target's rank, {len(asked)} queries", len(asked), together,
             lambda: index.rank_of(asked, targets)),
            ("search, one query alone", 1, alone, lambda: index.search(asked[:1], LISTED)),
        ):  # fmt: skip
            bound = "operations, fp32" if queries > 1 else "bytes of the vectors"
            floor, spent = machine.seconds(work), _best_of_two(run)
            yield Stage(stage, "query", bound, 1000 * floor / queries, 1000 * spent / queries)


def _captioning(paths: Sequence[Path], batch: int, probe: Probe) -> Stage:
    from captioning import Captioning
    from generation.footprint import configuration
    from index.decode import open_image

    model = str(PROJECT / PRESETS["demo"]["caption_model"])
    captioner = Captioning(model, PRESETS["demo"]["quantization"], batch)
    pictures = [open_image(path) for path in paths]
    captioner.caption(pictures[:2])
    written, watch = captioner.tokens_written, Watch()
    captioner.caption(pictures)
    spent = watch.seconds()[1]
    tokens = (captioner.tokens_written - written) / len(pictures)
    config = configuration(model)
    text, vision = config.text_config, config.vision_config
    seen = (vision.image_size // vision.patch_size) ** 2 + 1
    machine, number_bytes = _machine(captioner.quantization, probe)
    work = (
        reads_image(vision)
        + looks_at_image(text, tokens, seen, vision.hidden_size)
        + writes_tokens(text, tokens, 0, batch, step_bytes(text, number_bytes), number_bytes)
    )
    bound = f"operations, {captioner.quantization}; {tokens:.0f} tokens"
    return Stage(
        f"caption, the demo's BLIP, {batch} at a time", "picture", bound, 1000 * machine.seconds(work),
        1000 * spent / len(pictures),
    )  # fmt: skip


def _rewriting(texts: Sequence[str], settings: FloorSettings, probe: Probe) -> Iterator[Stage]:
    """Reads the prompts, then writes; the examples that all prompts share have been read before."""
    from transformers import AutoConfig, AutoTokenizer

    from generation.precision import precision_of
    from generation.prompts import REWRITE_FEW_SHOT
    from generation.text_model import TextModel, source_of
    from query_editing import MAX_TOKENS

    name = settings.rewrite_model or PRESETS["demo"]["rewrite_model"]
    precision = precision_of(PRESETS["demo"]["quantization"])
    model = TextModel(name, precision, settings.batch)
    said = "a red fish under two green trees at the beach"
    prompts = [REWRITE_FEW_SHOT.open.format(query=text, caption=said) for text in texts]

    def complete(most: int) -> tuple[float, int]:
        written, watch = model.tokens_written, Watch()
        model.complete(prompts, max_tokens=most, prefix=REWRITE_FEW_SHOT.prefix, stops_at_line_end=True)
        return watch.seconds()[1], model.tokens_written - written

    complete(2)
    reading, first = complete(1)
    writing, all_tokens = complete(MAX_TOKENS)
    source, options = source_of(name)
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    config = AutoConfig.from_pretrained(source, **options)
    shared = len(tokenizer(REWRITE_FEW_SHOT.prefix, add_special_tokens=False)["input_ids"])
    lengths = [len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
    machine, number_bytes = _machine(precision, probe)
    weights = step_bytes(config, number_bytes)
    output = 2.0 * config.hidden_size * config.vocab_size
    batches = -(-len(prompts) // settings.batch)
    read = sum((reads_text(config, length, shared) for length in lengths), Work(0))
    read += Work(output * len(prompts), weights * batches)
    each = 1000 / len(prompts)
    yield Stage(
        f"rewrite: read the prompt, {name}, {settings.batch} at a time", "query",
        f"operations, {precision}; {np.mean(lengths):.0f} tokens", machine.seconds(read) * each,
        reading * each,
    )  # fmt: skip
    later = all_tokens - first
    if not later:
        raise ValueError(f"{name} wrote no second token to any prompt, so writing cannot be timed")
    before = shared + float(np.mean(lengths))
    write = writes_tokens(config, later / len(prompts), before, settings.batch, weights, number_bytes)
    yield Stage(
        f"rewrite: write, {name}, {settings.batch} at a time", "token",
        f"operations or bytes, {precision}", 1000 * machine.seconds(write) * len(prompts) / later,
        1000 * (writing - reading) / later,
    )  # fmt: skip


def _recording(probe: Probe) -> Stage:
    from evaluation.runs import append_rounds
    from records import Round

    ids = tuple(f"scenes/{number:08}.jpg" for number in range(LISTED))
    scores = tuple(round(0.9 - number / 1000, 6) for number in range(LISTED))
    caption = ("a red fish under two green trees at the beach",)
    rounds = [
        Round(f"{number}#4", 1, "something to eat outdoors, a red fish", ids[0], ids[:1], ids, scores, 10, 7,
              liked=ids[1:2], captions=caption)
        for number in range(RECORDS)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for turn in range(3):
            path = Path(folder) / f"{turn}.jsonl"
            started = time.perf_counter()
            append_rounds(path, rounds)
            seconds.append(time.perf_counter() - started)
        size = path.stat().st_size
    return Stage(
        f"write the records, {RECORDS} at a time", "query", "bytes to the disk",
        1000 * size / probe.file / RECORDS, 1000 * min(seconds) / RECORDS,
    )  # fmt: skip


def _machine(precision: str, probe: Probe) -> tuple[Machine, int]:
    if precision == "bf16":
        return Machine(probe.bfloat16, probe.memory), 2
    return Machine(probe.float32, probe.memory), 4


def _best_of_two(work: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(2):
        watch = Watch()
        work()
        seconds.append(watch.seconds()[1])
    return min(seconds)


def probe_table(probe: Probe) -> str:
    """Lays out what the machine can do, as Markdown."""
    return as_markdown(
        [
            ("One thread", "a second"),
            ("matrix product, float32", f"{probe.float32 / 1e9:.0f} GFLOP"),
            ("matrix product, bfloat16", f"{probe.bfloat16 / 1e9:.0f} GFLOP"),
            ("reading memory", f"{probe.memory / 1e9:.1f} GB"),
            ("writing a file", f"{probe.file / 1e9:.2f} GB"),
        ]
    )


def stage_table(stages: Sequence[Stage]) -> str:
    """Lays out the stages, as Markdown."""
    rows = [("Stage", "For each", "Floor made of", "Floor, ms", "Measured, ms", "Ratio")]
    for one in stages:
        figures = (f"{one.floor_ms:.3g}", f"{one.measured_ms:.3g}", f"{one.measured_ms / one.floor_ms:.1f}")
        rows.append((one.name, one.item, one.bound, *figures))
    return as_markdown(rows, left=3)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
