"""Opens models of the hub: precision checked, attention chosen, errors in one line; names their content."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, get_args

from files import read_json
from settings import Precision, reach_hub

log = logging.getLogger(__name__)

Quantization = str | bool
PRECISIONS = tuple(name for name in get_args(Precision) if name != "auto")

# Which a model may need, and transformers asks for in many lines.
_PACKAGES = ("torchvision", "num2words", "sentencepiece", "tiktoken", "protobuf", "gguf")

OUTLIERS = 6.0  # from which on LLM.int8() multiplies numbers in 16 bits
INT8_CAPABILITY = (7, 5)  # of the GPU: the first with the int8 matrix product that LLM.int8() uses
FLASH_CAPABILITY = (8, 0)  # of the GPU (Ampere); what flash-attention 2 is compiled for
MAX_FLASH_HEAD = 256  # the widest head that flash-attention 2 computes

# What a model's folder holds that changes what the model says: weights, configuration, vocabulary, template.
MODEL_SUFFIXES = (
    ".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".gguf", ".json", ".txt", ".jinja", ".model"
)  # fmt: skip


def precision_of(quantization: Quantization) -> str:
    """Returns one of `PRECISIONS`; True means int8 and False fp16, as in the first scripts.

    "auto" means 16 bits where the hardware computes in them, else fp32; "int8:0.5" is int8 with that
    threshold of outliers, and stays as it is. Other values are a ValueError.
    """
    if isinstance(quantization, bool):
        return "int8" if quantization else "fp16"
    if quantization == "auto":
        return _fastest_precision()
    name, _, threshold = str(quantization).partition(":")
    if name not in PRECISIONS or (threshold and name != "int8"):
        raise ValueError(
            f"quantization: got {quantization!r}, expected True, False, 'auto' or one of {PRECISIONS}"
        )
    return quantization


def _fastest_precision() -> str:
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def loading_options(quantization: Quantization) -> dict[str, Any]:
    """Returns the keyword arguments of ``from_pretrained`` for a precision.

    int8 is LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339); int4 is nf4 with double quantization
    (Dettmers et al. 2023, arXiv 2305.14314), computing in 16 bits. ValueError if the precision is not known,
    ModuleNotFoundError if it needs bitsandbytes and that is not installed.
    """
    precision = precision_of(quantization)
    import torch

    precision, _, threshold = precision.partition(":")
    plain = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    if precision in plain:
        return {"dtype": plain[precision]}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModuleNotFoundError(f"{precision} needs bitsandbytes; run: pip install -r requirements/gpu.txt")
    from transformers import BitsAndBytesConfig

    if precision == "int8":  # computes in float16 whatever it is given
        eight_bits = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=float(threshold or OUTLIERS))
        return {"dtype": torch.float16, "quantization_config": eight_bits}
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    compute = torch.bfloat16 if has_bf16 else torch.float16
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    return {"dtype": compute, "quantization_config": four_bits}


def check_precision(
    precision: str, model_id: str, stored_as: str | None, capability: tuple[int, int] | None
) -> None:
    """Refuses (ValueError) what cannot work, and warns of what works slowly.

    Args:
        precision: From `precision_of`.
        model_id: Of which model.
        stored_as: How its weights are quantized already, such as "gguf" or "awq"; None if they are not.
        capability: The GPU's compute capability; None on a CPU.
    """
    precision = precision.partition(":")[0]
    packed = precision in ("int8", "int4")
    if packed and stored_as:
        raise ValueError(
            f"quantization: got {precision} for {model_id}, whose weights are stored as {stored_as}"
            " already; expected fp16, bf16 or fp32, in which it computes"
        )
    if capability is None and (packed or precision == "fp16"):
        better = "fp32" if packed else "fp32 or bf16"
        log.warning("%s in %s on a CPU works, and is slower than %s", model_id, precision, better)
    elif capability is not None and precision == "int8" and capability < INT8_CAPABILITY:
        found = "{}.{}".format(*capability)
        raise ValueError(
            f"quantization: int8 needs a GPU of compute capability 7.5, got {found}; use int4 or fp16"
        )


def gpu_capability() -> tuple[int, int] | None:
    """Returns the lowest compute capability among the GPUs, or None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    return min(torch.cuda.get_device_capability(gpu) for gpu in range(torch.cuda.device_count()))


def fits_flash_attention(model: Any, dtype: Any, capability: tuple[int, int] | None) -> bool:
    """Returns whether flash-attention 2 is installed and supported by GPU, precision and all of a model.

    `model` is transformers', on the meta device or loaded, and computes in `dtype`; `capability` is the
    GPU's, None on a CPU.
    """
    import torch
    from transformers import PreTrainedModel, utils

    if capability is None or capability < FLASH_CAPABILITY or dtype not in (torch.float16, torch.bfloat16):
        return False
    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    return bool(utils.is_flash_attn_2_available()) and all(
        part._supports_flash_attn and _head_width(part.config) <= MAX_FLASH_HEAD for part in parts
    )


def _head_width(config: Any) -> int:
    heads = getattr(config, "num_attention_heads", None)
    return getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)


