"""Checkpoints of BLIP, opened: Salesforce files, Hugging Face files, and folders of our own.

`load_towers` returns the retrieval model, in plain torch, to search with or to train. `load_captioner`
returns the captioner, whose decoder is transformers'; only it imports transformers.

A folder of our own holds ``config.json`` (a transformers ``BlipConfig``; ``"prompt"`` may be added),
``model.safetensors`` (Hugging Face names; the retrieval model and the captioner share one ``vision_model``)
and ``vocab.txt``. Every tensor a model needs must be there in its shape; every tensor it does not need must
be of a known kind: nothing is filled in, and nothing else is left out.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.functional import interpolate

from BLIP.sizes import Sizes, anchors, read_sizes, read_stated
from BLIP.tokenizer import Tokenizer
from BLIP.towers import Captioner, Towers
from BLIP.weight_files import Checkpoint, first_few, read_checkpoint

logger = logging.getLogger(__name__)

POSITIONS = "vision_model.embeddings.position_embedding"

# transformers ties each pair; a file may hold either or both, and the first of a pair wins.
TIED = (
    ("text_decoder.cls.predictions.decoder.weight", "text_decoder.bert.embeddings.word_embeddings.weight"),
    ("text_decoder.cls.predictions.decoder.bias", "text_decoder.cls.predictions.bias"),
)


@dataclass(frozen=True)
class _Kind:
    name: str
    text_prefix: str
    parts: frozenset[str]  # but for the vision model, which all have


_RETRIEVAL = _Kind(
    "retrieval model", "text_encoder.", frozenset({"text_encoder", "vision_proj", "text_proj", "itm_head"})
)
_CAPTIONER = _Kind("captioner", "text_decoder.bert.", frozenset({"text_decoder"}))
_Model = TypeVar("_Model", bound=nn.Module)


def load_towers(
    path: Path | str, tokenizer: Tokenizer, image_size: int | None = None, device: torch.device | str = "cpu"
) -> Towers:
    """Loads a retrieval model, float32, in evaluation mode: both towers, projections, matching head.

    Args:
        path: A weights file, or a folder that holds one.
        tokenizer: Its size is checked.
        image_size: Side of the images in pixels, to which the image positions are interpolated; None: the
            size the file was trained for.
        device: Where the model goes.

    Raises FileNotFoundError if there is no weights file; ValueError if it cannot be read, is of another
    model, misses, misshapes or adds a tensor, or a head count is not known (see `BLIP.sizes.read_stated`).

    Source: the names and settings of salesforce/BLIP (Li et al. 2022, arXiv 2201.12086) and ChatIR.
    """
    return _load(path, _RETRIEVAL, Towers, image_size, tokenizer, device, torch.float32)


def load_captioner(
    path: Path | str,
    tokenizer: Tokenizer,
    image_size: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Captioner:
    """Loads a captioner, its weights as `dtype`; other arguments and errors are those of `load_towers`."""

    def make(sizes: Sizes) -> Captioner:
        return Captioner(sizes, make_decoder(sizes, tokenizer))

    model = _load(path, _CAPTIONER, make, image_size, tokenizer, device, dtype)
    model.text_decoder.tie_weights()
    # The numbers of the positions are computed, not saved, and the meta device left them out.
    positions = torch.arange(model.sizes.positions, device=device)
    model.text_decoder.bert.embeddings.position_ids = positions.expand(1, -1)
    return model


def make_decoder(sizes: Sizes, tokenizer: Tokenizer | None = None) -> Any:
    """Makes transformers' text decoder, with random weights."""
    from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

    return BlipTextLMHeadModel(sizes.configuration(tokenizer).text_config)  # pyright: ignore


