"""What the full-size models cost on a GPU, measured without their weights: real sizes, random weights.

    python -m benchmarks.full_size --folder /data/random-models     # needs a GPU, and 32 GB of disk
    python -m benchmarks.full_size --tiny                           # the same way on a CPU, with tiny sizes

Captioner (LLaVA-1.6 over Mistral 7B), rewriter (Llama-3.1 8B) and BLIP base are made on the GPU, saved with a
processor and a tokenizer, and opened by the code that opens the hub's. Random weights hardly ever end a
sentence, so every answer counts with its full length. Writes a Markdown table.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from evaluation.tables import as_markdown
from files import write_bytes
from settings import PRESETS, run_script

log = logging.getLogger(__name__)

GIB = 2**30
PICTURE_SIDES = (500, 375)  # a photograph of Flickr30k
BLIP = "Salesforce/blip-itm-base-coco"
TINY_TEXT = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
TINY_VISION = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
TINY_GRID = [[28, 56], [56, 28]]
PICTURE_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[INST] {% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %} [/INST]{% endfor %}"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "<|start|>assistant\n"
)


@dataclass(frozen=True)
class FullSizeSettings:
    """Measures opening, memory and speed of the full-size models, with random weights.

    Attributes:
        tiny: The same way with tiny sizes, on any machine; its figures mean nothing.
        folder: Where the models go and stay; a temporary folder when not given.
        output: The table's file.
        precisions: Of captioner and rewriter; int4 is nf4.
        batches: Pictures or queries at a time.
    """

    tiny: bool = False
    folder: Path | None = None
    output: Path = Path("runs") / "full_size.md"
    precisions: tuple[Literal["int8", "int4", "fp16", "bf16", "fp32"], ...] = ("int8", "int4", "fp16")
    batches: tuple[int, ...] = (1, 8, 32)

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"batches: got {self.batches}, expected numbers from 1")


@dataclass(frozen=True)
class Measured:
    """One model in one precision with one batch size.

    Attributes:
        model: Which.
        precision: In which precision.
        batch: Pictures or queries at a time.
        opening_seconds: Reading it from disk and packing it.
        seconds: One batch.
        tokens: Written in a batch; 0 for a model that writes none.
        peak_bytes: Of the GPU's memory; None without one.
        note: What did not go as asked.
    """

    model: str
    precision: str
    batch: int
    opening_seconds: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    peak_bytes: int | None = None
    note: str = ""


def measure(settings: FullSizeSettings) -> list[Measured]:
    """Makes the models where they are missing, and measures them.

    Args:
        settings: What to measure.

    Raises:
        ValueError: If there is no GPU, and the sizes are not tiny.
        ModuleNotFoundError: If a precision needs a package that is not installed.
    """
    import torch

    if not (settings.tiny or torch.cuda.is_available()):
        raise ValueError("no GPU found, and the full sizes need one; --tiny goes the same way without")
    if settings.folder is not None:
        return _measure_all(settings, settings.folder)
    with tempfile.TemporaryDirectory() as folder:
        return _measure_all(settings, Path(folder))


def _measure_all(settings: FullSizeSettings, folder: Path) -> list[Measured]:
    makers = {"captioner": make_captioner, "rewriter": make_rewriter, "blip": make_blip}
    folders = {name: folder / (f"tiny-{name}" if settings.tiny else name) for name in makers}
    for name, make in makers.items():
        if not (folders[name] / "complete").is_file():
            log.info("making the %s with random weights in %s", name, folders[name])
            folders[name].mkdir(parents=True, exist_ok=True)
            make(folders[name], settings.tiny)
            (folders[name] / "complete").touch()
    results: list[Measured] = []
    for precision in settings.precisions:
        results += _measure_captioner(folders["captioner"], precision, settings.batches)
        results += _measure_rewriter(folders["rewriter"], precision, settings.batches)
    return [*results, *_measure_blip(folders["blip"], settings.batches)]


def make_captioner(folder: Path, tiny: bool) -> None:
    """Saves LLaVA-1.6 over Mistral 7B with random weights, its processor included.

    Args:
        folder: Where to.
        tiny: With tiny sizes.
    """
    from transformers import AutoModelForImageTextToText, LlavaNextProcessor
    from transformers.models.llava_next import LlavaNextImageProcessorPil

    config = _configuration(PRESETS["rtx3090-int8"]["caption_model"])
    if tiny:
        _change(config.text_config, TINY_TEXT)
        _change(config.vision_config, TINY_VISION)
        config.image_grid_pinpoints = TINY_GRID
    tokenizer = _tokenizer(["<image>"])
    config.image_token_index = config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    side = config.vision_config.image_size
    LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_grid_pinpoints=config.image_grid_pinpoints,
        ),
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=PICTURE_TEMPLATE,
    ).save_pretrained(folder)
    _save_random(AutoModelForImageTextToText, config, folder)


def make_rewriter(folder: Path, tiny: bool) -> None:
    """Saves Llama-3.1 8B with random weights, a tokenizer included.

    Args:
        folder: Where to.
        tiny: With tiny sizes.
    """
    from transformers import AutoModelForCausalLM

    config = _configuration(PRESETS["rtx3090-int8"]["rewrite_model"])
    tokenizer = _tokenizer(["<|start|>", "<|end|>"])
    if tiny:
        _change(config, TINY_TEXT)
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    _save_random(AutoModelForCausalLM, config, folder)


def make_blip(folder: Path, tiny: bool) -> None:
    """Saves BLIP base for retrieval with random weights, a vocabulary included.

    Args:
        folder: Where to.
        tiny: With tiny sizes.
    """
    from transformers import BlipForImageTextRetrieval

    config = _configuration(BLIP)
    if tiny:
        text = {name: value for name, value in TINY_TEXT.items() if name != "num_key_value_heads"}
        _change(config.vision_config, TINY_VISION)
        _change(config.text_config, text | {"encoder_hidden_size": TINY_VISION["hidden_size"]})
        config.text_config.bos_token_id = text["vocab_size"] - 2
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = config.text_config.vocab_size - 2  # BLIP adds two of its own
    lines = special + [f"word{number}" for number in range(words - len(special))]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _save_random(BlipForImageTextRetrieval, config, folder)


def _configuration(model_id: str) -> Any:
    from generation.footprint import configuration

    return configuration(model_id)


def _change(config: Any, values: dict[str, int]) -> None:
    for name, value in values.items():
        setattr(config, name, value)
    if hasattr(config, "head_dim"):
        config.head_dim = values["hidden_size"] // values["num_attention_heads"]


def _tokenizer(tokens: list[str]) -> Any:
    """Trains a small byte-level tokenizer on the prompts; the models' large vocabularies stay unused."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from generation.prompts import CAPTION, REWRITE_CHAT

    special = ["<s>", "</s>", "<pad>", *tokens]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([CAPTION, REWRITE_CHAT], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _save_random(kind: Any, config: Any, folder: Path) -> None:
    import torch

    torch.manual_seed(0)
    make = getattr(kind, "from_config", None) or kind._from_config
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = make(config, dtype=torch.float16)
    model.save_pretrained(folder, max_shard_size="50GB")
    del model
    _free()


def _measure_captioner(folder: Path, precision: str, batches: Sequence[int]) -> Iterator[Measured]:
    from captioning import MAX_TOKENS, Captioning

    pictures = _pictures(max(batches))

    def caption(model: Any, batch: int, turn: int) -> None:
        model.caption(pictures[:batch])

    yield from _measure(
        "captioner", precision, batches, lambda size: Captioning(str(folder), precision, size), caption,
        MAX_TOKENS,
    )  # fmt: skip


def _measure_rewriter(folder: Path, precision: str, batches: Sequence[int]) -> Iterator[Measured]:
    from query_editing import MAX_TOKENS, QueryEditing

    said = "two men in front of a red house, one of them with a dog and the other with a large umbrella"

    def rewrite(model: Any, batch: int, turn: int) -> None:
        queries = [f"{number} people with a dog, {turn}" for number in range(batch)]  # none is asked twice
        model.rewrite(queries, [said] * batch)

    yield from _measure(
        "rewriter", precision, batches, lambda size: QueryEditing(str(folder), precision, size), rewrite,
        MAX_TOKENS,
    )  # fmt: skip


def _measure_blip(folder: Path, batches: Sequence[int]) -> Iterator[Measured]:
    import torch

    from BLIP.model import BlipEncoder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pictures = _pictures(max(batches))

    def encode(model: Any, batch: int, turn: int) -> None:
        model.encode_images(pictures[:batch])

    yield from _measure(
        "BLIP",
        "fp32",
        batches,
        lambda size: BlipEncoder.open(folder, None, device, batch_size=size),
        encode,
        0,
    )


def _measure(
    name: str,
    precision: str,
    batches: Sequence[int],
    open_model: Callable[[int], Any],
    use: Callable[[Any, int, int], None],
    max_tokens: int,
) -> Iterator[Measured]:
    """Opens a model once for every batch size, so that no batch sees what another left in memory."""
    import torch

    for batch in batches:
        log.info("%s in %s, %d at a time", name, precision, batch)
        _free()
        try:
            started = time.perf_counter()
            model = open_model(batch)
            use(model, 1, 0)
            opened = time.perf_counter()
            use(model, 1, 1)
            opening = max(0.0, 2 * opened - started - time.perf_counter())  # without using it once
            started = time.perf_counter()
            use(model, batch, 2)
            seconds = time.perf_counter() - started
        except ValueError as error:
            if "memory" not in str(error):
                raise
            yield Measured(name, precision, batch, note="does not fit")
            continue
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        fitted = _batch_size(model, batch)
        note = f"out of memory: went on with {fitted}" if fitted < batch else ""
        yield Measured(name, precision, batch, opening, seconds, batch * max_tokens, peak, note)
        del model


def _batch_size(model: Any, batch: int) -> int:
    """What a captioner's or rewriter's batches have shrunk to."""
    for holder in (model, getattr(model, "_model", None)):
        batches = getattr(holder, "_batches", None)
        if batches is not None:
            return batches.size
    return batch


def _pictures(count: int) -> list[Any]:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0)
    width, height = PICTURE_SIDES
    return [Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)) for _ in range(count)]