@contextmanager
def naming_model(model_id: str) -> Iterator[None]:
    """Turns what the hub's libraries say of a missing or foreign model into one line.

    Raises ValueError for OSError and ValueError, and ModuleNotFoundError if the block misses a package.
    """
    if not Path(model_id).exists():
        reach_hub()
    try:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # of a second or two; downloads have the hub's own
        yield
    except ImportError as error:
        said = " ".join(str(error).split())
        known = [package for package in _PACKAGES if package in said.lower()]
        advice = (
            f"the package {known[0]}; run: pip install {known[0]}" if known else f"what is missing: {said}"
        )
        raise ModuleNotFoundError(f"the model {model_id} needs {advice}") from error
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"the model {model_id} cannot be opened, expected a folder or a model of the hub: {said}"
        ) from error


def open_model(
    auto_class: Any, model_id: str, quantization: Quantization, *, source: str | None = None, **options: Any
) -> Any:
    """Opens a model in evaluation mode, ready to generate greedily.

    Its generation settings keep their token ids alone: sampling and penalties that come with a model would
    make its answers differ from plain greedy decoding.

    Args:
        auto_class: Of transformers, such as ``AutoModelForCausalLM``.
        model_id: What the user asked for.
        quantization: As for `precision_of`.
        source: Where it lies, if not at ``model_id``.
        options: For ``from_pretrained``; ``gguf_file`` among them names a file whose weights are unpacked.

    Raises ValueError if it cannot be opened, or not with this precision; ModuleNotFoundError if a package is
    missing; torch.OutOfMemoryError if it does not fit into the GPU's memory.
    """
    import torch
    from transformers import AutoConfig, GenerationConfig

    precision, wanted = precision_of(quantization), loading_options(quantization)
    with naming_model(model_id):
        config = AutoConfig.from_pretrained(source or model_id, **options)
    capability = gpu_capability()
    check_precision(precision, model_id, "gguf" if "gguf_file" in options else stored_as(config), capability)
    with naming_model(model_id):
        with torch.device("meta"):
            skeleton = auto_class.from_config(config)
        if fits_flash_attention(skeleton, wanted["dtype"], capability):  # else transformers chooses
            wanted["attn_implementation"] = "flash_attention_2"
        if "gguf_file" in options:
            from transformers import GgufConfig

            # Unpacked: a batch of prompts is faster through dense matrices than through 4-bit blocks.
            wanted["quantization_config"] = GgufConfig(dequantize=True)
        model = auto_class.from_pretrained(
            source or model_id,
            config=config,
            **options,
            **wanted,
            **_device_options(),
        )
    say_once(f"loaded {model_id} in {precision}; attention: {model.config._attn_implementation}")
    given = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=given.bos_token_id, eos_token_id=given.eos_token_id, pad_token_id=given.pad_token_id
    )
    return model.eval()


@cache
def say_once(line: str) -> None:
    """Logs a line once, however often a model is loaded again."""
    log.info("%s", line)


def model_type(model_id: str) -> str:
    """Returns the type that a model's configuration states, such as "llava_next".

    A file, and a folder whose configuration states none, are "blip". ValueError if there is no such model.
    """
    path = Path(model_id)
    if path.exists():
        config = path / "config.json"
        stated = read_json(config) if config.is_file() else {}
        return stated.get("model_type", "blip")
    from transformers import AutoConfig

    with naming_model(model_id):
        return AutoConfig.from_pretrained(model_id).model_type


def model_identity(model_id: str, hashes_of: Callable[[Iterable[Path]], Mapping[Path, str]]) -> str:
    """Names a model's content, wherever it lies: other weights under the same id make other captions.

    For a file or folder it is the first 16 hexadecimal digits of a SHA-256 over names and contents of its
    model files, with a file those of configuration and vocabulary beside it; `hashes_of` tells their SHA-256.
    For a model of the hub it is ``id@commit``, the commit being the newest, or without network the one that
    was downloaded. ValueError if there is no such model.
    """
    path = Path(model_id)
    if not path.exists():
        return f"{model_id}@{_commit(model_id)}"
    if path.is_file():
        beside = (path.parent / "config.json", path.parent / "vocab.txt")
        files = [path, *(file for file in beside if file.is_file())]
    else:
        files = sorted(file for file in path.iterdir() if file.suffix in MODEL_SUFFIXES)
    hashes = hashes_of(files)
    unread = [file for file in files if file not in hashes]
    if unread or not files:
        named = f"{unread[0]} cannot be read" if unread else "the folder holds no model files"
        raise ValueError(f"the model {model_id} cannot be opened: {named}")
    digest = hashlib.sha256()
    for file in files:  # a single file has one content under any name
        digest.update(f"{'' if file == path else file.name} {hashes[file]}\n".encode())
    return digest.hexdigest()[:16]


def _commit(model_id: str) -> str:
    from transformers.utils.hub import cached_file, extract_commit_hash

    with naming_model(model_id):
        config = cached_file(model_id, "config.json")
    commit = extract_commit_hash(config, None)
    if commit is None:
        raise ValueError(f"the model {model_id}: {config} lies in no snapshot of the hub")
    return commit


def stored_as(config: Any) -> str | None:
    """Returns how a model's weights are quantized already, such as "awq"; None where they are not."""
    stored = getattr(config, "quantization_config", None)
    if not stored:
        return None
    method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
    return str(getattr(method, "value", method))


def _device_options() -> dict[str, Any]:
    """Returns the keyword arguments that put a model on the GPUs where there are any.

    On one GPU the whole model goes there: left to itself, the library would put what does not fit into the
    computer's memory, a hundred times slower, without a word.
    """
    import torch

    if not torch.cuda.is_available():
        return {}
    return {"device_map": {"": 0} if torch.cuda.device_count() == 1 else "auto"}
