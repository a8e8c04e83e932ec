"""Checkpoints of BLIP, opened: Salesforce files, Hugging Face files, and folders of our own.

`load_towers` gives what searches. `load_retrieval` gives the same model as transformers has it, for training,
and `load_captioner` the captioner; only these two import transformers.

A folder of our own holds ``config.json`` (a transformers ``BlipConfig``; ``"prompt"`` may be added),
``model.safetensors`` (Hugging Face names; the retrieval model and the captioner share one ``vision_model``)
and ``vocab.txt``. Every tensor a model needs must be there in its shape; every tensor it does not need must
be of a known kind. Nothing is filled in or left out silently.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.nn.functional import interpolate

from BLIP import names, sizes
from BLIP.tokenizer import Tokenizer
from BLIP.towers import TEXT_EPSILON, VISION_EPSILON, Towers, VisionTower
from BLIP.weight_files import find_weights, fingerprint, read_tensors

if TYPE_CHECKING:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

__all__ = ["fingerprint", "load_captioner", "load_retrieval", "load_towers", "read_checkpoint"]

logger = logging.getLogger(__name__)

VISION = "vision_model."
POSITIONS = VISION + "embeddings.position_embedding"
LABEL_SMOOTHING = 0.1  # of the caption loss; transformers reads it from the text configuration only
SHOWN = 3

# transformers ties each pair; a file may hold either or both, and the first of a pair wins.
TIED = (
    ("text_decoder.cls.predictions.decoder.weight", "text_decoder.bert.embeddings.word_embeddings.weight"),
    ("text_decoder.cls.predictions.decoder.bias", "text_decoder.cls.predictions.bias"),
)


@dataclass(frozen=True)
class Checkpoint:
    """A weights file, read.

    Attributes:
        file: The weights file.
        naming: `names.SALESFORCE` or `names.HUGGING_FACE`.
        tensors: By Hugging Face name, less the known surplus.
        surplus: How many tensors were left out, by kind.
    """

    file: Path
    naming: str
    tensors: dict[str, torch.Tensor]
    surplus: Mapping[str, int]

    def own_name(self, name: str) -> str:
        """Returns the name that the file itself uses for a Hugging Face name."""
        return names.to_salesforce(name) if self.naming == names.SALESFORCE else name


@dataclass(frozen=True)
class _Kind:
    name: str
    opener: str
    text_prefix: str
    parts: frozenset[str]


@dataclass(frozen=True)
class _Plan:
    """Of the model to fill: sizes, what its JSON states, vision and text heads, image size, special ids."""

    found: sizes.Sizes
    settings: sizes.Settings
    heads: tuple[int, int]
    image_size: int
    tokenizer: Tokenizer | None


_Model = TypeVar("_Model", bound=nn.Module)

_PARTS_OF_RETRIEVAL = frozenset({"vision_model", "text_encoder", "vision_proj", "text_proj", "itm_head"})
_RETRIEVAL = _Kind("retrieval model", "BlipEncoder", "text_encoder.", _PARTS_OF_RETRIEVAL)
_PARTS_OF_CAPTIONER = frozenset({"vision_model", "text_decoder"})
_CAPTIONER = _Kind("captioner", "BlipCaptioner", "text_decoder.bert.", _PARTS_OF_CAPTIONER)


def load_towers(
    path: Path | str,
    *,
    image_size: int | None = None,
    config: Mapping[str, Any] | Path | str | None = None,
    tokenizer: Tokenizer | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Towers:
    """Loads a retrieval model to search with: both towers, projections to the joint space, the matching head.

    Args:
        path: A weights file, or a folder that holds one.
        image_size: Side of the images in pixels; the image positions are interpolated to it (bicubic, corners
            not aligned). None: the size the file was trained for.
        config: As for `sizes.read_settings`; needed where the head counts are in no JSON beside the weights
            and the model has none of the released widths.
        tokenizer: When given, its special ids go into the configuration and its size is checked.
        device: Where the model goes.
        dtype: What its weights become.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: If there is no weights file.
        ValueError: If the file cannot be read, is of another model, or misses, misshapes or adds a tensor.

    Source: the names and settings of salesforce/BLIP (Li et al. 2022, arXiv 2201.12086) and ChatIR.
    """
    return _load(path, _RETRIEVAL, _make_towers, image_size, config, tokenizer, device, dtype)


def load_retrieval(
    path: Path | str,
    *,
    image_size: int | None = None,
    config: Mapping[str, Any] | Path | str | None = None,
    tokenizer: Tokenizer | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> BlipForImageTextRetrieval:
    """Loads the same model as transformers has it, to train it; arguments and errors are `load_towers`'s."""
    from transformers import BlipForImageTextRetrieval

    def make(plan: _Plan) -> BlipForImageTextRetrieval:
        return BlipForImageTextRetrieval(_configuration(plan))

    return _complete(_load(path, _RETRIEVAL, make, image_size, config, tokenizer, device, dtype))


def load_captioner(
    path: Path | str,
    *,
    image_size: int | None = None,
    config: Mapping[str, Any] | Path | str | None = None,
    tokenizer: Tokenizer | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> BlipForConditionalGeneration:
    """Loads a captioner as transformers has it; arguments and errors are those of `load_towers`."""
    from transformers import BlipForConditionalGeneration

    def make(plan: _Plan) -> BlipForConditionalGeneration:
        return BlipForConditionalGeneration(_configuration(plan))

    return _complete(_load(path, _CAPTIONER, make, image_size, config, tokenizer, device, dtype))


def share_towers(model: BlipForImageTextRetrieval) -> Towers:
    """Returns the towers of a model in training; the weights are its own, not copies."""
    state = model.state_dict(keep_vars=True)
    config: Any = model.config  # transformers types its configurations too loosely to read
    vision, text = config.vision_config, config.text_config
    _check_epsilon(vision)
    heads = (vision.num_attention_heads, text.num_attention_heads)
    with torch.device("meta"):
        towers = Towers(_sizes_of(state, _RETRIEVAL), heads, vision.image_size, text.layer_norm_eps)
    towers.load_state_dict(state, strict=True, assign=True)
    return towers.eval()


def share_vision(model: BlipForConditionalGeneration) -> VisionTower:
    """Returns the vision tower of a captioner; the weights are its own, not copies."""
    state = model.state_dict(keep_vars=True)
    vision: Any = model.config.vision_config
    _check_epsilon(vision)
    with torch.device("meta"):
        tower = VisionTower(_sizes_of(state, _CAPTIONER), vision.num_attention_heads, vision.image_size)
    own = {name.removeprefix(VISION): value for name, value in state.items() if name.startswith(VISION)}
    tower.load_state_dict(own, strict=True, assign=True)
    return tower.eval()


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Reads a checkpoint and translates its names.

    Args:
        path: A weights file, or a folder that holds one.

    Raises:
        FileNotFoundError: If there is no weights file.
        ValueError: If it cannot be read, or its names are not BLIP's.
    """
    file = find_weights(path)
    tensors = read_tensors(file)
    naming = names.naming_of(tensors)
    if naming is None:
        raise ValueError(
            f"{file} is no BLIP checkpoint: expected tensors named visual_encoder.* (Salesforce) or"
            f" vision_model.* (Hugging Face), got {len(tensors)} such as {_first(sorted(tensors))}"
        )
    surplus: Counter[str] = Counter()
    kept = {}
    for name, tensor in tensors.items():
        kind = names.surplus_kind(name)
        if kind:
            surplus[kind] += 1
        else:
            kept[names.to_hugging_face(name) if naming == names.SALESFORCE else name] = tensor
    return Checkpoint(file, naming, kept, surplus)


def _load(
    path: Path | str,
    kind: _Kind,
    make: Callable[[_Plan], _Model],
    image_size: int | None,
    config: Mapping[str, Any] | Path | str | None,
    tokenizer: Tokenizer | None,
    device: torch.device | str,
    dtype: torch.dtype,
) -> _Model:
    checkpoint = read_checkpoint(path)
    tensors, surplus = _wanted(checkpoint, kind)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _check_anchors(checkpoint, kind, shapes)
    try:
        found = sizes.read_sizes(shapes, kind.text_prefix)
    except ValueError as error:
        raise ValueError(f"{checkpoint.file}: {error}") from error
    settings = sizes.read_settings(config, checkpoint.file)
    if tokenizer is not None and len(tokenizer) != found.vocabulary:
        raise ValueError(
            f"{checkpoint.file} embeds {found.vocabulary} tokens, its vocabulary gives {len(tokenizer)}"
            " ([DEC] and [ENC] counted): put the vocab.txt that the model was trained with beside the weights"
        )
    size = found.grid * found.patch if image_size is None else image_size
    tensors[POSITIONS] = _at_size(tensors[POSITIONS], size, found)
    heads = sizes.head_counts(found, settings, checkpoint.file)
    plan = _Plan(found, settings, heads, size, tokenizer)
    with torch.device("meta"):  # shapes only: random weights would be drawn just to be overwritten
        model = make(plan)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _check(checkpoint, kind, tensors, expected)
    if surplus:
        counts = ", ".join(f"{count} {what}" for what, count in sorted(surplus.items()))
        logger.info("%s: left out %s", checkpoint.file, counts)
    copied = {name: tensor.to(device, dtype, copy=True).contiguous() for name, tensor in tensors.items()}
    model.load_state_dict(copied, strict=True, assign=True)
    return model.eval()


def _make_towers(plan: _Plan) -> Towers:
    activation = plan.settings.text.get("hidden_act", "gelu")
    if activation != "gelu":
        raise ValueError(
            f"hidden_act: got {activation!r}, expected 'gelu', which every BLIP was trained with"
        )
    epsilon = plan.settings.text.get("layer_norm_eps", TEXT_EPSILON)
    return Towers(plan.found, plan.heads, plan.image_size, epsilon)


def _complete(model: Any) -> Any:
    """Does for a transformers model what its file does not hold: ties weights, numbers positions."""
    model.tie_weights()
    for name, buffer in list(model.named_buffers()):
        if name.endswith("embeddings.position_ids"):  # computed, not saved: the meta device left them out
            holder = model.get_submodule(name.rpartition(".")[0])
            holder.position_ids = torch.arange(buffer.shape[-1], device=model.device).expand(1, -1)
    return model


def _check_epsilon(vision: Any) -> None:
    if vision.layer_norm_eps != VISION_EPSILON:
        raise ValueError(
            f"vision layer_norm_eps: got {vision.layer_norm_eps}, expected {VISION_EPSILON}, which every BLIP"
            " was trained with; open the model with BLIP.checkpoints"
        )


def _sizes_of(state: Mapping[str, torch.Tensor], kind: _Kind) -> sizes.Sizes:
    return sizes.read_sizes({name: tuple(tensor.shape) for name, tensor in state.items()}, kind.text_prefix)


def _wanted(checkpoint: Checkpoint, kind: _Kind) -> tuple[dict[str, torch.Tensor], Counter[str]]:
    """Sets the other model's parts aside, and fills in tied tensors that the file holds once."""
    others = (_PARTS_OF_RETRIEVAL | _PARTS_OF_CAPTIONER) - kind.parts
    surplus = Counter(checkpoint.surplus)
    wanted = {}
    for name, tensor in checkpoint.tensors.items():
        if name.split(".")[0] in others:
            surplus["of another head"] += 1
        else:
            wanted[name] = tensor
    for first, second in TIED if kind is _CAPTIONER else ():
        if first in wanted or second in wanted:
            wanted[first] = wanted[second] = wanted.get(first, wanted.get(second))
    return wanted, surplus


def _at_size(positions: torch.Tensor, size: int, found: sizes.Sizes) -> torch.Tensor:
    """Interpolates image positions (1, 1 + grid², width) to another image size; the class position stays."""
    grid = size // found.patch
    if grid < 1:
        raise ValueError(f"image size {size} is below one patch of {found.patch} pixels: give a larger size")
    if size % found.patch:
        logger.warning(
            "image size %d is no multiple of the patch %d: border pixels go unseen", size, found.patch
        )
    if grid == found.grid:
        return positions
    squares = positions[:, 1:].float().reshape(1, found.grid, found.grid, -1).permute(0, 3, 1, 2)
    squares = interpolate(squares, size=(grid, grid), mode="bicubic", align_corners=False)
    squares = squares.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([positions[:, :1].float(), squares], dim=1)


def _configuration(plan: _Plan) -> BlipConfig:
    """Builds the transformers configuration, stating all that its defaults have wrong for BLIP."""
    from transformers import BlipConfig

    found, settings, heads, tokenizer = plan.found, plan.settings, plan.heads, plan.tokenizer
    stated = ("hidden_act", "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob")
    text = {key: settings.text[key] for key in stated if key in settings.text}
    ids = {"bos_token_id": found.vocabulary - 2}
    if tokenizer is not None:
        ids = {
            "bos_token_id": tokenizer.dec_id,
            "pad_token_id": tokenizer.pad_id,
            "sep_token_id": tokenizer.sep_id,
            "eos_token_id": tokenizer.sep_id,
        }
    text |= ids | {
        "vocab_size": found.vocabulary,
        "hidden_size": found.text_width,
        "encoder_hidden_size": found.vision_width,
        "num_hidden_layers": found.text_layers,
        "num_attention_heads": heads[1],
        "intermediate_size": found.text_mlp,
        "max_position_embeddings": found.positions,
        "is_decoder": True,  # builds the cross-attention; text mode stays bidirectional all the same
        "label_smoothing": LABEL_SMOOTHING,
    }
    vision = {
        "hidden_size": found.vision_width,
        "num_hidden_layers": found.vision_layers,
        "num_attention_heads": heads[0],
        "intermediate_size": found.vision_mlp,
        "patch_size": found.patch,
        "image_size": plan.image_size,
        "hidden_act": "gelu",
        "layer_norm_eps": VISION_EPSILON,
        "initializer_range": 0.02,
    }
    config = BlipConfig(text_config=text, vision_config=vision)
    if found.projection is not None:
        config.image_text_hidden_size = found.projection
    return config


def _check_anchors(checkpoint: Checkpoint, kind: _Kind, shapes: Mapping[str, tuple[int, ...]]) -> None:
    axes = sizes.anchors(kind.text_prefix)
    missing = [name for name in axes if name not in shapes]
    reshaped = {
        name: (shapes[name], f"{count} axes")
        for name, count in axes.items()
        if name in shapes and (len(shapes[name]) != count or 0 in shapes[name])
    }
    if missing or reshaped:
        raise ValueError(_problem(checkpoint, kind, missing, reshaped, []))


def _check(
    checkpoint: Checkpoint,
    kind: _Kind,
    tensors: Mapping[str, torch.Tensor],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    reshaped = {}
    for name in expected.keys() & tensors.keys():
        if tuple(tensors[name].shape) != expected[name]:
            reshaped[name] = (tuple(tensors[name].shape), expected[name])
        elif not tensors[name].is_floating_point():
            reshaped[name] = (tensors[name].dtype, "floating point")
    if missing or reshaped or unknown:
        raise ValueError(_problem(checkpoint, kind, missing, reshaped, unknown))


def _problem(
    checkpoint: Checkpoint,
    kind: _Kind,
    missing: list[str],
    reshaped: Mapping[str, tuple[object, object]],
    unknown: list[str],
) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors missing: {_first([checkpoint.own_name(n) for n in missing])}")
    if reshaped:
        described = [
            f"{checkpoint.own_name(name)} (got {got}, expected {wanted})"
            for name, (got, wanted) in sorted(reshaped.items())
        ]
        parts.append(f"{len(reshaped)} mis-shaped: {_first(described)}")
    if unknown:
        parts.append(f"{len(unknown)} unknown: {_first([checkpoint.own_name(n) for n in unknown])}")
    looks = names.describe(checkpoint.tensors)
    if looks == "captioner" and kind is _RETRIEVAL:
        advice = f"open it with {_CAPTIONER.opener}, or give a retrieval checkpoint"
    elif looks == "retrieval model" and kind is _CAPTIONER:
        advice = f"open it with {_RETRIEVAL.opener}, or give a captioner's checkpoint"
    else:
        advice = f"give the complete checkpoint of a {kind.name}"
    found = "does not fit" if looks == kind.name else f"looks like a {looks}, needed a {kind.name}"
    return f"{checkpoint.file} ({checkpoint.naming} names) {found}: {'; '.join(parts)}. To go on, {advice}"


def _first(items: list[str]) -> str:
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {more} more" if more > 0 else "")
