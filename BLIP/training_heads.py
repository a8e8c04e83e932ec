"""The second stage of training: the towers are frozen, the captioner and the matching layers train on.

What a picture becomes is computed once for all, so a step costs a fraction of the first stage's, and the
embeddings, with every index made of them, stay as they are. The matching layers see harder negatives than a
batch offers: pictures out of the ten best of a thousand, which is what re-ranking is asked to tell apart.
"""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from BLIP.tokenizer import Tokenizer
from BLIP.training_data import make_batch
from BLIP.training_losses import TokenBatch, TrainingModel

log = logging.getLogger(__name__)

POOL = 1000  # pictures among which a text's hard negatives are looked for
HARDEST = 10  # of them, one is drawn
MATCHED = 32  # true pairs a step for matching


@dataclass(frozen=True)
class HeadSettings:
    """How long and how fast the heads train; units as in `BLIP.train_retrieval.TrainingSettings`."""

    steps: int
    learning_rate: float
    batch_size: int
    caption_tokens: int
    seed: int
    checkpoint_every: int
    with_captioner: bool


class HeadTrainer:
    """Trains the captioner and the matching layers over frozen towers.

    Attributes:
        parameters: What is trained: the text encoder's cross-attention, the matching head and, if asked for,
            the text decoder.
    """

    def __init__(
        self, model: TrainingModel, tokenizer: Tokenizer, settings: HeadSettings, output: Path
    ) -> None:
        self._model, self._tokenizer, self._settings, self._output = model, tokenizer, settings, output
        self._device = next(model.parameters()).device.type
        trained = {
            name: parameter
            for name, parameter in model.named_parameters()
            if (settings.with_captioner and "text_decoder" in name)
            or ("text_encoder" in name and "crossattention" in name)
            or "itm_head" in name
        }
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        self.parameters = list(trained.values())

    def train(
        self,
        hidden: np.ndarray,
        captions: Sequence[Sequence[str]],
        extra_words: Sequence[str],
    ) -> None:
        """Runs the stage, or what is left of it.

        Args:
            hidden: The vision tower's states of all images, (n, tokens, width) float16.
            captions: Each image's.
            extra_words: As for `make_batch`.
        """
        settings, model = self._settings, self._model
        features = self._image_features(hidden)
        optimizer = torch.optim.AdamW(self.parameters, lr=settings.learning_rate, betas=(0.9, 0.98))
        first = self._resume(optimizer)
        sums: dict[str, list[float]] = {"lm": [], "itm": []}
        bar = tqdm(
            range(first, settings.steps), desc="heads", unit="step", initial=first, total=settings.steps
        )
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = self._rate(step)
            torch.manual_seed(settings.seed * 1_000_003 + 500_000 + step)
            batch = make_batch(captions, extra_words, settings.batch_size, settings.seed + 1, step)
            states = torch.from_numpy(hidden[batch.rows]).to(self._device, torch.float32)
            losses = {}
            with torch.autocast(self._device, torch.bfloat16):
                if model.with_captioner and settings.with_captioner:
                    losses["lm"] = model.language_loss(states, self._tokens(batch.captions))
                losses["itm"] = self._matching_loss(
                    hidden, features, batch.rows[:MATCHED], batch.queries[:MATCHED]
                )
                loss = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            optimizer.step()
            for name, value in losses.items():
                sums[name].append(value.item())
            if (step + 1) % 50 == 0 or step + 1 == settings.steps:
                means = {name: sum(values) / len(values) for name, values in sums.items() if values}
                bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
                self._log_row(step + 1, means)
                sums = {"lm": [], "itm": []}
            if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                unfinished = self._output / "heads.unfinished.pt"
                torch.save(state, unfinished)
                unfinished.replace(self._output / "heads.pt")

    def _matching_loss(
        self, hidden: np.ndarray, features: torch.Tensor, rows: list[int], queries: list[str]
    ) -> torch.Tensor:
        """ITM over true pairs, each text with a hard picture and each picture with a hard text."""
        model, tokens = self._model, self._tokens(queries)
        with torch.no_grad():
            text = F.normalize(model.retrieval.text_proj(model.read(tokens.ids, tokens.mask)).float(), dim=-1)
            hard_rows, hard_texts = hard_negatives(
                text, features, torch.tensor(rows, device=text.device), tokens.ids
            )
        order = torch.arange(len(rows), device=tokens.ids.device)
        image_rows = [*rows, *rows, *hard_rows.tolist()]
        text_rows = torch.cat([order, hard_texts, order])
        states = torch.from_numpy(hidden[image_rows]).to(self._device, torch.float32)
        ids = tokens.starting_with(model.encoder_start)[text_rows]
        fused = model.read(ids, tokens.mask[text_rows], states)
        logits = model.retrieval.itm_head(fused).float()
        return F.cross_entropy(logits, (torch.arange(len(logits), device=logits.device) < len(rows)).long())

    def _image_features(self, hidden: np.ndarray) -> torch.Tensor:
        first = torch.from_numpy(np.array(hidden[:, 0])).to(self._device, torch.float32)
        with torch.no_grad():
            return F.normalize(self._model.retrieval.vision_proj(first).float(), dim=-1)

    def _tokens(self, texts: list[str]) -> TokenBatch:
        tokens = self._tokenizer.encode(texts, self._settings.caption_tokens)
        return TokenBatch(tokens.ids.to(self._device), tokens.mask.to(self._device))

    def _rate(self, step: int) -> float:
        settings = self._settings
        fall = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        return settings.learning_rate * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * fall)

    def _resume(self, optimizer: torch.optim.Optimizer) -> int:
        path = self._output / "heads.pt"
        if not path.is_file():
            return 0
        state = torch.load(path, map_location="cpu", weights_only=True)
        self._model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"]

    def _log_row(self, step: int, means: dict[str, float]) -> None:
        path = self._output / "heads_log.csv"
        is_new = not path.is_file()
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(("step", "lm", "itm"))
            writer.writerow(
                (step, *(f"{means[name]:.4f}" if name in means else "" for name in ("lm", "itm")))
            )


