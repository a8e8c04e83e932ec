"""Trains or fine-tunes a BLIP for retrieval, matching and captioning, on any dataset the playground reads.

From scratch, as the demo's weights began, and starting from a checkpoint:

    python -m BLIP.train_retrieval --dataset demo --output runs/train-demo
    python -m BLIP.train_retrieval --dataset flickr30k --split all --dev-split None
        --start BLIP/chatir_weights.ckpt --image-size 224 --learning-rate 1e-5 --output runs/train-flickr30k

If it is stopped or killed, the same command resumes from the last checkpoint (docs/training.md).
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from BLIP.captioner import PROMPT
from BLIP.checkpoints import load_captioner, load_towers, make_decoder
from BLIP.images import normalise
from BLIP.model import BlipEncoder
from BLIP.sizes import Sizes
from BLIP.tokenizer import Tokenizer
from BLIP.towers import Towers
from BLIP.training_data import PatchTargets, WordTargets, cache_pixels, make_batch, train_vocabulary
from BLIP.training_loop import Losses, run_stage
from BLIP.training_losses import TokenBatch, TrainingModel, draw_weights, hard_negatives
from BLIP.weight_files import read_checkpoint
from files import append_lines, read_json, replace_file, settings_that_differ, write_json
from index.decode import open_image
from index.faiss_index import FaissIndex
from playground import open_dataset
from records import Dataset
from settings import PROJECT, run_script

log = logging.getLogger(__name__)

COMMON_WORDS = Path(__file__).with_name("common_words.txt")  # for the vocabulary and as noise in queries
VOCABULARY = 3000  # WordPiece entries, and ...
CAPTION_TOKENS = 64  # ... positions of a model trained from scratch; longer texts are cut
MATCHED = 32  # true pairs a step for matching in the second stage
HEAD_LEARNING_RATE = 1e-3  # peak of the second stage; warms up over 100 steps, then falls along a cosine
PATCH = 16  # side of a patch in pixels, and ...
PROJECTION = 256  # ... width of the joint space of a model trained from scratch


@dataclass(frozen=True)
class TrainingSettings:
    """Trains a BLIP for retrieval, matching and captioning.

    Attributes:
        dataset: Name of a playground dataset.
        output: Folder for weights, log and checkpoints.
        root: The dataset's folder; the usual one if not given.
        split: Training split.
        dev_split: Split whose recall is logged at each checkpoint; none if not given.
        start: Checkpoint to fine-tune; from scratch if not given.
        steps: Optimiser steps of the first stage.
        batch_size: Images per step.
        learning_rate: Peak; warms up over 200 steps, then falls along a cosine.
        matching_from: Share of the steps after which the matching loss joins.
        image_size: Side of the pictures in pixels.
        width: Width of both towers (from scratch only).
        vision_layers: Layers of the vision tower (from scratch only).
        text_layers: Layers of the text encoder and of the text decoder (from scratch only).
        regions: File of labelled boxes that patches learn to name (see `PatchTargets`); none if not given.
        head_steps: Steps of the second stage, which trains only captioner and matching layers; 0 for none.
        head_images: How many images the second stage learns from, evenly spread; all if not given.
        head_captioner: Whether the second stage trains the captioner too, or only matching.
        seed: Seed of weights and batches.
        checkpoint_every: Steps between checkpoints.
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
    width: int = 192
    vision_layers: int = 6
    text_layers: int = 4
    regions: Path | None = None
    head_steps: int = 2500
    head_images: int | None = None
    head_captioner: bool = True
    seed: int = 0
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "image_size", "width", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.head_images is not None and self.head_images < self.batch_size:
            raise ValueError(f"head_images {self.head_images} do not fill a batch of {self.batch_size}")
        if self.start is None and self.image_size % PATCH:
            raise ValueError(f"image_size {self.image_size} is no multiple of the patch size, {PATCH}")


