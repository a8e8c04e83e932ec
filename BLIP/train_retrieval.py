"""Trains or fine-tunes a BLIP for retrieval, matching and captioning, on any dataset the playground reads.

From nothing; the demo's weights began so (docs/training.md has the second command, times and scores):

    python -m BLIP.train_retrieval --dataset demo --output runs/train-demo

Starting from a checkpoint instead of from nothing:

    python -m BLIP.train_retrieval --dataset flickr30k --split all --dev-split None
        --start BLIP/chatir_weights.ckpt --image-size 224 --learning-rate 1e-5 --output runs/train-flickr30k

Killed or stopped, the same command goes on from the last checkpoint. The output folder then holds the trained
weights (``model.safetensors``, ``config.json``, ``vocab.txt``), ``training_log.csv`` (losses),
``recall_log.csv`` (of the dev split) and ``training_curves.png``; ``checkpoint.pt`` and the decoded pictures
(``pixels_*.npy``) are for going on and may be removed.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import BlipConfig

from BLIP.checkpoints import load_captioner, load_retrieval, read_checkpoint
from BLIP.images import IMAGE_MEAN, IMAGE_STD
from BLIP.scores import recall_by_caption
from BLIP.tokenizer import Tokenizer
from BLIP.training_data import WordTargets, cache_pixels, make_batch, train_vocabulary
from BLIP.training_heads import HeadSettings, HeadTrainer, image_states
from BLIP.training_losses import TokenBatch, TrainingModel
from BLIP.training_regions import PatchTargets
from playground import open_dataset
from settings import PROJECT, run_script

log = logging.getLogger(__name__)

LOSSES = ("itc", "lm", "words", "patches", "regions", "itm")  # columns of the log
COMMON_WORDS = Path(__file__).with_name("common_words.txt")


@dataclass(frozen=True)
class TrainingSettings:
    """Trains a BLIP for retrieval, matching and captioning.

    Attributes:
        dataset: Name of a playground dataset.
        output: Folder for weights, log and checkpoint.
        root: The dataset's folder; the usual one when not given.
        split: Training split.
        dev_split: Split whose recall is logged at each checkpoint; none when not given.
        start: Checkpoint to fine-tune; from nothing when not given.
        steps: Optimiser steps in all.
        batch_size: Images a step.
        learning_rate: Peak; warms up over 200 steps, then falls along a cosine.
        matching_from: Share of the steps after which the matching loss joins.
        image_size: Side of the pictures in pixels.
        patch_size: Side of a patch in pixels (from nothing only).
        width: Width of both towers (from nothing only).
        vision_layers: Layers of the vision tower (from nothing only).
        text_layers: Layers of the text encoder and of the text decoder (from nothing only).
        vocabulary: WordPiece entries (from nothing only).
        caption_tokens: Longest text in tokens; longer ones are cut. From nothing, also the model's positions.
        prompt: What captions begin with; usual in the training captions, and cut off what is generated.
        regions: File of labelled boxes that the patches learn to name (see `BLIP.training_regions`); none
            when not given.
        head_steps: Steps of the second stage, in which only captioner and matching layers train; 0 for none.
        head_images: How many images the second stage learns from, evenly spread; all when not given.
        head_captioner: Whether the second stage goes on with the captioner too, or with matching only.
        head_learning_rate: Its peak; warms up over 100 steps, then falls along a cosine.
        seed: Seed of weights and batches.
        checkpoint_every: Steps between checkpoints.
        threads: Torch's threads on a CPU; all cores when not given.
        extra_words: File of common words, one a line, for the vocabulary and as noise in queries.
    """

    dataset: str
    output: Path
    root: Path | None = None
    split: str = "train"
    dev_split: str | None = "dev"
    start: Path | None = None
    steps: int = 3600
    batch_size: int = 128
    learning_rate: float = 1.2e-3
    matching_from: float = 0.7
    image_size: int = 112
    patch_size: int = 16
    width: int = 192
    vision_layers: int = 6
    text_layers: int = 4
    vocabulary: int = 3000
    caption_tokens: int = 64
    prompt: str = "a picture of "
    regions: Path | None = None
    head_steps: int = 2500
    head_images: int | None = None
    head_captioner: bool = True
    head_learning_rate: float = 1e-3
    seed: int = 0
    checkpoint_every: int = 500
    threads: int | None = None
    extra_words: Path = COMMON_WORDS

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "image_size", "patch_size", "width", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")


def train(settings: TrainingSettings) -> Path:
    """Runs the training, or what is left of it.

    Args:
        settings: What to train, on what, for how long.

    Returns:
        The folder with the trained weights.

    Raises:
        ValueError: If the folder holds a run with other settings, or the dataset is too small for a batch.
        FileNotFoundError: If the dataset or the starting checkpoint is missing.
    """
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads or os.cpu_count() or 1)
    output = settings.output
    output.mkdir(parents=True, exist_ok=True)
    _claim(settings)
    dataset = open_dataset(settings.dataset, settings.root, settings.split)
    images = [image for image in dataset.images if image.captions]
    pixels = cache_pixels(images, settings.image_size, output / f"pixels_{settings.image_size}.npy")
    captions = [image.captions for image in images]
    if len(captions) < settings.batch_size:
        raise ValueError(f"{len(captions)} captioned images do not fill a batch of {settings.batch_size}")
    extra_words = settings.extra_words.read_text(encoding="utf-8").split()
    targets = WordTargets(captions)
    regions = settings.regions
    patches = PatchTargets(regions, [image.id for image in images]) if regions else None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    labels = len(patches.labels) if patches else 0
    model, tokenizer = _start_model(settings, captions, extra_words, len(targets.words), labels)
    dev = open_dataset(settings.dataset, settings.root, settings.dev_split) if settings.dev_split else None
    model.to(device).train()
    optimizer = _optimizer(model, settings)
    first_step = _resume(model, optimizer, output)
    log.info("training %.1f M parameters from step %d on %s", _millions(model), first_step, device)

    sums: dict[str, list[float]] = defaultdict(list)  # of the steps since the last row of the log
    started = time.monotonic()
    steps = range(first_step, settings.steps)
    bar = tqdm(steps, desc="training", unit="step", initial=first_step, total=settings.steps)
    for step in bar:
        rate = _learning_rate(step, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(settings.seed * 1_000_003 + step)  # so that a resumed run draws the same negatives
        batch = make_batch(captions, extra_words, settings.batch_size, settings.seed, step)
        with torch.autocast(device, torch.bfloat16):
            losses = model(
                _normalise(pixels[batch.rows], device),
                _tokens(tokenizer, batch.queries, settings.caption_tokens, device),
                _tokens(tokenizer, batch.captions, settings.caption_tokens, device),
                targets.rows(batch.rows).to(device),
                with_matching=step >= settings.matching_from * settings.steps,
                patches=patches.rows(batch.rows, model.patches_a_side).to(device) if patches else None,
            )
            loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for name, value in losses.items():
            sums[name].append(value.item())
        if (step + 1) % 50 == 0 or step + 1 == settings.steps:
            means = {name: sum(values) / len(values) for name, values in sums.items()}
            bar.set_postfix({name: f"{value:.2f}" for name, value in means.items()})
            _log_row(output, step + 1, rate, time.monotonic() - started, means)
            sums.clear()
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
            _save_checkpoint(model, optimizer, output, step + 1)
            _save_weights(model, output, settings.prompt)
            if dev:
                _log_recall(output, step + 1, recall_by_caption(model.retrieval, tokenizer, dev))
    _plot_curves(output)
    if settings.head_steps:
        heads = HeadSettings(
            settings.head_steps,
            settings.head_learning_rate,
            settings.batch_size,
            settings.caption_tokens,
            settings.seed,
            settings.checkpoint_every,
            settings.head_captioner,
        )
        count = min(settings.head_images or len(captions), len(captions))
        chosen = [number * len(captions) // count for number in range(count)]
        states = image_states(model, pixels, chosen, output / "states.npy", _normalise)
        HeadTrainer(model, tokenizer, heads, output).train(
            states, [captions[row] for row in chosen], extra_words
        )
        _save_weights(model, output, settings.prompt)
    return output


def _claim(settings: TrainingSettings) -> None:
    """Writes the settings beside the run, or refuses a folder that holds a run with others."""
    path = settings.output / "training_settings.json"
    ours = {key: _portable(value) for key, value in vars(settings).items()}
    if path.is_file():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        free = {"output", "threads", "checkpoint_every"}  # these do not change the result
        differing = [key for key in ours if key not in free and theirs.get(key) != ours[key]]
        if differing:
            named = ", ".join(f"{key} {theirs.get(key)} there, {ours[key]} now" for key in differing)
            raise ValueError(
                f"{settings.output} holds a run with other settings ({named}); choose another --output"
            )
    path.write_text(json.dumps(ours, indent=1), encoding="utf-8")


def _portable(value: Any) -> Any:
    """Paths inside the project count from it, so that a run may move with its checkout."""
    if not isinstance(value, Path):
        return value
    return str(value.relative_to(PROJECT) if value.is_relative_to(PROJECT) else value)


def _start_model(
    settings: TrainingSettings,
    captions: Sequence[Sequence[str]],
    extra_words: list[str],
    words: int,
    labels: int,
) -> tuple[TrainingModel, Tokenizer]:
    """Returns the model at step 0 and its tokenizer: a checkpoint's, or new ones."""
    vocabulary = settings.output / "vocab.txt"
    if settings.start:
        tokenizer = Tokenizer.open(settings.start)
        tokenizer.save(vocabulary)
        retrieval = load_retrieval(settings.start, image_size=settings.image_size, tokenizer=tokenizer)
        tensors = read_checkpoint(settings.start).tensors
        with_captioner = any(name.startswith("text_decoder.") for name in tensors)
        model = TrainingModel(retrieval.config, words, with_captioner, labels)
        model.initialise()
        model.retrieval.load_state_dict(retrieval.state_dict())
        if with_captioner:
            captioner = load_captioner(settings.start, image_size=settings.image_size, tokenizer=tokenizer)
            model.captioner.text_decoder.load_state_dict(captioner.text_decoder.state_dict())
        else:
            log.info("%s holds no captioner: training retrieval and matching only", settings.start)
        return model, tokenizer
    if not vocabulary.is_file():
        entries = train_vocabulary(
            (text for texts in captions for text in texts), extra_words, settings.vocabulary
        )
        vocabulary.write_text("\n".join(entries) + "\n", encoding="utf-8")
    tokenizer = Tokenizer.open(vocabulary)
    model = TrainingModel(_new_config(settings, tokenizer), words, labels=labels)
    model.initialise()
    return model, tokenizer


