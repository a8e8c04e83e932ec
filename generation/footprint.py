"""How much memory a model takes, from its configuration alone: weights, cache and activations.

Weights and cache are exact. Activations are an upper estimate of what is alive at once while the prompt is
read, the moment that takes most.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generation.opening import naming_model, stored_as
from generation.precision import compute_dtype, refuse_packing_twice
from generation.text_model import PACKAGED, source_of

CONFIGS = Path(__file__).parent / "configs"
RELEASED_BLIP = "Salesforce/blip-itm-base-coco"

# bitsandbytes' nf4 with double quantization: one byte a block of 64 weights, one float32 a 256 blocks, and
# the tables of both and an offset, in float32.
NF4_BLOCK, NF4_BLOCKS_A_SCALE, NF4_TABLES = 64, 256, 4 * (16 + 256 + 1)


@dataclass(frozen=True)
class Footprint:
    """Memory of one model.

    Attributes:
        model_id: Which model.
        precision: In which precision.
        parameters: How many it has, tied ones counted once.
        weight_bytes: Of the loaded weights, quantized or not, and buffers.
        cache_bytes_per_token: Of keys and values, all layers.
        tokens: The longest sequence: prompt, pictures and answer.
        activation_bytes: Of one sequence while its prompt is read.
        workspace_bytes: Once, whatever the batch: the largest matrix unpacked, where packed.
    """

    model_id: str
    precision: str
    parameters: int
    weight_bytes: int
    cache_bytes_per_token: int
    tokens: int
    activation_bytes: int
    workspace_bytes: int

    @property
    def bytes_per_sequence(self) -> int:
        """What each sequence of a batch adds."""
        return self.tokens * self.cache_bytes_per_token + self.activation_bytes

    def working_bytes(self, batch: int) -> int:
        """What is needed beside the weights.

        Args:
            batch: Sequences at a time.
        """
        return self.workspace_bytes + batch * self.bytes_per_sequence


def footprint(
    model_id: str, precision: str, prompt_tokens: int, new_tokens: int, attention: str = "sdpa"
) -> Footprint:
    """Estimates a generating model's memory.

    Args:
        model_id: Hub id, folder, or a name of `generation.text_model.PACKAGED`.
        precision: One of `generation.precision.PRECISIONS`.
        prompt_tokens: Of the longest prompt, pictures not counted.
        new_tokens: Of the longest answer.
        attention: "eager" keeps all attention weights; the others do not.

    Raises:
        ValueError: If the model's configuration cannot be read, or it cannot have this precision.
    """
    if model_id in PACKAGED:  # known without a look into the file, which takes seconds
        refuse_packing_twice(precision, model_id, "gguf")
    config = configuration(model_id)
    stored = "gguf" if model_id in PACKAGED else stored_as(config)
    refuse_packing_twice(precision, model_id, stored)
    skeleton = skeleton_of(config, model_id)
    dtype_bytes = compute_dtype(precision).itemsize
    language = config.get_text_config()
    pictures = 0 if language is config else image_tokens(config)
    read = prompt_tokens + pictures
    sights = 0 if language is config else _vision_activations(config, dtype_bytes)
    if config.model_type == "blip":
        attention = "eager"
    return Footprint(
        model_id=model_id,
        precision=precision,
        parameters=sum(parameter.numel() for parameter in skeleton.parameters()),
        # Weights that came packed stay so, nearly always in 4 bits; GGUF's are unpacked.
        weight_bytes=weight_bytes(skeleton, "int4" if stored not in (None, "gguf") else precision),
        cache_bytes_per_token=cache_bytes_per_token(language, dtype_bytes),
        tokens=read + new_tokens,
        activation_bytes=max(sights, _reading_activations(language, read, precision, dtype_bytes, attention)),
        workspace_bytes=_workspace(skeleton, precision),
    )


def configuration(model_id: str) -> Any:
    """Reads a model's configuration: one of `CONFIGS`, a folder's, or the hub's.

    Weights without ``config.json``, as ChatIR's, are taken for BLIP base.

    Raises:
        ValueError: If there is none.
    """
    from transformers import AutoConfig

    stored = CONFIGS / f"{model_id.replace('/', '--')}.json"
    if stored.is_file():
        return AutoConfig.for_model(**json.loads(stored.read_text(encoding="utf-8")))
    path = Path(model_id)
    if path.is_file() or (path.is_dir() and not (path / "config.json").is_file()):
        return configuration(RELEASED_BLIP)
    source, options = source_of(model_id)
    with naming_model(model_id):
        return AutoConfig.from_pretrained(source, **options)


def skeleton_of(config: Any, model_id: str) -> Any:
    """Builds a generating model of the configuration's kind on the meta device: shapes, no weights.

    Raises:
        ValueError: If transformers knows no generating model of that kind.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    seeing = config.model_type == "blip" or config.get_text_config() is not config
    with naming_model(model_id), torch.device("meta"):
        return (AutoModelForImageTextToText if seeing else AutoModelForCausalLM).from_config(config)


