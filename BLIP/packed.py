"""Weights laid out ahead as the processor reads them.

torch multiplies float32 matrices with MKL, which on some processors reaches half of what oneDNN does; torch
has both. oneDNN wants the weights in blocks. They are turned once, when a model is opened, which takes no
compiler and no other package. docs/performance.md has figures.
"""

from __future__ import annotations

import torch
from torch import nn


class PackedLinear(nn.Module):
    """A linear layer whose weights only oneDNN can read."""

    def __init__(self, linear: nn.Linear) -> None:
        """Takes the weights of a float32 layer on the CPU; the layer can go then."""
        super().__init__()
        weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.register_buffer("weight", weight, persistent=False)
        self.bias = linear.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., width in) to (..., width out), both float32."""
        return torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, "none", [], "")


def can_pack() -> bool:
    """Says whether this torch and processor have what it takes: oneDNN, and x86 with AVX2 or AVX-512."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def pack(module: nn.Module) -> None:
    """Puts packed layers in the place of all linear ones; the module cannot be trained any more.

    Args:
        module: float32, on the CPU; its layers are replaced one by one, so that memory does not double.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            module.register_module(name, PackedLinear(child))
        else:
            pack(child)