def _load(
    path: Path | str,
    kind: _Kind,
    make: Callable[[Sizes], _Model],
    image_size: int | None,
    tokenizer: Tokenizer,
    device: torch.device | str,
    dtype: torch.dtype,
) -> _Model:
    checkpoint = read_checkpoint(path)
    other = _CAPTIONER if kind is _RETRIEVAL else _RETRIEVAL
    there = {name.split(".")[0] for name in checkpoint.tensors}
    if other.parts <= there and not kind.parts & there:
        raise ValueError(
            f"{checkpoint.file} looks like a {other.name}, and a {kind.name} is needed: give the checkpoint"
            " of one"
        )
    tensors = {name: one for name, one in checkpoint.tensors.items() if name.split(".")[0] not in other.parts}
    for first, second in TIED if kind is _CAPTIONER else ():
        if first in tensors or second in tensors:
            tensors[first] = tensors[second] = tensors[first if first in tensors else second]
    _check(checkpoint, kind, tensors, anchors(kind.text_prefix), unknown=[])
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    sizes = read_sizes(shapes, kind.text_prefix, read_stated(checkpoint.file), checkpoint.file)
    if len(tokenizer) != sizes.vocabulary:
        raise ValueError(
            f"{checkpoint.file} embeds {sizes.vocabulary} tokens, its vocabulary gives {len(tokenizer)}"
            " ([DEC] and [ENC] counted): put the vocab.txt that the model was trained with beside the weights"
        )
    if image_size is not None:
        tensors[POSITIONS] = _at_size(tensors[POSITIONS], image_size, sizes)
        sizes = dataclasses.replace(sizes, image_size=image_size)
    with torch.device("meta"):  # shapes only: random weights would be drawn just to be overwritten
        model = make(sizes)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _check(checkpoint, kind, tensors, expected, [name for name in tensors if name not in expected])
    # Copies, because the tensors may be mapped from the file, which may change.
    copied = {name: tensor.to(device, dtype, copy=True).contiguous() for name, tensor in tensors.items()}
    model.load_state_dict(copied, strict=True, assign=True)
    return model.eval()


def _at_size(positions: torch.Tensor, size: int, sizes: Sizes) -> torch.Tensor:
    """Interpolates image positions (1, 1 + grid², width) to another image size; the class position stays."""
    grid = size // sizes.patch
    if grid < 1:
        raise ValueError(f"image size {size} is below one patch of {sizes.patch} pixels: give a larger size")
    if size % sizes.patch:
        logger.warning(
            "image size %d is no multiple of the patch %d: border pixels go unseen", size, sizes.patch
        )
    if grid == sizes.grid:
        return positions
    squares = positions[:, 1:].float().reshape(1, sizes.grid, sizes.grid, -1).permute(0, 3, 1, 2)
    # As the reference does: no antialiasing, even where the new grid is smaller.
    squares = interpolate(squares, size=(grid, grid), mode="bicubic", align_corners=False)
    squares = squares.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([positions[:, :1].float(), squares], dim=1)


def _check(
    checkpoint: Checkpoint,
    kind: _Kind,
    tensors: Mapping[str, torch.Tensor],
    expected: Mapping[str, tuple[int, ...] | int],
    unknown: list[str],
) -> None:
    """Refuses tensors that are missing or not as expected: a shape, or only a number of axes."""
    missing = [name for name in expected if name not in tensors]
    reshaped: dict[str, tuple[object, object]] = {}
    for name in expected.keys() & tensors.keys():
        shape, wanted = tuple(tensors[name].shape), expected[name]
        if isinstance(wanted, int):
            if len(shape) != wanted or 0 in shape:
                reshaped[name] = (shape, f"{wanted} axes")
        elif shape != wanted:
            reshaped[name] = (shape, wanted)
        elif not tensors[name].is_floating_point():
            reshaped[name] = (tensors[name].dtype, "floating point")
    if not (missing or reshaped or unknown):
        return
    own_name = checkpoint.own_name
    described = [
        f"{own_name(name)} (got {got}, expected {wanted})" for name, (got, wanted) in sorted(reshaped.items())
    ]
    parts = [
        f"{len(items)} {what}: {first_few(items)}"
        for items, what in (
            ([own_name(name) for name in missing], "tensors missing"),
            (described, "mis-shaped"),
            ([own_name(name) for name in unknown], "unknown"),
        )
        if items
    ]
    raise ValueError(
        f"{checkpoint.file} is no whole {kind.name}: {'; '.join(parts)}. Give a complete checkpoint"
    )