def weight_bytes(skeleton: Any, precision: str) -> int:
    """Counts the bytes of a model's parameters and buffers once it is loaded in a precision.

    Args:
        skeleton: From `skeleton_of`.
        precision: int8 and int4 pack the weights that bitsandbytes packs: of linear layers, less the output
            layer and what is tied to the embeddings.
    """
    plain = compute_dtype(precision).itemsize
    packed = {id(layer.weight): layer for layer in packed_layers(skeleton)} if _packs(precision) else {}
    total = sum(buffer.numel() * buffer.element_size() for buffer in skeleton.buffers())
    for parameter in skeleton.parameters():
        if id(parameter) not in packed:
            total += parameter.numel() * plain
        elif precision == "int8":
            total += parameter.numel() + 4 * packed[id(parameter)].out_features  # a float32 scale a row
        else:
            blocks = -(-parameter.numel() // NF4_BLOCK)
            scales = -(-blocks // NF4_BLOCKS_A_SCALE)
            total += -(-parameter.numel() // 2) + blocks + 4 * scales + NF4_TABLES
    return total


def packed_layers(skeleton: Any) -> list[Any]:
    """Returns the linear layers that bitsandbytes replaces, by the rule that transformers goes by."""
    import torch
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = [*get_keys_to_not_convert(skeleton), *(skeleton._keep_in_fp32_modules or ())]
    return [
        module
        for name, module in skeleton.named_modules()
        if type(module) is torch.nn.Linear and should_convert_module(name, kept)
    ]


def cache_bytes_per_token(language: Any, dtype_bytes: int) -> int:
    """Counts the bytes of a token's keys and values: 2 x layers x heads x width of a head.

    Args:
        language: Configuration of the language model.
        dtype_bytes: Of a number.
    """
    heads = getattr(language, "num_key_value_heads", None) or language.num_attention_heads
    width = getattr(language, "head_dim", None) or language.hidden_size // language.num_attention_heads
    return 2 * language.num_hidden_layers * heads * width * dtype_bytes


def image_tokens(config: Any) -> int:
    """Returns how many tokens the largest picture takes in the prompt.

    LLaVA-NeXT: the picture as a whole and its tiles, a token more a row (Liu et al. 2024). Idefics3 and
    SmolVLM: 4 x 4 tiles at most and the whole, joined into fewer tokens, each framed by markers. Qwen-VL
    keeps a picture's size: one million pixels are assumed. Others: one token a patch.
    """
    vision = config.vision_config
    kind = config.model_type
    patch = vision.patch_size
    if kind == "llava_next":
        side = vision.image_size // patch
        grids = [(height // patch, width // patch) for height, width in config.image_grid_pinpoints]
        return side * side + max(rows * (columns + 1) for rows, columns in grids)
    if kind in ("idefics3", "smolvlm"):
        tokens = (vision.image_size // patch // config.scale_factor) ** 2
        return 17 * (tokens + 4)
    if kind.startswith("qwen"):
        return 1_000_000 // (patch * vision.spatial_merge_size) ** 2
    if kind == "blip":
        return 0  # its decoder reads the picture through cross-attention
    return (vision.image_size // patch) ** 2 + 1


def _tiles(config: Any) -> int:
    vision = config.vision_config
    if config.model_type == "llava_next":
        areas = [height * width for height, width in config.image_grid_pinpoints]
        return 1 + max(areas) // vision.image_size**2
    return 17 if config.model_type in ("idefics3", "smolvlm") else 1


def _vision_activations(config: Any, dtype_bytes: int) -> int:
    """Of one picture in the vision tower: states between layers, and the widest layer's."""
    vision = config.vision_config
    width = getattr(vision, "hidden_size", None) or vision.embed_dim
    inner = getattr(vision, "intermediate_size", None) or 4 * width
    size = getattr(vision, "image_size", None) or 1000  # Qwen-VL's have none
    tokens = _tiles(config) * ((size // vision.patch_size) ** 2 + 1)
    layers = getattr(vision, "num_hidden_layers", 0)
    kept = layers if hasattr(config, "vision_feature_layer") else 1  # LLaVA takes one of all layers' states
    return tokens * (kept * width + 2 * width + 2 * inner) * dtype_bytes


def _reading_activations(language: Any, tokens: int, precision: str, dtype_bytes: int, attention: str) -> int:
    """Of one prompt in the language model: states, the MLP's inner ones, masks, logits."""
    inner = language.intermediate_size
    a_token = (4 * language.hidden_size + 3 * inner) * dtype_bytes
    if precision == "int8":
        a_token += 4 * inner + language.hidden_size  # sums in int32 and the rounded input
    a_pair = dtype_bytes if attention != "eager" else language.num_attention_heads * (dtype_bytes + 4)
    return tokens * a_token + tokens * tokens * a_pair + language.vocab_size * (dtype_bytes + 4)


def _workspace(skeleton: Any, precision: str) -> int:
    """The largest packed matrix, unpacked: what int4 multiplies long prompts with."""
    if precision != "int4":
        return 0
    largest = max((layer.weight.numel() for layer in packed_layers(skeleton)), default=0)
    return largest * compute_dtype(precision).itemsize


def _packs(precision: str) -> bool:
    return precision in ("int8", "int4")
