"""Which attention kernel a model gets: flash-attention 2, else torch's SDPA, else the plain one."""

from __future__ import annotations

from typing import Any

FLASH_CAPABILITY = (8, 0)  # of the GPU (Ampere); what flash-attention 2 is compiled for
WIDEST_HEAD = 256  # that flash-attention 2 computes


def flash_attention_installed() -> bool:
    """Returns whether flash-attention 2 is here in a version that transformers uses."""
    from transformers.utils import is_flash_attn_2_available

    return bool(is_flash_attn_2_available())


def choose_attention(
    skeleton: Any, dtype: Any, capability: tuple[int, int] | None, flash_installed: bool
) -> tuple[str, str]:
    """Chooses the fastest kernel that machine, precision and model allow.

    Args:
        skeleton: A transformers model, on the meta device or loaded; a model made of several (vision tower,
            language model) gets what all of them support.
        dtype: The torch dtype it computes in.
        capability: The GPU's compute capability; None on a CPU.
        flash_installed: Whether flash-attention 2 is installed.

    Returns:
        A value for ``attn_implementation``, and why it is that one.
    """
    from transformers import PreTrainedModel

    models = [module for module in skeleton.modules() if isinstance(module, PreTrainedModel)]
    obstacle = _flash_obstacle(models, dtype, capability, flash_installed)
    if obstacle is None:
        return "flash_attention_2", "installed, and supported by GPU, precision and model"
    without_sdpa = [type(model).__name__ for model in models if not model._supports_sdpa]
    if without_sdpa:
        return "eager", f"{without_sdpa[0]} supports no other"
    return "sdpa", f"no flash-attention 2: {obstacle}"


def _flash_obstacle(
    models: list[Any], dtype: Any, capability: tuple[int, int] | None, flash_installed: bool
) -> str | None:
    import torch

    if capability is None:
        return "it needs a GPU"
    if not flash_installed:
        return "flash-attn is not installed"
    if capability < FLASH_CAPABILITY:
        return "the GPU's compute capability {}.{} is below 8.0".format(*capability)
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in 16 bits, not in {str(dtype).removeprefix('torch.')}"
    without = [type(model).__name__ for model in models if not model._supports_flash_attn]
    if without:
        return f"{without[0]} does not support it"
    widest = max((_head_width(model.config) for model in models), default=0)
    return f"heads of {widest} are wider than {WIDEST_HEAD}" if widest > WIDEST_HEAD else None


def _head_width(config: Any) -> int:
    stated = getattr(config, "head_dim", None)
    heads = getattr(config, "num_attention_heads", None)
    return stated or (config.hidden_size // heads if heads else 0)