def train(settings: TrainingSettings) -> Path:
    """Runs the training, or what is left of it; returns the folder with the trained weights.

    Raises ValueError if the folder holds a run with other settings, or the dataset is too small for a batch;
    FileNotFoundError if the dataset or the starting checkpoint is missing.
    """
    torch.manual_seed(settings.seed)
    output = settings.output
    output.mkdir(parents=True, exist_ok=True)
    _check_settings(settings)
    dataset = open_dataset(settings.dataset, settings.root, settings.split)
    images = [image for image in dataset.images if image.captions]
    captions = [image.captions for image in images]
    if len(captions) < settings.batch_size:
        raise ValueError(f"{len(captions)} captioned images do not fill a batch of {settings.batch_size}")
    pixels = cache_pixels(images, settings.image_size, output / f"pixels_{settings.image_size}.npy")
    extra_words = COMMON_WORDS.read_text(encoding="utf-8").split()
    words = WordTargets(captions)
    patches = PatchTargets(settings.regions, [image.id for image in images]) if settings.regions else None
    dev = open_dataset(settings.dataset, settings.root, settings.dev_split) if settings.dev_split else None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    towers, decoder, tokenizer = _start_model(settings, captions, extra_words)
    labels = len(patches.labels) if patches else 0
    model = TrainingModel(towers, decoder, tokenizer.enc_id, len(words.words), labels).to(device).train()

    def tokens(texts: Sequence[str], first: int | None = None) -> TokenBatch:
        encoded = tokenizer.encode(texts, min(CAPTION_TOKENS, towers.sizes.positions), first=first)
        return TokenBatch(encoded.ids.to(device), encoded.mask.to(device))

    def losses_of_all(step: int) -> Losses:
        batch = make_batch(captions, extra_words, settings.batch_size, settings.seed, step)
        return model(
            normalise(pixels[batch.rows]).to(device),
            tokens(batch.queries),
            tokens(batch.captions, tokenizer.dec_id),
            words.rows(batch.rows).to(device),
            with_matching=step >= settings.matching_from * settings.steps,
            patches=patches.rows(batch.rows, towers.sizes.grid).to(device) if patches else None,
        )

    def saved(step: int) -> None:
        _save_weights(model, tokenizer, output)
        if dev:
            recall = _recall(BlipEncoder(towers, tokenizer, "in training", batch_size=100), dev)
            append_lines(output / "training_log.jsonl", [{"step": step, "recall@10": recall}])

    # Matrices decay; biases, gains and scalars do not.
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.03}, {"params": others, "weight_decay": 0.0}]
    run_stage(
        "towers", model, groups, losses_of_all, output,
        steps=settings.steps, learning_rate=settings.learning_rate, warmup_steps=200,
        seed=settings.seed, checkpoint_every=settings.checkpoint_every, saved=saved,
    )  # fmt: skip
    if not settings.head_steps:
        return output

    count = min(settings.head_images or len(captions), len(captions))
    rows = [number * len(captions) // count for number in range(count)]
    captions = [captions[row] for row in rows]
    states = _image_states(model, pixels, rows, output / "states.npy")
    with torch.no_grad():
        first = torch.from_numpy(np.array(states[:, 0])).to(device, torch.float32)
        features = F.normalize(towers.vision_proj(first), dim=-1)

    def losses_of_heads(step: int) -> Losses:
        batch = make_batch(captions, extra_words, settings.batch_size, settings.seed + 1, step)
        losses = {}
        if decoder is not None and settings.head_captioner:
            hidden = torch.from_numpy(states[batch.rows]).to(device, torch.float32)
            losses["lm"] = model.language_loss(hidden, tokens(batch.captions, tokenizer.dec_id))
        queries, own = tokens(batch.queries[:MATCHED]), torch.tensor(batch.rows[:MATCHED], device=device)
        with torch.no_grad():
            hard_rows, hard_texts = hard_negatives(model.text_features(queries), features, own, queries.ids)
        order = torch.arange(len(own), device=device)
        chosen = torch.cat([own, own, hard_rows]).tolist()
        hidden = torch.from_numpy(states[chosen]).to(device, torch.float32)
        losses["itm"] = model.matching_loss(hidden, queries, torch.cat([order, hard_texts, order]))
        return losses

    for name, parameter in model.named_parameters():
        is_head = ("text_encoder" in name and "crossattention" in name) or "itm_head" in name
        is_decoder = "text_decoder" in name and settings.head_captioner
        parameter.requires_grad_(is_head or is_decoder)
    heads = [parameter for parameter in model.parameters() if parameter.requires_grad]
    run_stage(
        "heads", model, [{"params": heads}], losses_of_heads, output,
        steps=settings.head_steps, learning_rate=HEAD_LEARNING_RATE, warmup_steps=100,
        seed=settings.seed + 500_000, checkpoint_every=settings.checkpoint_every,
    )  # fmt: skip
    _save_weights(model, tokenizer, output)
    return output


def _check_settings(settings: TrainingSettings) -> None:
    """Writes the settings beside the run, or refuses a folder that holds a run with others."""
    path = settings.output / "training_settings.json"
    ours = {}
    for key, value in vars(settings).items():
        if isinstance(value, Path):  # counted from the project, so that a run may move with its checkout
            value = str(value.relative_to(PROJECT) if value.is_relative_to(PROJECT) else value)
        ours[key] = value
    if path.is_file():
        free = {"output", "root", "checkpoint_every"}  # these do not change the result
        differing = settings_that_differ(read_json(path), ours, [key for key in ours if key not in free])
        if differing:
            raise ValueError(
                f"{settings.output} holds a run with other settings ({differing}); choose another --output"
            )
    write_json(path, ours)


def _start_model(
    settings: TrainingSettings, captions: Sequence[Sequence[str]], extra_words: list[str]
) -> tuple[Towers, Any, Tokenizer]:
    """Returns towers, text decoder and tokenizer at step 0: a checkpoint's, or new ones."""
    vocabulary = settings.output / "vocab.txt"
    if settings.start:
        tokenizer = Tokenizer.open(settings.start)
        tokenizer.save(vocabulary)
        towers = load_towers(settings.start, tokenizer, settings.image_size)
        names = read_checkpoint(settings.start).tensors
        if not any(name.startswith("text_decoder.") for name in names):
            log.info("%s holds no captioner: training retrieval and matching only", settings.start)
            return towers, None, tokenizer
        captioner = load_captioner(settings.start, tokenizer, settings.image_size)
        return towers, captioner.text_decoder, tokenizer
    if not vocabulary.is_file():
        texts = (text for texts in captions for text in texts)
        entries = train_vocabulary(texts, extra_words, VOCABULARY)
        vocabulary.write_text("\n".join(entries) + "\n", encoding="utf-8")
    tokenizer = Tokenizer.open(vocabulary)
    width, heads = settings.width, settings.width // 32
    sizes = Sizes(
        vision_width=width,
        vision_layers=settings.vision_layers,
        vision_mlp=4 * width,
        vision_heads=heads,
        patch=PATCH,
        image_size=settings.image_size,
        text_width=width,
        text_layers=settings.text_layers,
        text_mlp=4 * width,
        text_heads=heads,
        vocabulary=len(tokenizer),
        positions=CAPTION_TOKENS,
        projection=PROJECTION,
    )
    towers, decoder = Towers(sizes), make_decoder(sizes, tokenizer)
    draw_weights(towers)
    draw_weights(decoder)
    return towers, decoder, tokenizer


def _recall(encoder: BlipEncoder, dataset: Dataset) -> dict[str, float]:
    """Returns the share of images that their own caption finds among the best 10, by number of the caption.

    A query id ends in ``#number``; queries without a single target, as those of MSR-VTT, are left out.
    """
    rows = []
    for start in range(0, len(dataset.images), 128):
        pictures = [open_image(image.path) for image in dataset.images[start : start + 128]]
        rows.append(encoder.encode_images(pictures))
    index = FaissIndex.build([image.id for image in dataset.images], np.concatenate(rows))
    found = defaultdict(list)
    queries = [query for query in dataset.queries if query.target is not None]
    texts = encoder.encode_texts([query.text for query in queries])
    ranks = index.rank_of(texts, [query.target or "" for query in queries])
    for query, rank in zip(queries, ranks.tolist(), strict=True):
        found[query.id.rsplit("#", 1)[-1]].append(rank <= 10)
    return {number: sum(hits) / len(hits) for number, hits in sorted(found.items())}


def _save_weights(model: TrainingModel, tokenizer: Tokenizer, output: Path) -> None:
    """Writes the weights in half precision, the vision tower once, tied tensors once."""
    from safetensors.torch import save_file

    tensors = model.towers.state_dict()
    if model.text_decoder is not None:
        tensors |= {
            f"text_decoder.{name}": tensor
            for name, tensor in model.text_decoder.state_dict().items()
            if not name.startswith("cls.predictions.decoder.")  # tied to the word embeddings and the bias
        }
    half = {
        name: tensor.detach().to("cpu", torch.float16).contiguous().clone()
        for name, tensor in tensors.items()
    }
    replace_file(
        output / "model.safetensors", lambda temporary: save_file(half, temporary, metadata={"format": "pt"})
    )
    config = model.towers.sizes.configuration(tokenizer)
    write_json(output / "config.json", json.loads(config.to_json_string(use_diff=True)) | {"prompt": PROMPT})


def _image_states(model: TrainingModel, pixels: np.ndarray, rows: Sequence[int], path: Path) -> np.ndarray:
    """Runs the vision tower once over the rows that the second stage learns from.

    Returns (rows, tokens, width) float16, memory-mapped from `path`; reused if it is there.
    """
    if path.is_file():
        return np.load(path, mmap_mode="r")
    device = model.towers.device.type
    sizes = model.towers.sizes
    shape = (len(rows), 1 + sizes.grid**2, sizes.vision_width)
    unfinished = path.with_suffix(".unfinished.npy")
    states = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float16, shape=shape)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        for start in tqdm(range(0, len(rows), 128), desc="pictures through the tower", unit="batch"):
            batch = normalise(pixels[rows[start : start + 128]]).to(device)
            states[start : start + len(batch)] = model.towers.vision_model(batch).float().cpu().numpy()
    states.flush()
    unfinished.rename(path)
    return np.load(path, mmap_mode="r")


def main() -> None:
    """Reads the command line, and trains."""
    import tyro

    train(tyro.cli(TrainingSettings))


if __name__ == "__main__":
    raise SystemExit(run_script(main))
