"""What the full-size models cost on a GPU, measured without their weights: real sizes, random weights.

    python -m benchmarks.full_size --folder /data/random-models     # needs a GPU, and 32 GB of disk
    python -m benchmarks.full_size --device cpu --precisions int8 --batches 1 --max-tokens 2   # without; slow
    python -m benchmarks.full_size --tiny                           # the same steps with tiny sizes, on a CPU

Captioner (LLaVA-1.6 over Mistral 7B) and rewriter (Llama-3.1 8B) are drawn part by part, saved with a
processor and a tokenizer, and opened by the code that opens the hub's; at last both take turns in a feedback
loop. Random weights hardly ever end a sentence, so every answer counts with its full length. A batch that the
GPU has no memory for is a row that says so.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.timing import Watch, parser, report
from files import write_json
from settings import run_script

log = logging.getLogger(__name__)

GIB = 2**30
PICTURE = (500, 375)  # a photograph of Flickr30k
PRECISIONS = ("int8", "int4", "fp16", "bf16", "fp32")
# Sizes as the hub's configurations state them, and tiny ones with the same parts.
DECODER = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8,
}  # fmt: skip
TINY_DECODER = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512,
}  # fmt: skip
LLAVA_VISION = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14,
}  # fmt: skip
TINY_VISION = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
PICTURE_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[INST] {% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %} [/INST]{% endfor %}"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "<|start|>assistant\n"
)
PEAK = "peak memory, GiB"
CELLS = ("first answer, s", "batch, s", "items/s", "tokens/s", PEAK)
SAID = "two men in front of a red house, one of them with a dog and the other with a large umbrella"
Row = dict[str, Any]


def main() -> None:
    """Runs from the command line."""
    read = parser(__doc__)
    read.add_argument(
        "--tiny", action="store_true", help="tiny sizes, on any machine: the figures mean nothing"
    )
    read.add_argument(
        "--folder", type=Path, default=Path("runs/random-models"), help="where the models go and stay"
    )
    read.add_argument("--precisions", nargs="+", default=["int8", "int4", "fp16"], choices=PRECISIONS,
                      help="of captioner and rewriter; int4 is nf4")  # fmt: skip
    read.add_argument(
        "--batches", type=int, nargs="+", default=[1, 8, 32], help="pictures or queries at a time"
    )
    read.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where the models compute")
    read.add_argument(
        "--max-tokens", type=int, help="of an answer; captions' 200 and rewrites' 100 otherwise"
    )
    read.add_argument("--caption-pixels", type=int, help="as the setting; all tiles otherwise")
    read.add_argument("--loop", type=int, default=2, help="queries of the loop at the end")
    arguments = read.parse_args()
    report("full_size", arguments, list(measure(arguments)))


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    """Makes the models where they are missing; yields a row for each model, precision and batch.

    Raises:
        ValueError: If there is no GPU, and neither are the sizes tiny nor the device a CPU.
    """
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    import captioning
    import query_editing

    if not (arguments.tiny or arguments.device == "cpu" or torch.cuda.is_available()):
        raise ValueError(
            "no GPU found; --device cpu takes the full sizes without, slowly, and --tiny the same steps"
        )
    if arguments.max_tokens:
        captioning.MAX_TOKENS = query_editing.MAX_TOKENS = arguments.max_tokens
    folders = {}
    for name, make in {"captioner": make_captioner, "rewriter": make_rewriter}.items():
        folder = folders[name] = arguments.folder / (f"tiny-{name}" if arguments.tiny else name)
        if not (folder / "complete").is_file():
            log.info("making the %s with random weights in %s", name, folder)
            folder.mkdir(parents=True, exist_ok=True)
            make(folder, arguments.tiny)
            (folder / "complete").touch()

    def caption(model: Any, batch: int, turn: int) -> None:
        model.caption(_pictures(batch))

    def rewrite(model: Any, batch: int, turn: int) -> None:  # no query is asked twice
        model.rewrite([f"{number} people with a dog, {turn}" for number in range(batch)], [SAID] * batch)

    for precision in arguments.precisions:
        for name, kind, use, max_tokens in (
            ("captioner", captioning.Captioning, caption, captioning.MAX_TOKENS),
            ("rewriter", query_editing.QueryEditing, rewrite, query_editing.MAX_TOKENS),
        ):
            for batch in arguments.batches:
                log.info("%s in %s, %d at a time", name, precision, batch)
                open_model = partial(kind, str(folders[name]), precision, batch)
                if name == "captioner":
                    open_model.keywords["pixels"] = arguments.caption_pixels
                row = {"model": name, "precision": precision}
                yield row | measure_batch(open_model, use, batch, max_tokens)
        if arguments.loop:
            log.info("a loop in %s", precision)
            yield {"model": "both, in a loop", "precision": precision} | measure_loop(
                folders, precision, arguments.loop, arguments.caption_pixels
            )


def make_captioner(folder: Path, tiny: bool) -> None:
    """Saves LLaVA-1.6 over Mistral 7B with random weights, its processor included."""
    from transformers import AutoConfig, AutoModelForImageTextToText, LlavaNextProcessor
    from transformers.models.llava_next import LlavaNextImageProcessorPil

    tokenizer = _tokenizer(["<image>"])
    grid = [[1, 2], [2, 1]] if tiny else [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]
    vision = TINY_VISION if tiny else LLAVA_VISION
    side = vision["image_size"]
    pinpoints = [[side * height, side * width] for height, width in grid]
    config = AutoConfig.for_model(
        "llava_next",
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        text_config={"model_type": "mistral", "vocab_size": 32064, "sliding_window": None,
                     **(TINY_DECODER if tiny else DECODER)},
        vision_config={"model_type": "clip_vision_model", "projection_dim": 768, **vision},
    )  # fmt: skip
    LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_grid_pinpoints=pinpoints,
        ),
        tokenizer=tokenizer,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=PICTURE_TEMPLATE,
    ).save_pretrained(folder)
    _save_random(AutoModelForImageTextToText.from_config, config, folder)


def make_rewriter(folder: Path, tiny: bool) -> None:
    """Saves Llama-3.1 8B with random weights, a tokenizer included."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = _tokenizer(["<|start|>", "<|end|>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    config = AutoConfig.for_model(
        "llama",
        **{"vocab_size": 128256, **(TINY_DECODER if tiny else DECODER)},
        max_position_embeddings=131072,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    _save_random(AutoModelForCausalLM.from_config, config, folder)


def _tokenizer(tokens: list[str]) -> Any:
    """Trains a small byte-level tokenizer on the prompts; the models' large vocabularies stay unused."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from generation.prompts import CAPTION, REWRITE_CHAT

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<s>", "</s>", "<pad>", *tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([CAPTION, REWRITE_CHAT], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _save_random(make: Callable[..., Any], config: Any, folder: Path) -> None:
    """Draws and writes a model's weights in parts of a gigabyte: no more of them is ever in memory."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    torch.manual_seed(0)
    with torch.device("meta"):
        model = make(config, dtype=torch.bfloat16)
    shapes = model.state_dict()
    split = split_torch_state_dict_into_shards(shapes, max_shard_size="1GB")
    for file, names in split.filename_to_tensors.items():
        part = {name: torch.full(shapes[name].shape, 1.0, dtype=torch.bfloat16) for name in names}
        for tensor in part.values():
            if tensor.dim() > 1:  # the others are scales and shifts of layers
                tensor.normal_(0, 0.02)
        save_file(part, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def measure_loop(folders: Mapping[str, Path], precision: Any, queries: int, pixels: int | None) -> Row:
    """Runs two rounds of the feedback loop, rewriting once for each query, the models taking turns."""
    from experiments.open_index import embed_dataset
    from experiments.run import run_experiment
    from settings import EmbeddingSettings, ExperimentSettings

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        lines = ["image_name,comment_number,comment"]
        for number, picture in enumerate(_pictures(100)):  # few are found at once
            picture.save(root / f"{number}.png")
            lines.append(f"{number}.png,0,people in picture {number}")
        (root / "images_captions.csv").write_text("\n".join(lines))
        embed_dataset(EmbeddingSettings("image_folder", root, preset="demo"))
        _reset_peak()
        watch = Watch()
        run_experiment(
            ExperimentSettings(
                "image_folder", root, preset="demo", caption_model=str(folders["captioner"]),
                rewrite_model=str(folders["rewriter"]), quantization=precision, take_turns=True,
                caption_pixels=pixels,
                caption_batch=1, rewrite_batch=1, user="reference", rounds=2, queries=queries,
                caption_cache=root / "captions.sqlite", output=root / "run",
            )
        )  # fmt: skip
        seconds = watch.wall()
    row: Row = {"note": "", "batch": queries} | dict.fromkeys(CELLS)
    return row | {"batch, s": seconds, "items/s": queries / seconds, PEAK: _peak()}


def _reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # only Linux forgets a process's peak
            Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Returns the most memory in use since `_reset_peak`, GiB: the GPU's, or else the process's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def measure_batch(
    open_model: Callable[[], Any], use: Callable[[Any, int, int], None], batch: int, max_tokens: int
) -> Row:
    """Opens a model anew, so that no batch sees what another left in memory; returns its cells.

    `use` takes the model, how many items, and a number that no two uses share.
    """
    from generation.batching import free_memory

    row: Row = {"note": "does not fit", "batch": batch} | dict.fromkeys(CELLS)
    free_memory()
    _reset_peak()
    try:
        watch = Watch()
        model = open_model()
        use(model, 1, 0)
        row["first answer, s"] = watch.wall()
        watch = Watch()
        use(model, batch, 1)
        seconds = watch.wall()
    except ValueError as error:
        if "memory" not in str(error):
            raise
        return row
    batches = getattr(model, "_batches", None) or model._model.batches  # which shrink where memory ends
    row["note"] = f"out of memory: went on with {batches.size}" if batches.size < batch else ""
    row |= {
        "batch, s": seconds, "items/s": batch / seconds, "tokens/s": batch * max_tokens / seconds
    }  # fmt: skip
    row[PEAK] = _peak()
    return row


@cache
def _pictures(count: int) -> list[Any]:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0)
    shape = (PICTURE[1], PICTURE[0], 3)
    return [Image.fromarray(noise.integers(0, 256, shape, dtype=np.uint8)) for _ in range(count)]


if __name__ == "__main__":
    raise SystemExit(run_script(main))
