"""Weights files: found or fetched, read as plain tensors, renamed, fingerprinted.

A pickle is only ever read with ``weights_only=True``; a file that needs more is refused.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from files import file_sha256

logger = logging.getLogger(__name__)

PREFERRED = ("model.safetensors", "pytorch_model.bin")
# Not in any package: whoever lacks one of these is told where to get it and where to put it.
SOURCES = {
    "chatir_weights.ckpt": "https://drive.google.com/file/d/16HXxAnZzRzTFo9Ay-5nftkRdJCHmUMJA/view",
}
SUFFIXES = (".safetensors", ".pth", ".ckpt", ".pt", ".bin")
NESTS = ("model", "state_dict")
SALESFORCE = "Salesforce"
HUGGING_FACE = "Hugging Face"

# Only the vision names differ; the text, projection and matching names are the same in both.
_PREFIXES = (
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual_encoder.norm.", "vision_model.post_layernorm."),
    ("visual_encoder.blocks.", "vision_model.encoder.layers."),
)
_INSIDE_LAYERS = (
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)
_QUEUES = {"image_queue", "text_queue", "idx_queue", "ptr_queue", "queue_ptr"}


class UnreadableFileError(ValueError):
    """A file is there, but no checkpoint can be read from it."""


@dataclass(frozen=True)
class Checkpoint:
    """A weights file, read.

    Attributes:
        file: The weights file.
        naming: `SALESFORCE` or `HUGGING_FACE`: the names in the file.
        tensors: By Hugging Face name, without the known surplus.
        surplus: How many tensors were left out, by kind.
    """

    file: Path
    naming: str
    tensors: dict[str, torch.Tensor]
    surplus: Mapping[str, int]

    def own_name(self, name: str) -> str:
        """Returns the name that the file itself uses for a Hugging Face name."""
        return to_salesforce(name) if self.naming == SALESFORCE else name


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Reads a checkpoint and translates its names.

    The naming is told from the names alone, since files of either naming come nested and flat.

    Args:
        path: A weights file, or a folder that holds one.

    Raises:
        FileNotFoundError: If there is no weights file.
        ValueError: If it cannot be read, or its names are not BLIP's.
    """
    file = find_weights(path)
    tensors = read_tensors(file)
    salesforce = any(name.startswith("visual_encoder.") for name in tensors)
    if salesforce == any(name.startswith("vision_model.") for name in tensors):
        raise ValueError(
            f"{file} is no BLIP checkpoint: expected tensors named visual_encoder.* (Salesforce) or"
            f" vision_model.* (Hugging Face), got {len(tensors)} such as {first_few(sorted(tensors))}"
        )
    surplus: Counter[str] = Counter()
    kept = {}
    for name, tensor in tensors.items():
        kind = surplus_kind(name)
        if kind:
            surplus[kind] += 1
        else:
            kept[to_hugging_face(name) if salesforce else name] = tensor
    return Checkpoint(file, SALESFORCE if salesforce else HUGGING_FACE, kept, surplus)


def surplus_kind(name: str) -> str | None:
    """Says what known surplus a name is, or None if the tensor may be needed.

    Momentum twins (first part ends in ``_m``) are moving averages, not copies: they never stand in for the
    tensors that they follow.
    """
    first = name.split(".")[0]
    if first.endswith("_m"):
        return "momentum twins"
    if first in _QUEUES:
        return "queues"
    if first == "temp":
        return "temperature"
    if name.endswith(".position_ids"):
        return "position ids"
    return None


def to_hugging_face(name: str) -> str:
    """Translates a Salesforce name; names that are the same in both are returned unchanged."""
    return _translated(name, _PREFIXES, _INSIDE_LAYERS)


def to_salesforce(name: str) -> str:
    """Translates a Hugging Face name; the inverse of `to_hugging_face`."""
    return _translated(name, [pair[::-1] for pair in _PREFIXES], [pair[::-1] for pair in _INSIDE_LAYERS])


def _translated(name: str, prefixes: Collection[tuple[str, ...]], inside: Collection[tuple[str, ...]]) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            name = new + name.removeprefix(old)
            for inner, translated in inside:
                name = name.replace(inner, translated)
            return name
    return name


