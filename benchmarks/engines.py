"""Which engine computes BLIP fastest, with the same weights on the same inputs, and how exactly.

    pip install -r requirements/engines.txt
    OMP_NUM_THREADS=1 python -m benchmarks.engines

Two models: the demo's, and one of BLIP ViT-B/16's sizes at 384 pixels with random weights, on whose values
the speed does not depend. Of each, the parts of a search: `image` (pixels to a feature), `text` (tokens to a
feature), `matching` (tokens and an image's states to logits), `whole` (pictures of 448 x 448 pixels, resized,
to rows). The engines:

- `eager`: transformers' BLIP. All others are compared with it.
- `towers`: `BLIP.towers`, whose attention is torch's fused one.
- `packed`: the towers with `BLIP.packed` layers, what this project searches with.
- `compile`: the towers by torch.compile, which needs a C++ compiler; a second run finds much in its cache.
- `onnxruntime`, `openvino`: the towers, exported; both in float32.
- `bf16`: the towers under autocast, to know what 16 bits would gain; not the same numbers.

All engines of a part take turns, so that other work on the machine slows all alike. Last, what it gains that
`encode_texts` sorts texts by length. Result: tables of CPU time, and ``engines.json`` with the clock's too.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

from BLIP.checkpoints import load_retrieval, share_towers
from BLIP.images import to_pixels
from BLIP.model import BlipEncoder
from BLIP.packed import pack
from BLIP.towers import VISION_EPSILON, Towers
from evaluation.tables import as_markdown
from files import write_json
from settings import PROJECT, run_script

log = logging.getLogger(__name__)

EngineName = Literal["eager", "towers", "packed", "compile", "onnxruntime", "openvino", "bf16"]
PartName = Literal["image", "text", "matching", "whole"]
FULL_SIZE = "Salesforce/blip-itm-base-coco"
TOKENS = 12  # of a text; captions have about as many
PICTURE = 448
TEXT_BATCH = 32  # of an encoder opened without a batch size
INSTALL = "pip install -r requirements/engines.txt"

Tensors = tuple[torch.Tensor, ...]
Run = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class EnginesSettings:
    """Times engines.

    Attributes:
        models: "demo", "full" or both.
        engines: Those to compare with eager, which always comes along.
        parts: Setup of the model.
        demo_batches: Batch sizes of the demo's model.
        full_batches: Batch sizes of the full-size one.
        seconds: About how long each engine computes, at each part and batch; at least three times.
        texts: How many texts are encoded to compare orders.
        seed: Of weights and inputs.
        output: Folder of the results.
    """

    models: tuple[Literal["demo", "full"], ...] = ("demo", "full")
    engines: tuple[EngineName, ...] = ("towers", "packed", "compile", "onnxruntime", "openvino", "bf16")
    parts: tuple[PartName, ...] = ("image", "text", "matching", "whole")
    demo_batches: tuple[int, ...] = (1, 8, 64)
    full_batches: tuple[int, ...] = (1, 8)
    seconds: float = 3.0
    texts: int = 600
    seed: int = 0
    output: Path = Path("runs/benchmark-engines")


def main() -> None:
    """Runs from the command line."""
    import tyro

    settings = tyro.cli(EnginesSettings)
    torch.set_num_threads(1)
    for chatty in ("onnxscript", "onnx_ir", "torch.onnx"):  # every constant that they fold
        logging.getLogger(chatty).setLevel(logging.WARNING)
    rows = []
    for name in settings.models:
        torch.manual_seed(settings.seed)
        model = load_retrieval(PROJECT / "BLIP/weights/demo") if name == "demo" else _random_model()
        for part in settings.parts:
            for batch in settings.demo_batches if name == "demo" else settings.full_batches:
                rows += measure(settings, name, model, part, batch)
    settings.output.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m benchmarks.engines", *sys.argv[1:]])
    chosen = {key: value for key, value in dataclasses.asdict(settings).items() if key != "output"}
    sorting = sorting_rows(settings.texts)
    content = {"command": command, "settings": chosen, "rows": rows, "sorting": sorting}
    write_json(settings.output / "engines.json", content)
    for table in (speeds(rows), preparations(rows), sorting):
        print(as_markdown([tuple(table[0]), *(tuple(map(_cell, row.values())) for row in table)]), "\n")


def measure(
    settings: EnginesSettings, model_name: str, model: Any, part: PartName, batch: int
) -> list[dict[str, Any]]:
    """Times all engines on one part, in turns.

    Args:
        settings: Engines, seconds, seed.
        model_name: Stands in the rows.
        model: transformers' retrieval model.
        part: What is computed.
        batch: How many images, texts or pairs at a time.

    Returns:
        A row an engine, eager's first.

    Raises:
        ModuleNotFoundError: If an engine is not installed.
    """
    towers = share_towers(model)
    inputs, pictures = _inputs(towers, part, batch, settings.seed)
    names = ["eager", *(name for name in settings.engines if name != "eager")]
    engines: dict[str, Run] = {}
    ready = {}
    with torch.inference_mode():
        for name in names:
            started = time.perf_counter()
            run = _engine(name, model, towers, part, inputs)
            engines[name] = run if pictures is None else _with_pictures(run, inputs[0], pictures)
            engines[name]()
            ready[name] = time.perf_counter() - started
        outputs = {name: run() for name, run in engines.items()}
        wall: dict[str, list[float]] = {name: [] for name in names}
        cpu: dict[str, list[float]] = {name: [] for name in names}
        while min(len(times) for times in wall.values()) < 3 or sum(wall["eager"]) < settings.seconds:
            for name, run in engines.items():
                before, cpu_before = time.perf_counter(), time.process_time()
                run()
                wall[name].append(time.perf_counter() - before)
                cpu[name].append(time.process_time() - cpu_before)
    log.info("%s %s, %d at a time: done", model_name, part, batch)
    return [
        {
            "model": model_name,
            "part": part,
            "batch": batch,
            "engine": name,
            "ms each": 1000 * statistics.median(wall[name]) / batch,
            "CPU ms each": 1000 * statistics.median(cpu[name]) / batch,
            "times faster": statistics.median(
                ours / own for ours, own in zip(cpu["eager"], cpu[name], strict=True)
            ),
            "ready, s": ready[name],
            "greatest difference": (outputs[name].float() - outputs["eager"]).abs().max().item(),
        }
        for name in names
    ]


def speeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns for each part and batch eager's CPU milliseconds each, and how many times faster others are."""
    table: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in rows:
        place = row["model"], row["part"], row["batch"]
        if row["engine"] == "eager":
            table[place] = {
                "model": place[0],
                "part": place[1],
                "batch": place[2],
                "eager, ms": row["CPU ms each"],
            }
        else:
            table[place][row["engine"]] = row["times faster"]
    return list(table.values())


