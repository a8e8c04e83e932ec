"""Weights laid out in advance the way the processor reads them fastest.

torch multiplies float32 matrices with MKL, which on some processors reaches half the speed of oneDNN. oneDNN
wants the weights in blocks: they are rearranged once, when a model is opened, and not at every call.
docs/performance.md has figures.
"""

from __future__ import annotations

import torch
from torch import nn


class PackedLinear(nn.Module):
    """A linear layer whose weights only oneDNN can read."""

    def __init__(self, linear: nn.Linear) -> None:
        """Takes the weights of a layer on the CPU, float32 or bfloat16; the layer itself is not kept."""
        super().__init__()
        weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.register_buffer("weight", weight, persistent=False)
        self.bias = linear.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., width in) to (..., width out), both of the weights' dtype."""
        return torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, "none", [], "")


def can_pack() -> bool:
    """Returns whether torch and the processor support it: oneDNN, and x86 with AVX2 or AVX-512."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def pack(module: nn.Module) -> None:
    """Replaces the plain linear layers of a module on the CPU by packed ones; it can no longer be trained.

    One by one, so that memory does not double. Layers of other dtypes than float32 and bfloat16, and of other
    classes (quantized ones), stay.
    """
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear and child.weight.dtype in (torch.float32, torch.bfloat16):
            module.register_module(name, PackedLinear(child))
        else:
            pack(child)