def find_weights(path: Path | str) -> Path:
    """Finds the weights file that a path names.

    Args:
        path: A weights file, or a folder that holds one.

    Returns:
        The file. In a folder: ``model.safetensors``, else ``pytorch_model.bin``, else the only weights file.

    Raises:
        FileNotFoundError: If there is nothing at the path, or the folder holds no weights file.
        ValueError: If the folder holds several weights files, or one in parts.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        source = SOURCES.get(path.name)
        get = f"download it from {source} and save it there, or " if source else ""
        raise FileNotFoundError(
            f"no checkpoint at {path}: {get}give a weights file, or a folder that holds one"
        )
    for name in PREFERRED:
        if (path / name).is_file():
            return path / name
    if any(path.glob("*.index.json")):
        raise ValueError(f"{path} holds a checkpoint in parts (*.index.json): save it again as one file")
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no weights file in {path}: expected {PREFERRED[0]} or one *.pth or *.ckpt")
    if len(files) > 1:
        listed = ", ".join(file.name for file in files)
        raise ValueError(f"{path} holds several weights files ({listed}): give the path of one")
    return files[0]


def is_hub_id(name: str) -> bool:
    """Returns whether a name is written like ``owner/model`` and is not a weights file's."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not name.endswith(SUFFIXES)


def fetch_checkpoint(hub_id: str) -> Path:
    """Downloads weights, configuration and vocabulary from the Hugging Face hub, or finds them in its cache.

    Args:
        hub_id: Such as ``Salesforce/blip-itm-base-coco``.

    Returns:
        The weights file, its configuration and vocabulary beside it.

    Raises:
        ValueError: If there is no such model, it is not BLIP's, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        for file in ("config.json", "vocab.txt"):
            hf_hub_download(hub_id, file)
        for file in PREFERRED:
            try:
                return Path(hf_hub_download(hub_id, file))
            except LocalEntryNotFoundError:  # the hub was not reached: the file may be there all the same
                if file == PREFERRED[-1]:
                    raise
            except EntryNotFoundError:
                continue
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"{hub_id} is no path here and cannot be fetched from the hub; expected a BLIP checkpoint: a"
            f" file, a folder or a hub id such as Salesforce/blip-itm-base-coco: {said}"
        ) from error
    raise ValueError(f"{hub_id}: the hub has none of {' and '.join(PREFERRED)} of it: give another BLIP")


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Reads the named tensors of one file, whatever they are nested in.

    Args:
        file: safetensors, or a torch file: the tensors by name, perhaps under ``model`` or ``state_dict``.

    Returns:
        Tensors on the CPU by the names in the file, less a ``module.`` that all of them begin with. They may
        be mapped from the file: copy what outlives the call.

    Raises:
        UnreadableFileError: If the file is empty, truncated, no checkpoint, or a pickle of other objects.
    """
    with file.open("rb") as stream:
        head = stream.read(64)
    if not head:
        raise UnreadableFileError(f"{file} is empty: copy or download it again")
    if head[8:9] == b"{":
        content: Any = _read_safetensors(file)
    elif head.startswith((b"PK", b"\x80")):
        content = _read_torch(file, mapped=head.startswith(b"PK"))
    else:
        raise UnreadableFileError(
            f"{file} is no checkpoint: it begins with {head[:24]!r}, expected a safetensors or torch file"
            " (a web page or a git-lfs pointer saved in its place looks like this): download it again"
        )
    return _named_tensors(content, file)


def fingerprint(path: Path | str) -> str:
    """Names the content of a checkpoint: the first 16 hex digits of the SHA-256 of its weights file.

    Args:
        path: As for `find_weights`.

    Raises:
        FileNotFoundError: If there is no weights file.
        ValueError: If a folder holds several.
    """
    return file_sha256(find_weights(path))[:16]


def first_few(items: list[str], shown: int = 3) -> str:
    """Joins the first few items and says how many more there are."""
    more = len(items) - shown
    return ", ".join(items[:shown]) + (f" and {more} more" if more > 0 else "")


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(file)
    except safetensors.SafetensorError as error:
        raise UnreadableFileError(
            f"{file} is damaged or truncated ({error}): copy or download it again"
        ) from error


def _read_torch(file: Path, mapped: bool) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        # torch puts the refused class on one line among advice to switch the protection off.
        refused = [line for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line]
        detail = refused[0].split("WeightsUnpickler error:")[-1].strip() if refused else "not a torch file"
        raise UnreadableFileError(
            f"{file} is refused: it is damaged, or pickles objects other than tensors ({detail[:160]}), and"
            " loading those can run code. Save its state_dict as .safetensors where you trust the file"
        ) from error
    except Exception as error:  # a damaged file fails anywhere inside torch, OSError included
        first_line = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise UnreadableFileError(
            f"{file} is damaged, truncated or no torch checkpoint ({first_line}): copy or download it again"
        ) from error


def _named_tensors(content: Any, file: Path) -> dict[str, torch.Tensor]:
    for nest in NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
    if not isinstance(content, dict):
        raise UnreadableFileError(f"{file} holds a {type(content).__name__}, expected tensors by name")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UnreadableFileError(f"{file} holds no tensors, only: {', '.join(map(str, list(content)[:5]))}")
    if len(tensors) < len(content):
        others = [str(name) for name in content if name not in tensors]
        logger.info("%s: %d entries are no tensors and were ignored: %s", file, len(others), others[:5])
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors
