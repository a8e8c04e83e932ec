"""The loop of both training stages: warm-up, cosine, checkpoints, log; resumes exactly."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from BLIP.training_losses import TrainingModel
from files import append_lines, replace_file

log = logging.getLogger(__name__)

LOG_EVERY = 50  # steps

Losses = dict[str, torch.Tensor]


def run_stage(
    name: str,
    model: TrainingModel,
    groups: list[dict[str, Any]],
    losses_of: Callable[[int], Losses],
    output: Path,
    *,
    steps: int,
    learning_rate: float,
    warmup_steps: int,
    seed: int,
    checkpoint_every: int,
    saved: Callable[[int], None] = lambda _: None,
) -> None:
    """Runs a stage, or what is left of it after a stop; checkpoint and log are in `output`.

    Args:
        name: Of the stage's checkpoint and in the log.
        model: What is trained; a checkpoint holds all of it.
        groups: Its trained parameters, as AdamW takes them.
        losses_of: The losses of a step, computed under autocast in bfloat16; their sum is minimised.
        output: Folder of checkpoints and log.
        steps: In all.
        learning_rate: Peak; warms up for `warmup_steps`, then falls along a cosine.
        warmup_steps: Until the peak.
        seed: Of what a step draws at random.
        checkpoint_every: Steps.
        saved: Called with the number of finished steps after each checkpoint.
    """
    path, log_path = output / f"{name}.pt", output / "training_log.jsonl"
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    first_step = 0
    if path.is_file():
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first_step = state["step"]
    device = model.towers.device.type
    millions = sum(parameter.numel() for parameter in parameters) / 1e6
    log.info("%s: training %.1f M parameters from step %d on %s", name, millions, first_step, device)
    sums: dict[str, list[float]] = defaultdict(list)  # of the steps since the last row of the log
    started = time.monotonic()
    bar = tqdm(range(first_step, steps), desc=name, unit="step", initial=first_step, total=steps)
    for step in bar:
        fall = 0.5 * (1 + math.cos(math.pi * step / steps))
        rate = learning_rate * min(1.0, (step + 1) / warmup_steps) * (0.02 + 0.98 * fall)
        for group in optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(seed * 1_000_003 + step)  # so that a resumed run draws the same negatives
        with torch.autocast(device, torch.bfloat16):
            losses = losses_of(step)
            loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for loss_name, value in losses.items():
            sums[loss_name].append(value.item())
        is_last = step + 1 == steps
        if (step + 1) % LOG_EVERY == 0 or is_last:
            means = {loss_name: round(sum(values) / len(values), 4) for loss_name, values in sums.items()}
            bar.set_postfix(means)
            seconds = round(time.monotonic() - started, 1)
            row = {"stage": name, "step": step + 1, "learning_rate": rate, "seconds": seconds}
            append_lines(log_path, [row | means])
            sums.clear()
        if (step + 1) % checkpoint_every == 0 or is_last:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            replace_file(path, lambda temporary, state=state: torch.save(state, temporary))
            saved(step + 1)
