"""Weights files: found or fetched, read as plain tensors, renamed, fingerprinted.

A pickle is only ever read with ``weights_only=True``; a file that needs more is refused.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from files import file_sha256
from settings import reach_hub

PREFERRED = ("model.safetensors", "pytorch_model.bin")
# Not in any package: whoever lacks one of these is told where to get it and where to put it.
SOURCES = {
    "chatir_weights.ckpt": "https://drive.google.com/file/d/16HXxAnZzRzTFo9Ay-5nftkRdJCHmUMJA/view",
}
SUFFIXES = (".safetensors", ".pth", ".ckpt", ".pt", ".bin")

# Salesforce's and Hugging Face's: only the vision names differ, the others are the same in both.
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
_SURPLUS = {"image_queue", "text_queue", "idx_queue", "ptr_queue", "queue_ptr", "temp"}


@dataclass(frozen=True)
class Checkpoint:
    """A weights file, read: its tensors by Hugging Face name, without the known surplus.

    `salesforce`: whether the names in the file are Salesforce's; else they are Hugging Face's.
    """

    file: Path
    salesforce: bool
    tensors: dict[str, torch.Tensor]

    def own_name(self, name: str) -> str:
        """Returns the name that the file itself uses for a Hugging Face name."""
        return _translated(name, new=0) if self.salesforce else name


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Reads a checkpoint, a file or a folder that holds one, and translates its names.

    The naming is told from the names alone, since files of either naming come nested and flat.
    FileNotFoundError if there is no weights file; ValueError if it cannot be read, or its names are not
    BLIP's.
    """
    file = find_weights(path)
    tensors = read_tensors(file)
    salesforce = any(name.startswith("visual_encoder.") for name in tensors)
    if salesforce == any(name.startswith("vision_model.") for name in tensors):
        raise ValueError(
            f"{file} is no BLIP checkpoint: expected tensors named visual_encoder.* (Salesforce) or"
            f" vision_model.* (Hugging Face), got {len(tensors)} such as {first_few(sorted(tensors))}"
        )
    kept = {to_hugging_face(name): tensor for name, tensor in tensors.items() if not is_surplus(name)}
    return Checkpoint(file, salesforce, kept)


def is_surplus(name: str) -> bool:
    """Returns whether a tensor is only a trainer's: queues, temperature, position ids, momentum twins.

    The twins (``_m``) are moving averages, not copies: they never stand in for what they follow.
    """
    first = name.split(".")[0]
    return first.endswith("_m") or first in _SURPLUS or name.endswith(".position_ids")


def to_hugging_face(name: str) -> str:
    """Translates a Salesforce name; names that are the same in both are returned unchanged."""
    return _translated(name, new=1)


def _translated(name: str, new: int) -> str:
    for pair in _PREFIXES:
        if name.startswith(pair[1 - new]):
            name = pair[new] + name.removeprefix(pair[1 - new])
            for inside in _INSIDE_LAYERS:
                name = name.replace(inside[1 - new], inside[new])
            return name
    return name


def find_weights(path: Path | str) -> Path:
    """Finds the weights file that a path names.

    In a folder it is ``model.safetensors``, else ``pytorch_model.bin``, else the only weights file.
    FileNotFoundError if there is none; ValueError if the folder holds several, or one in parts.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        source = SOURCES.get(path.name)
        get = f"download it from {source} and save it there, use --preset laptop, or " if source else ""
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

    `hub_id` is such as ``Salesforce/blip-itm-base-coco``. Returns the weights file, the others beside it.
    ValueError if there is no such model, it is not BLIP's, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    reach_hub()
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
    """Reads the named tensors of a safetensors or torch file, perhaps under ``model`` or ``state_dict``.

    They are on the CPU, by the names in the file less a ``module.`` that all begin with, and may be mapped
    from the file: copy what outlives the call. ValueError if the file is empty, truncated, no checkpoint, or
    a pickle of other objects.
    """
    with file.open("rb") as stream:
        head = stream.read(64)
    if not head:
        raise ValueError(f"{file} is empty: copy or download it again")
    if head[8:9] == b"{":
        try:
            content: Any = safetensors.torch.load_file(file)
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{file} is damaged or truncated ({error}): copy or download it again"
            ) from error
    elif head.startswith((b"PK", b"\x80")):
        content = _read_torch(file, mapped=head.startswith(b"PK"))
    else:
        raise ValueError(
            f"{file} is no checkpoint: it begins with {head[:24]!r}, expected a safetensors or torch file"
            " (a web page or a git-lfs pointer saved in its place looks like this): download it again"
        )
    for nest in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected tensors by name")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{file} holds no tensors, only: {', '.join(map(str, list(content)[:5]))}")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def content(path: Path | str) -> str:
    """Names the content of a checkpoint, weights and the configuration beside them: 16 hex digits."""
    weights = find_weights(path)
    stated = (weights.parent / "config.json", *sorted(weights.parent.glob("*med_config*.json")))
    hashes = [file_sha256(file) for file in (weights, *stated) if file.is_file()]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:16]


def first_few(items: list[str], shown: int = 3) -> str:
    """Joins the first few items and says how many more there are."""
    more = len(items) - shown
    return ", ".join(items[:shown]) + (f" and {more} more" if more > 0 else "")


def _read_torch(file: Path, mapped: bool) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:  # its text advises to switch the protection off
        raise ValueError(
            f"{file} is refused: it is damaged, or pickles objects other than tensors, and loading those can"
            " run code. Save its state_dict as .safetensors where you trust the file"
        ) from error
    except Exception as error:  # a damaged file fails anywhere inside torch, OSError included
        raise ValueError(
            f"{file} is damaged, truncated or no torch checkpoint ({type(error).__name__}): copy or download"
            " it again"
        ) from error