def _new_config(settings: TrainingSettings, tokenizer: Tokenizer) -> BlipConfig:
    heads = settings.width // 32
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": settings.width,
        "intermediate_size": 4 * settings.width,
        "num_hidden_layers": settings.text_layers,
        "num_attention_heads": heads,
        "max_position_embeddings": settings.caption_tokens,
        "encoder_hidden_size": settings.width,
        "projection_dim": 256,
        "bos_token_id": tokenizer.dec_id,
        "eos_token_id": tokenizer.sep_id,
        "sep_token_id": tokenizer.sep_id,
        "pad_token_id": tokenizer.pad_id,
        "label_smoothing": 0.1,
    }
    vision = {
        "hidden_size": settings.width,
        "intermediate_size": 4 * settings.width,
        "num_hidden_layers": settings.vision_layers,
        "num_attention_heads": heads,
        "image_size": settings.image_size,
        "patch_size": settings.patch_size,
        "layer_norm_eps": 1e-6,
        "initializer_range": 0.02,
    }
    return BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=256)


def _optimizer(model: TrainingModel, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW; matrices decay, biases, gains and scalars do not."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.03}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))


def _learning_rate(step: int, settings: TrainingSettings) -> float:
    warm = min(1.0, (step + 1) / 200)
    fall = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    return settings.learning_rate * warm * (0.02 + 0.98 * fall)


def _normalise(pixels: np.ndarray, device: str) -> torch.Tensor:
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    picture = torch.from_numpy(np.array(pixels)).to(device).permute(0, 3, 1, 2)
    return (picture.float() / 255 - mean) / std


def _tokens(tokenizer: Tokenizer, texts: list[str], longest: int, device: str) -> TokenBatch:
    tokens = tokenizer.encode(texts, longest)
    return TokenBatch(tokens.ids.to(device), tokens.mask.to(device))


def _millions(model: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def _save_checkpoint(model: TrainingModel, optimizer: torch.optim.Optimizer, output: Path, step: int) -> None:
    unfinished = output / "checkpoint.unfinished.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, unfinished)
    unfinished.replace(output / "checkpoint.pt")


def _resume(model: TrainingModel, optimizer: torch.optim.Optimizer, output: Path) -> int:
    path = output / "checkpoint.pt"
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _save_weights(model: TrainingModel, output: Path, prompt: str) -> None:
    """Writes the weights in half precision, the vision tower once, tied tensors once."""
    from safetensors.torch import save_file

    tensors = dict(model.retrieval.state_dict())
    tensors |= {
        name: tensor
        for name, tensor in model.captioner.state_dict().items()
        if model.with_captioner
        and name.startswith("text_decoder.")
        and not name.startswith("text_decoder.cls.predictions.decoder.")
    }
    half = {
        name: tensor.detach().to("cpu", torch.float16).contiguous().clone()
        for name, tensor in tensors.items()
    }
    unfinished = output / "model.unfinished.safetensors"
    save_file(half, unfinished, metadata={"format": "pt"})
    unfinished.replace(output / "model.safetensors")
    config = json.loads(model.retrieval.config.to_json_string(use_diff=True)) | {"prompt": prompt}
    (output / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _log_recall(output: Path, step: int, recall: dict[str, dict[int, float]]) -> None:
    path = output / "recall_log.csv"
    is_new = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(("step", *(f"R@10 of comment {number}" for number in recall)))
        writer.writerow((step, *(f"{values[10]:.4f}" for values in recall.values())))
    log.info("step %d: recall@10 by comment number %s", step, {n: round(v[10], 3) for n, v in recall.items()})


def _log_row(output: Path, step: int, rate: float, seconds: float, losses: dict[str, float]) -> None:
    path = output / "training_log.csv"
    is_new = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(("step", "learning_rate", "seconds", *LOSSES))
        values = [f"{losses[name]:.4f}" if name in losses else "" for name in LOSSES]
        writer.writerow((step, f"{rate:.6f}", f"{seconds:.1f}", *values))


def _plot_curves(output: Path) -> None:
    from matplotlib.figure import Figure

    with (output / "training_log.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in LOSSES:
        points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        if points:
            axes.plot(*zip(*points, strict=True), label=name)
    axes.set(xlabel="Step", ylabel="Loss", title="Training losses")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(output / "training_curves.png", dpi=150)


def main() -> None:
    """Reads the command line, and trains."""
    import tyro

    train(tyro.cli(TrainingSettings))


if __name__ == "__main__":
    raise SystemExit(run_script(main))
