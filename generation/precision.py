"""What the constants' QUANTIZATION means, for every model of the hub alike, and what it cannot mean."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

log = logging.getLogger(__name__)

PRECISIONS = ("int8", "int4", "fp16", "bf16", "fp32")
Quantization = str | bool

INT8_CAPABILITY = (7, 5)  # of the GPU: the first with the int8 matrix product that LLM.int8() uses


def precision_of(quantization: Quantization) -> str:
    """Returns one of `PRECISIONS`; True means int8 and False fp16, as in the first scripts.

    "auto" is `fastest_precision` of this machine.

    Raises:
        ValueError: If it is neither a bool nor a known name.
    """
    if isinstance(quantization, bool):
        return "int8" if quantization else "fp16"
    if quantization == "auto":
        return fastest_precision()
    if quantization not in PRECISIONS:
        raise ValueError(
            f"quantization: got {quantization!r}, expected True, False, 'auto' or one of {PRECISIONS}"
        )
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
        raise ModuleNotFoundError(f"{precision} needs bitsandbytes; run: pip install -r requirements/gpu.txt")
    from transformers import BitsAndBytesConfig

    if precision == "int8":  # computes in float16 whatever it is given
        return {"dtype": torch.float16, "quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    compute = compute_dtype(precision)
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    return {"dtype": compute, "quantization_config": four_bits}


def compute_dtype(precision: str) -> Any:
    """Returns the torch dtype of the parts that are not quantized, the cache and the activations."""
    import torch

    if precision == "int4":
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bf16 else torch.float16
    return {"int8": torch.float16, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[
        precision
    ]


def check_precision(
    quantization: Quantization, model_id: str, stored_as: str | None, capability: tuple[int, int] | None
) -> None:
    """Refuses what cannot work, and warns of what works slowly.

    Args:
        quantization: What is asked for.
        model_id: Of which model.
        stored_as: How its weights are quantized already, such as "gguf", "awq" or "gptq"; None if they
            are not.
        capability: The GPU's compute capability, as `gpu_capability` returns it.

    Raises:
        ValueError: If the model cannot be quantized, or the GPU cannot compute with it.
    """
    precision = precision_of(quantization)
    refuse_packing_twice(precision, model_id, stored_as)
    if precision in ("int8", "int4"):
        if precision == "int8" and capability is not None and capability < INT8_CAPABILITY:
            raise ValueError(
                f"quantization: int8 needs a GPU of compute capability {_dotted(INT8_CAPABILITY)}, got"
                f" {_dotted(capability)}; use int4 or fp16"
            )
        if capability is None:
            log.warning("%s in %s on a CPU works, and is slower than fp32", model_id, precision)
    elif precision == "fp16" and capability is None:
        log.warning("%s in fp16 on a CPU works, and is slower than fp32 or bf16", model_id)
    elif precision == "bf16" and capability is not None and capability < (8, 0):
        log.warning(
            "%s in bf16 on a GPU of compute capability %s is emulated: fp16 is faster",
            model_id,
            _dotted(capability),
        )


def refuse_packing_twice(precision: str, model_id: str, stored_as: str | None) -> None:
    """Refuses int8 and int4 for a model that is quantized already; arguments as for `check_precision`.

    Raises:
        ValueError: If it is.
    """
    if precision in ("int8", "int4") and stored_as:
        raise ValueError(
            f"quantization: got {precision} for {model_id}, whose weights are stored as {stored_as}"
            " already; expected fp16, bf16 or fp32, in which it computes"
        )


def gpu_capability() -> tuple[int, int] | None:
    """Returns the lowest compute capability among the GPUs, or None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    return min(torch.cuda.get_device_capability(gpu) for gpu in range(torch.cuda.device_count()))


def device_options() -> dict[str, Any]:
    """Returns the keyword arguments that put a model on the GPUs where there are any.

    On one GPU the whole model goes there: left to itself, the library would put what does not fit into the
    computer's memory, a hundred times slower, without a word.
    """
    import torch

    if not torch.cuda.is_available():
        return {}
    return {"device_map": {"": 0} if torch.cuda.device_count() == 1 else "auto"}


def fastest_precision() -> str:
    """Returns "bf16" where the hardware computes in it (GPU, or a CPU with its instructions), else "fp32"."""
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