def _free() -> None:
    import torch

    from generation.batching import free_memory

    free_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def format_table(results: Sequence[Measured], tiny: bool) -> str:
    """Formats the figures with what they were measured on.

    Args:
        results: One row each.
        tiny: Whether the sizes were tiny; said above the table.
    """
    import torch
    import transformers

    from experiments.models import hardware

    head = [
        "Model",
        "Precision",
        "Batch",
        "Opening, s",
        "Batch, s",
        "Items/s",
        "Tokens/s",
        "Peak GPU memory",
        "Note",
    ]
    rows = []
    for one in results:
        if not one.seconds:
            rows.append([one.model, one.precision, str(one.batch), *["–"] * 5, one.note])
            continue
        tokens = f"{one.tokens / one.seconds:.0f}" if one.tokens else "–"
        peak = "–" if one.peak_bytes is None else f"{one.peak_bytes / GIB:.1f} GiB"
        rows.append(
            [
                one.model, one.precision, str(one.batch), f"{one.opening_seconds:.1f}", f"{one.seconds:.2f}",
                f"{one.batch / one.seconds:.2f}", tokens, peak, one.note,
            ]
        )  # fmt: skip
    what = "Tiny sizes: these figures mean nothing." if tiny else "Full sizes, random weights, seed 0."
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    said = f"{what} {hardware()}; {versions}; {date.today().isoformat()}."
    return f"{said}\n\n{as_markdown([head, *rows], left=2)}\n"


def main() -> None:
    """Reads the command line, measures, writes and prints the table."""
    import tyro

    settings = tyro.cli(FullSizeSettings)
    table = format_table(measure(settings), settings.tiny)
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(settings.output, table.encode())
    print(table)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
