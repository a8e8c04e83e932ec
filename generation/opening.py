"""Opening a model of the hub: its precision checked, its attention chosen, its errors in one line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from generation.attention import choose_attention, flash_attention_installed
from generation.precision import (
    Quantization,
    check_precision,
    device_options,
    gpu_capability,
    loading_options,
    precision_of,
)

log = logging.getLogger(__name__)


@contextmanager
def naming_model(model_id: str) -> Iterator[None]:
    """Turns what the hub's libraries say of a missing, foreign or too large model into one line.

    Args:
        model_id: What the user asked for.

    Raises:
        ValueError: If the block raises OSError or ValueError, or runs out of memory.
        ModuleNotFoundError: If the block misses a package.
    """
    import torch

    try:
        yield
    except ImportError as error:
        package = _missing_package(str(error))
        raise ModuleNotFoundError(
            f"the model {model_id} needs the package {package}; run: pip install {package}"
            if package
            else f"the model {model_id} needs a package that is missing: {_one_line(error)}"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the model {model_id} cannot be opened, expected a folder or a model of the hub:"
            f" {_one_line(error)}"
        ) from error
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"the model {model_id} does not fit into the GPU's memory: use int4, or a smaller model; what"
            f" fits says: python -m generation.memory_plan ({_one_line(error)})"
        ) from error


def open_model(
    auto_class: Any,
    model_id: str,
    quantization: Quantization,
    *,
    source: str | None = None,
    own_attention: Callable[[Any], str | None] = lambda skeleton: None,
    **options: Any,
) -> Any:
    """Opens a model, ready to generate greedily.

    Args:
        auto_class: Of transformers, such as ``AutoModelForCausalLM``.
        model_id: What the user asked for.
        quantization: As for `precision_of`.
        source: Where it lies, if not at ``model_id``.
        own_attention: A skeleton of the model to an attention of ours that it shall have; to None for the
            fastest kernel.
        options: For ``from_pretrained``; ``gguf_file`` among them names a file whose weights are unpacked.

    Returns:
        The model in evaluation mode. Its generation settings keep their token ids alone: sampling and
        penalties that come with a model would make its answers differ from plain greedy decoding.

    Raises:
        ValueError: If it cannot be opened, does not fit, or not with this precision.
        ModuleNotFoundError: If a package is missing.
    """
    import torch
    from transformers import AutoConfig

    wanted = loading_options(quantization)
    with naming_model(model_id):
        config = AutoConfig.from_pretrained(source or model_id, **options)
    capability = gpu_capability()
    stored = "gguf" if "gguf_file" in options else stored_as(config)
    check_precision(quantization, model_id, stored, capability)
    with naming_model(model_id):
        with torch.device("meta"):
            skeleton = auto_class.from_config(config)
        attention, reason = own_attention(skeleton), "prompts share what they begin with"
        if attention is None:
            attention, reason = choose_attention(
                skeleton, wanted["dtype"], capability, flash_attention_installed()
            )
        say_once(f"loading {model_id} in {precision_of(quantization)}; attention: {attention} ({reason})")
        if "gguf_file" in options:
            from transformers import GgufConfig

            # Unpacked: a batch of prompts is faster through dense matrices than through 4-bit blocks.
            wanted["quantization_config"] = GgufConfig(dequantize=True)
        model = auto_class.from_pretrained(
            source or model_id,
            config=config,
            attn_implementation=attention,
            **options,
            **wanted,
            **device_options(),
        )
    _keep_token_ids_only(model)
    return model.eval()


@cache
def say_once(line: str) -> None:
    """Logs a line once, however often a model is loaded again.

    Args:
        line: What to say.
    """
    log.info("%s", line)


def stored_as(config: Any) -> str | None:
    """Returns how a model's weights are quantized already, such as "awq"; None where they are not.

    Args:
        config: The model's configuration.
    """
    stored = getattr(config, "quantization_config", None)
    if not stored:
        return None
    method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
    return str(getattr(method, "value", method))


def _keep_token_ids_only(model: Any) -> None:
    from transformers import GenerationConfig

    given = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=given.bos_token_id, eos_token_id=given.eos_token_id, pad_token_id=given.pad_token_id
    )


def _missing_package(said: str) -> str | None:
    """Returns the package that transformers' long error asks for, where it is one we know."""
    for package in ("torchvision", "num2words", "sentencepiece", "tiktoken", "protobuf", "gguf"):
        if package in said.lower():
            return package
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