def preparations(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns for each model and engine the longest preparation and the greatest difference."""
    table: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        before = table.get((row["model"], row["engine"]), {"ready, s, most": 0.0, "greatest difference": 0.0})
        table[row["model"], row["engine"]] = {
            "model": row["model"],
            "engine": row["engine"],
            "ready, s, most": max(before["ready, s, most"], row["ready, s"]),
            "greatest difference": max(before["greatest difference"], row["greatest difference"]),
        }
    return list(table.values())


def sorting_rows(count: int) -> list[dict[str, Any]]:
    """Times `encode_texts` of the demo's encoder, in the order given and sorted by length, in turns.

    Args:
        count: Texts; a third each of 3, 12 and 40 words, mixed.
    """
    encoder = BlipEncoder.open(PROJECT / "BLIP/weights/demo")
    texts = [" ".join(["dog"] * (3, 12, 40)[number % 3]) for number in range(count)]
    ways: dict[str, Callable[[], object]] = {
        "in the order given": lambda: [
            encoder.encode_texts(texts[first : first + TEXT_BATCH]) for first in range(0, count, TEXT_BATCH)
        ],
        "sorted by length": lambda: encoder.encode_texts(texts),
    }
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(5):
        for way, encode in ways.items():
            before = time.process_time()
            encode()
            cpu[way].append(time.process_time() - before)
    return [
        {"texts": way, "CPU ms each": 1000 * statistics.median(seconds) / count}
        for way, seconds in cpu.items()
    ]


class _Part(nn.Module):
    """One part of the towers, tensors in, tensor out."""

    def __init__(self, towers: Towers, part: PartName) -> None:
        super().__init__()
        self.towers = towers
        self.part = part

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        towers = self.towers
        if self.part in ("image", "whole"):
            return towers.vision_proj(towers.vision_model(*inputs)[:, 0])
        head = towers.text_proj if self.part == "text" else towers.itm_head
        return head(towers.text_encoder(*inputs)[:, 0])


def _engine(name: str, model: Any, towers: Towers, part: PartName, inputs: Tensors) -> Run:
    ours = _Part(towers, part).eval()
    if name == "eager":
        return lambda: _eager(model, part, inputs)
    if name == "packed":
        ours = copy.deepcopy(ours)
        pack(ours.towers.vision_model)
        pack(ours.towers.text_encoder)
    if name in ("towers", "packed"):
        return lambda: ours(*inputs)
    if name == "compile":
        torch.compiler.reset()  # after eight shapes it would give up and compute without compiling
        compiled = torch.compile(ours, dynamic=False)
        return lambda: compiled(*inputs)
    if name == "bf16":

        def halved() -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return ours(*inputs)

        return halved
    try:
        return (_onnxruntime if name == "onnxruntime" else _openvino)(ours, inputs)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name} needs {error.name}; run: {INSTALL}") from error


def _eager(model: Any, part: PartName, inputs: Tensors) -> torch.Tensor:
    if part in ("image", "whole"):
        return model.vision_proj(model.vision_model(inputs[0]).last_hidden_state[:, 0])
    ids, mask, *states = inputs
    read = {"encoder_hidden_states": states[0]} if states else {}
    first = model.text_encoder(ids, attention_mask=mask, **read).last_hidden_state[:, 0]
    return model.text_proj(first) if part == "text" else model.itm_head(first)


def _onnxruntime(ours: nn.Module, inputs: Tensors) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        file = _exported(ours, inputs, Path(folder))
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run() -> torch.Tensor:
        given = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return run


def _openvino(ours: nn.Module, inputs: Tensors) -> Run:
    import openvino

    # Left to itself it computes in bfloat16 where the processor has it.
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    with tempfile.TemporaryDirectory() as folder:
        file = _exported(ours, inputs, Path(folder))
        compiled = openvino.compile_model(file, "CPU", options)
    request = compiled.create_infer_request()

    def run() -> torch.Tensor:
        found = request.infer([tensor.numpy() for tensor in inputs], share_inputs=True)
        return torch.from_numpy(found[compiled.output(0)])

    return run


def _exported(ours: nn.Module, inputs: Tensors, folder: Path) -> str:
    import onnxscript  # noqa: F401  what torch's exporter asks for, named here in the error

    file = folder / "part.onnx"
    # The tensors of the measuring are inference tensors, which the exporter cannot trace.
    with torch.inference_mode(False), torch.no_grad():
        torch.onnx.export(ours, tuple(tensor.clone() for tensor in inputs), file, dynamo=True, verbose=False)
    return str(file)


def _inputs(
    towers: Towers, part: PartName, batch: int, seed: int
) -> tuple[Tensors, Sequence[Image.Image] | None]:
    """Returns the part's tensors; and the pictures, where the part begins with them."""
    numbers = torch.Generator().manual_seed(seed)
    size = towers.image_size
    if part in ("image", "whole"):
        pixels = torch.randn((batch, 3, size, size), generator=numbers)
        if part == "image":
            return (pixels,), None
        random = np.random.default_rng(seed)
        drawn = random.integers(0, 256, (batch, 28, 28, 3), dtype=np.uint8)
        return (pixels,), [Image.fromarray(one).resize((PICTURE, PICTURE)) for one in drawn]
    words = towers.text_encoder.embeddings.word_embeddings.num_embeddings
    ids = torch.randint(5, words - 2, (batch, TOKENS), generator=numbers)
    mask = torch.ones_like(ids)
    mask[1::2, TOKENS // 2 :] = 0  # every second text is half as long
    if part == "text":
        return (ids, mask), None
    with torch.no_grad():
        states = towers.vision_model(torch.randn((batch, 3, size, size), generator=numbers))
    return (ids, mask, states), None


def _with_pictures(run: Run, pixels: torch.Tensor, pictures: Sequence[Image.Image]) -> Run:
    def whole() -> torch.Tensor:
        pixels.copy_(to_pixels(pictures, pixels.shape[-1]))
        return nn.functional.normalize(run().float(), dim=-1)

    return whole


def _random_model() -> Any:
    from transformers import BlipForImageTextRetrieval

    from generation.footprint import configuration

    config = configuration(FULL_SIZE)
    config.vision_config.initializer_range = 0.02  # transformers' default is nearly zero
    config.vision_config.layer_norm_eps = VISION_EPSILON  # as `BLIP.checkpoints` opens every BLIP
    return BlipForImageTextRetrieval._from_config(config).eval()


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
