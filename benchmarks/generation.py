"""How fast rewrites are written: this project's `TextModel` in its engines against transformers' `generate`.

    python -m benchmarks.generation
    python -m benchmarks.generation --busy --ways auto

Rewrites the demo's vague queries with captions of other scenes, by SmolLM2-135M; the ways take turns in one
process. Only tokens of the answers count; what a batch goes on writing after an answer's end does not. How
long opening a model and its first rewrite take is measured in a fresh process each, imports included: cold,
with the packages' files dropped from memory first (Linux only), and warm. ``--busy`` keeps one core busy
meanwhile.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.timing import Watch, busy_core, drop_files, in_a_process, in_turns, parser, report
from settings import PROJECT, run_script

log = logging.getLogger(__name__)

MODEL = "smollm2-135m-instruct"
GENERATE = "generate"
WAYS = {
    GENERATE: "transformers' generate, float32",
    "fp32": "TextModel, transformers, float32",
    "auto": "TextModel, OpenVINO",
}
Answers = tuple[list[str], int]  # texts, and how many tokens they have
Write = Callable[[Sequence[str], int], Answers]


def main() -> None:
    """Runs from the command line."""
    read = parser(__doc__)
    read.add_argument("--prompts", type=int, default=64, help="rewrites in a measurement")
    read.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64], help="prompts at a time")
    read.add_argument(
        "--ways", nargs="+", default=list(WAYS), choices=WAYS, help="generate, or TextModel's precision"
    )
    read.add_argument("--repeats", type=int, default=3, help="turns of each way; their median counts")
    read.add_argument("--busy", action="store_true", help="measure beside a process that keeps a core busy")
    arguments = read.parse_args()
    with busy_core(arguments.busy):
        report("generation", arguments, measure(arguments))


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row a way and batch: speed against the first way's first batch, answers against its own."""
    from generation.openvino_engine import is_installed

    prompts, ways = vague_prompts(arguments.prompts), arguments.ways
    if "auto" in ways and not is_installed():
        log.warning("OpenVINO is left out: it is not installed; pip install openvino-genai")
        ways = [way for way in ways if way != "auto"]
    openings = {way: _openings(way, prompts[0], max(arguments.batches)) for way in ways}
    opened = {way: _open(way, max(arguments.batches)) for way in ways}
    for write in opened.values():
        write(prompts[:1], 1)  # so that nothing is set up on the clock
    timed = in_turns(
        {
            (way, batch): lambda way=way, batch=batch: opened[way](prompts, batch)
            for batch in arguments.batches
            for way in ways
        },
        arguments.repeats,
    )
    base, rows = timed[ways[0], arguments.batches[0]], []
    plain = timed.get((GENERATE, arguments.batches[0]))
    for way, batch in sorted(timed, key=lambda key: ways.index(key[0])):
        one, alone = timed[way, batch], timed[way, arguments.batches[0]]
        same = _share_equal(one.result[0], alone.result[0])
        rows.append(
            {
                "way": WAYS[way],
                "at a time": batch,
                "tokens/s": one.result[1] / one.wall,
                "rewrites/s": len(prompts) / one.wall,
                "CPU s": one.cpu,
                "times as fast": base.wall / one.wall,
                "times less CPU": base.cpu / one.cpu,
                "same answers": same,
                "as generate": None if plain is None else _share_equal(one.result[0], plain.result[0]),
                **(openings[way] if batch == arguments.batches[0] else dict.fromkeys(openings[way])),
            }
        )
    return rows


def _share_equal(answers: Sequence[str], others: Sequence[str]) -> float:
    return sum(a.strip() == b.strip() for a, b in zip(answers, others, strict=True)) / len(answers)


def _openings(way: str, prompt: str, max_batch: int) -> dict[str, float]:
    """Opens a way in fresh processes, files in memory and not; returns seconds."""
    threads = os.cpu_count() or 1
    in_a_process(threads, _open_and_write, way, prompt, max_batch)  # whatever is made once is made
    drop_files()
    cold = sum(in_a_process(threads, _open_and_write, way, prompt, max_batch))
    warm, first = in_a_process(threads, _open_and_write, way, prompt, max_batch)
    return {"to the first rewrite, cold, s": cold, "opening, s": warm, "first rewrite, s": first}


def _open_and_write(way: str, prompt: str, max_batch: int) -> tuple[float, float]:
    watch = Watch()
    write = _open(way, max_batch)
    opened = watch.wall()
    write([prompt], 1)
    return opened, watch.wall() - opened


def vague_prompts(count: int) -> list[str]:
    """Pairs the vague query of a demo scene with the full caption of the next."""
    from generation.prompts import FEW_SHOT_OPEN, FEW_SHOT_PREFIX
    from playground.demo import read

    dataset = read(PROJECT / "playground/data/demo", "test")
    said = {query.id: query.text for query in dataset.queries}
    names = [image.id for image in dataset.images[: count + 1]]
    return [
        FEW_SHOT_PREFIX + FEW_SHOT_OPEN.format(query=said[f"{name}#4"], caption=said[f"{other}#0"])
        for name, other in pairwise(names)
    ]


def _open(way: str, max_batch: int) -> Write:
    return _generate() if way == GENERATE else _text_model(way, max_batch)


def _generate() -> Write:
    """Prompts padded on the left, sorted by length, and read whole."""
    import torch

    from benchmarks.sequential import line_ends, open_plain
    from generation.text_model import cut
    from query_editing import MAX_TOKENS

    tokenizer, model = open_plain(MODEL)
    ends = [tokenizer.eos_token_id, *line_ends(tokenizer)]

    def write(prompts: Sequence[str], batch: int) -> Answers:
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        answers: dict[int, list[int]] = {}
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            some = [prompts[place] for place in places]
            inputs = tokenizer(some, add_special_tokens=False, padding=True, return_tensors="pt")
            with torch.inference_mode():
                output = model.generate(
                    **inputs, max_new_tokens=MAX_TOKENS, do_sample=False, eos_token_id=ends,
                    pad_token_id=tokenizer.pad_token_id,
                )  # fmt: skip
            new = output[:, inputs["input_ids"].shape[1] :].tolist()
            answers |= zip(places, (cut(row, ends) for row in new), strict=True)
        texts = tokenizer.batch_decode([answers[row] for row in range(len(order))], skip_special_tokens=True)
        return texts, sum(map(len, answers.values()))

    return write


def _text_model(precision: Any, max_batch: int) -> Write:
    """Asked for so many at a time."""
    from generation.text_model import TextModel
    from query_editing import MAX_TOKENS

    model = TextModel(MODEL, precision, max_batch)
    model.load()

    def write(prompts: Sequence[str], batch: int) -> Answers:
        before, answers = model.tokens_written, []
        for start in range(0, len(prompts), batch):
            some = prompts[start : start + batch]
            answers += model.complete(some, max_tokens=MAX_TOKENS, stops_at_line_end=True)
        return answers, model.tokens_written - before

    return write


if __name__ == "__main__":
    raise SystemExit(run_script(main))
