"""How fast rewrites are written: transformers' `generate` against `generation.greedy`.

    python -m benchmarks.generation

Rewrites the demo's vague queries with captions of other scenes, by SmolLM2-135M, in one process, the ways
taking turns. What counts are the tokens of the answers: what a batch writes after an answer's end does not.
Prints a Markdown table and writes ``generation.json`` into the output folder.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from evaluation.tables import as_markdown
from files import write_json
from generation.prompts import REWRITE_FEW_SHOT
from generation.text_model import TextModel, cut
from playground.demo import read
from query_editing import MAX_TOKENS
from settings import run_script

log = logging.getLogger(__name__)

MODEL = "smollm2-135m-instruct"
THEIRS = "transformers' generate"
DEMO = Path("playground/data/demo")
LOOKUP = "the same, prompt lookup"
OURS = "generation.greedy"
Write = Callable[[], tuple[list[str], int]]  # the answers, and how many tokens they have


@dataclass(frozen=True)
class GenerationBenchmarkSettings:
    """Times the rewriting model.

    Attributes:
        prompts: How many rewrites a measurement is made of.
        batches: Prompts at a time.
        precisions: Of the weights.
        repeats: How often each way takes its turn; the median counts.
        output: Folder of the results.
    """

    prompts: int = 64
    batches: tuple[int, ...] = (1, 8, 32)
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    repeats: int = 3
    output: Path = Path("runs/benchmark-generation")


def main() -> None:
    """Runs from the command line."""
    import tyro

    settings = tyro.cli(GenerationBenchmarkSettings)
    settings.output.mkdir(parents=True, exist_ok=True)
    rows = [row for precision in settings.precisions for row in measure(settings, precision)]
    write_json(settings.output / "generation.json", {"prompts": settings.prompts, "rows": rows})
    print(_table(rows))
    log.info("written: %s", settings.output / "generation.json")


def measure(
    settings: GenerationBenchmarkSettings, precision: Literal["fp32", "bf16"]
) -> list[dict[str, Any]]:
    """Measures all ways in one precision.

    Returns:
        A row a way and batch: tokens a second, rewrites a second, CPU seconds, the share of answers that are
        those of one prompt at a time.
    """
    told = _prompts(settings.prompts)
    ways: dict[tuple[str, int], Write] = {}
    theirs = TextModel(MODEL, precision, 1)
    theirs.complete(["a dog"], max_tokens=2)  # loaded before the clock starts
    for batch in settings.batches:
        ways[THEIRS, batch] = _theirs(theirs, told, batch)
    ways[LOOKUP, 1] = _theirs(theirs, told, 1, prompt_lookup_num_tokens=10)
    for batch in settings.batches:
        ways[OURS, batch] = _ours(TextModel(MODEL, precision, max(settings.batches)), told, batch)
    times: dict[tuple[str, int], list[tuple[float, float]]] = {way: [] for way in ways}
    answers: dict[tuple[str, int], tuple[list[str], int]] = {}
    for _ in range(settings.repeats):
        for way, write in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            answers[way] = write()
            times[way].append((time.perf_counter() - wall, time.process_time() - cpu))
            log.info("%s, %s, %d at a time: %.1f s", precision, *way, times[way][-1][0])
    plain, _ = answers[THEIRS, settings.batches[0]]
    rows = []
    for way, taken in times.items():
        seconds = statistics.median(wall for wall, _ in taken)
        texts, tokens = answers[way]
        same = sum(one == other for one, other in zip(texts, plain, strict=True))
        rows.append(
            {
                "precision": precision,
                "way": way[0],
                "at a time": way[1],
                "tokens/s": tokens / seconds,
                "rewrites/s": len(told) / seconds,
                "CPU s": statistics.median(cpu for _, cpu in taken),
                "same answers": same / len(told),
            }
        )
    for row in rows:
        row["times faster"] = row["rewrites/s"] / rows[0]["rewrites/s"]
    return rows


def _prompts(count: int) -> list[str]:
    """Pairs the vague query of a scene with the full caption of the next."""
    dataset = read(DEMO, "test")
    said = {query.id: query.text for query in dataset.queries}
    names = [image.id for image in dataset.images[: count + 1]]
    return [
        REWRITE_FEW_SHOT.open.format(query=said[f"{name}#4"], caption=said[f"{other}#0"])
        for name, other in pairwise(names)
    ]


def _theirs(model: TextModel, told: Sequence[str], batch: int, **options: Any) -> Write:
    """Prompts padded on the left, sorted by length, and read whole."""
    network, tokenizer = model._loaded
    ends = [*model._ends, *model._line_ends]
    rows = [tokenizer(REWRITE_FEW_SHOT.prefix + text, add_special_tokens=False)["input_ids"] for text in told]
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))

    def write() -> tuple[list[str], int]:
        import torch

        network.set_attn_implementation("sdpa")
        answers: dict[int, list[int]] = {}
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            inputs = tokenizer.pad({"input_ids": [rows[place] for place in places]}, return_tensors="pt")
            with torch.inference_mode():
                output = network.generate(
                    **inputs,
                    max_new_tokens=MAX_TOKENS,
                    do_sample=False,
                    eos_token_id=ends,
                    pad_token_id=tokenizer.pad_token_id,
                    **options,
                )
            for place, new in zip(places, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                answers[place] = cut(new, ends)
        texts = tokenizer.batch_decode([answers[row] for row in range(len(rows))], skip_special_tokens=True)
        return texts, sum(map(len, answers.values()))

    return write


def _ours(model: TextModel, told: Sequence[str], batch: int) -> Write:
    """Asked for so many at a time; what room is left guesses ahead."""
    model.complete(["a dog"], max_tokens=2)  # loaded before the clock starts

    def write() -> tuple[list[str], int]:
        before = model.tokens_written
        answers = []
        for start in range(0, len(told), batch):
            answers += model.complete(
                told[start : start + batch],
                prefix=REWRITE_FEW_SHOT.prefix,
                max_tokens=MAX_TOKENS,
                stops_at_line_end=True,
            )
        return answers, model.tokens_written - before

    return write


def _table(rows: Sequence[dict[str, Any]]) -> str:
    cells = [("", "Way", "at a time", "tokens/s", "rewrites/s", "times faster", "CPU s", "same answers")]
    for row in rows:
        cells.append(
            (
                row["precision"],
                row["way"],
                str(row["at a time"]),
                f"{row['tokens/s']:.0f}",
                f"{row['rewrites/s']:.2f}",
                f"{row['times faster']:.1f}",
                f"{row['CPU s']:.1f}",
                f"{100 * row['same answers']:.0f} %",
            )
        )
    return as_markdown(cells)


if __name__ == "__main__":
    sys.exit(run_script(main))
