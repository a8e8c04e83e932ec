"""What the constants' QUANTIZATION means, for every model of the hub alike."""

from __future__ import annotations

import importlib.util
from typing import Any

PRECISIONS = ("int8", "int4", "fp16", "bf16", "fp32")
Quantization = str | bool


def precision_of(quantization: Quantization) -> str:
    """Returns one of `PRECISIONS`; True means int8 and False fp16, as in the first scripts.

    Raises:
        ValueError: If it is neither a bool nor a known name.
    """
    if isinstance(quantization, bool):
        return "int8" if quantization else "fp16"
    if quantization not in PRECISIONS:
        raise ValueError(f"quantization: got {quantization!r}, expected True, False or one of {PRECISIONS}")
    return quantization


def loading_options(quantization: Quantization) -> dict[str, Any]:
    """Returns the keyword arguments of ``from_pretrained`` for a precision.

    int8 is LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339); int4 is nf4 with double quantization
    (Dettmers et al. 2023, arXiv 2305.14314), computing in 16 bits.

    Raises:
        ValueError: If the precision is not known.
        ModuleNotFoundError: If it needs bitsandbytes and that is not installed.
    """
    precision = precision_of(quantization)
    import torch

    plain = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    if precision in plain:
        return {"dtype": plain[precision]}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModuleNotFoundError(f"{precision} needs bitsandbytes; run: pip install -r requirements-gpu.txt")
    from transformers import BitsAndBytesConfig

    if precision == "int8":
        return {"dtype": torch.float16, "quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    compute = (
        torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float16
    )
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    return {"dtype": compute, "quantization_config": four_bits}


def device_options() -> dict[str, Any]:
    """Returns the keyword arguments that put a model on the GPUs where there are any."""
    import torch

    return {"device_map": "auto"} if torch.cuda.is_available() else {}


def fastest_precision() -> str:
    """Returns "bf16" where the hardware computes in it (GPU, or a CPU with its instructions), else "fp32"."""
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"
