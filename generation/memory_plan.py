"""Says before anything is loaded what fits into a GPU's memory.

    python -m generation.memory_plan --preset rtx3090-int8 --gpu-memory 24

Nothing is downloaded for the presets' models; of others the configuration is. `generation/footprint.py` says
how the figures come about.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from generation.footprint import RELEASED_BLIP, Footprint, configuration, footprint, weight_bytes
from generation.precision import precision_of
from settings import PRESETS, PROJECT, PresetName

GIB = 2**30

CONTEXT_BYTES = GIB // 2  # of CUDA itself and its libraries, in each process
RESERVE = 0.05  # of the memory: lost between the allocator's blocks


# By role. Longest prompts and answers in tokens follow from the bounds in captioning.py and
# query_editing.py: 200 words of query and 200 of caption are about 560 tokens.
MODEL_OF = {"caption": "captioner", "rewrite": "rewriter"}
TOKENS_OF = {"caption": (60, 200), "rewrite": (700, 100)}


@dataclass(frozen=True)
class ModelChoice:
    """A model to plan for.

    Attributes:
        model_id: As for `Captioning` or `QueryEditing`.
        quantization: As for `precision_of`.
        batch: Images or queries at a time.
    """

    model_id: str
    quantization: str | bool
    batch: int


@dataclass(frozen=True)
class MemoryPlan:
    """What generation needs, and what there is.

    Attributes:
        footprints: Of captioner and rewriter, or of one of them.
        batches: Of each, images or queries at a time.
        free_bytes: What is there for both.
    """

    footprints: dict[str, Footprint]
    batches: dict[str, int]
    free_bytes: int

    @property
    def together_bytes(self) -> int:
        """Both models' weights, and the work of one at a time: stages alternate."""
        weights = sum(model.weight_bytes for model in self.footprints.values())
        return weights + max(self._working(role) for role in self.footprints)

    def alone_bytes(self, role: str) -> int:
        """One model's weights and work.

        Args:
            role: "caption" or "rewrite".
        """
        return self.footprints[role].weight_bytes + self._working(role)

    @property
    def fits_together(self) -> bool:
        """Whether both can stay."""
        return self.together_bytes <= self.free_bytes

    @property
    def fits(self) -> bool:
        """Whether both can be used, be it in turns."""
        return all(self.alone_bytes(role) <= self.free_bytes for role in self.footprints)

    def largest_batch(self, role: str, together: bool) -> int:
        """Returns how many images or queries at a time fit.

        Args:
            role: "caption" or "rewrite".
            together: Whether the other model stays beside it.
        """
        present = self.footprints.values() if together else (self.footprints[role],)
        model = self.footprints[role]
        left = self.free_bytes - sum(one.weight_bytes for one in present) - model.workspace_bytes
        return max(0, left // model.bytes_per_sequence)

    def check(self, role: str) -> None:
        """Refuses a model that does not fit even alone.

        A batch that is too large is no reason: it halves itself.

        Args:
            role: "caption" or "rewrite".

        Raises:
            ValueError: If not even one sequence fits beside its weights.
        """
        if self.largest_batch(role, together=False) < 1:
            model = self.footprints[role]
            least = model.weight_bytes + model.working_bytes(1)
            raise ValueError(
                f"{model.model_id} in {model.precision} needs about {_gib(least)} of GPU memory, got"
                f" {_gib(self.free_bytes)}; use int4 (--quantization int4), a smaller model, or a preset that"
                " fits: python -m generation.memory_plan --help"
            )

    @property
    def verdict(self) -> str:
        """Says in a line what will be done."""
        free = _gib(self.free_bytes)
        names = " and ".join(MODEL_OF[role] for role in self.footprints)
        if self.fits_together:
            fit = "fit together" if len(self.footprints) > 1 else "fits"
            return f"{names} {fit}: {_gib(self.together_bytes)} of {free} free"
        alone = " and ".join(_gib(self.alone_bytes(role)) for role in self.footprints)
        if self.fits:
            return (
                f"{names} do not fit together ({_gib(self.together_bytes)} of {free} free):"
                f" they take turns, {alone}"
            )
        smaller = ", ".join(f"{role} {self.largest_batch(role, together=False)}" for role in self.footprints)
        return f"{names}: does not fit in {free} free even in turns ({alone}); batches that would: {smaller}"

    def _working(self, role: str) -> int:
        return self.footprints[role].working_bytes(self.batches[role])


def plan_memory(choices: Mapping[str, ModelChoice], free_bytes: int) -> MemoryPlan:
    """Plans captioner and rewriter, or one of them.

    Args:
        choices: By role: "caption", "rewrite".
        free_bytes: What is there for them.

    Raises:
        ValueError: If a configuration cannot be read, or a model cannot have its precision.
    """
    footprints = {
        role: footprint(choice.model_id, precision_of(choice.quantization), *TOKENS_OF[role])
        for role, choice in choices.items()
    }
    return MemoryPlan(footprints, {role: choice.batch for role, choice in choices.items()}, free_bytes)


def free_gpu_bytes() -> int | None:
    """Returns what this process may still take of its GPUs' memory, or None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    free = 0
    for gpu in range(torch.cuda.device_count()):
        ours = torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)  # held, not in use
        free += torch.cuda.mem_get_info(gpu)[0] + ours
    return int(free * (1 - RESERVE))


def blip_bytes(blip: str) -> int:
    """Returns the bytes of the search model, which stays in float32 beside the others.

    Args:
        blip: A checkpoint's path or hub id; one without ``config.json`` counts as BLIP base.
    """
    import torch
    from transformers import BlipForImageTextRetrieval

    folder = PROJECT / blip
    config = configuration(str(folder) if folder.exists() else RELEASED_BLIP)
    with torch.device("meta"):
        return weight_bytes(BlipForImageTextRetrieval._from_config(config), "fp32")


@dataclass(frozen=True)
class PlanSettings:
    """Says what fits into a GPU's memory, before anything is loaded.

    Attributes:
        preset: Set of models, precision and batch sizes.
        gpu_memory: In GiB, as on the box; that of the GPU found when not given.
        caption_model: The preset's when not given.
        rewrite_model: The preset's when not given.
        quantization: The preset's when not given.
        caption_batch: The preset's when not given.
        rewrite_batch: The preset's when not given.
    """

    preset: PresetName = "rtx3090-int8"
    gpu_memory: float | None = None
    caption_model: str | None = None
    rewrite_model: str | None = None
    quantization: Literal["int8", "int4", "fp16", "bf16", "fp32", "auto"] | None = None
    caption_batch: int | None = None
    rewrite_batch: int | None = None


def print_plan(settings: PlanSettings) -> None:
    """Prints the plan of a preset, single settings overridden.

    Args:
        settings: What to plan.

    Raises:
        ValueError: If there is no GPU and no ``gpu_memory``, or a model cannot be planned or does not fit.
    """
    chosen = dict(PRESETS[settings.preset])
    chosen |= {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if name in chosen and value is not None
    }
    search = blip_bytes(chosen["blip"])
    if settings.gpu_memory is None:
        found = free_gpu_bytes()
        if found is None:
            raise ValueError("no GPU found; say for which one to plan, in GiB: --gpu-memory 24")
        free = found - search
    else:
        free = int(settings.gpu_memory * GIB * (1 - RESERVE)) - CONTEXT_BYTES - search
    choices = {
        role: ModelChoice(chosen[f"{role}_model"], chosen["quantization"], chosen[f"{role}_batch"])
        for role in MODEL_OF
    }
    plan = plan_memory(choices, free)
    print(f"search model (fp32)  {_gib(search)}")  # noqa: T201
    for role, model in plan.footprints.items():
        batch = plan.batches[role]
        print(  # noqa: T201
            f"{role:8} {model.model_id} in {model.precision}:"
            f" {model.parameters / 1e9:.2f} billion parameters\n"
            f"    weights {_gib(model.weight_bytes)}; a batch of {batch}: cache"
            f" {_gib(batch * model.tokens * model.cache_bytes_per_token)}, activations"
            f" {_gib(model.workspace_bytes + batch * model.activation_bytes)};"
            f" largest batch: {plan.largest_batch(role, plan.fits_together)}"
        )
    print(plan.verdict)  # noqa: T201
    for role in plan.footprints:
        plan.check(role)


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


def main() -> None:
    """Reads the command line and prints the plan."""
    import tyro

    print_plan(tyro.cli(PlanSettings))


if __name__ == "__main__":
    from settings import run_script

    raise SystemExit(run_script(main))