def hard_negatives(
    text: torch.Tensor, features: torch.Tensor, own: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws for each text a picture it may be mistaken for, and for each text's picture a text.

    Args:
        text: (n, dimension) unit rows.
        features: (images, dimension) unit rows.
        own: (n,) int64, the image of each text.
        ids: (n, length) int64, the texts' tokens; a text of the same words is never drawn.

    Returns:
        (n,) int64 images, (n,) int64 texts.
    """
    device = text.device
    pool = torch.randint(len(features), (POOL,), device=device)
    scores = (text @ features[pool].t()).masked_fill(pool[None] == own[:, None], -1)
    best = scores.topk(min(HARDEST, POOL), dim=1).indices
    drawn = torch.randint(best.shape[1], (len(own), 1), device=device)
    hard_rows = pool[best.gather(1, drawn).squeeze(1)]
    same = (ids[:, None] == ids[None]).all(dim=-1)
    among = (features[own] @ text.t() / 0.05).masked_fill(same, -1e4)
    return hard_rows, torch.multinomial(among.softmax(dim=1), 1).squeeze(1)


def image_states(
    model: TrainingModel,
    pixels: np.ndarray,
    rows: Sequence[int],
    path: Path,
    normalise: Callable[[np.ndarray, str], torch.Tensor],
) -> np.ndarray:
    """Runs the vision tower over pictures once.

    Args:
        model: Its vision tower is used.
        pixels: (m, side, side, 3) uint8.
        rows: Those of them that are wanted, n in all.
        path: Where the states lie; reused when they have the right length.
        normalise: Pixels to the tower's input.

    Returns:
        (n, tokens, width) float16, memory-mapped.
    """
    if path.is_file():
        states = np.load(path, mmap_mode="r")
        if len(states) == len(rows):
            return states
    device = next(model.parameters()).device.type
    unfinished = path.with_suffix(".unfinished.npy")
    states = None
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        for start in tqdm(range(0, len(rows), 128), desc="pictures through the tower", unit="batch"):
            batch = normalise(pixels[rows[start : start + 128]], device)
            hidden = model.retrieval.vision_model(pixel_values=batch).last_hidden_state.float().cpu().numpy()
            if states is None:
                shape = (len(rows), *hidden.shape[1:])
                states = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float16, shape=shape)
            states[start : start + len(hidden)] = hidden
    if states is None:
        raise ValueError("no pictures to train on")
    states.flush()
    unfinished.rename(path)
    return np.load(path, mmap_mode="r")
