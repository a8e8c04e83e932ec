"""Weights files: found, read as plain tensors, fingerprinted.

A pickle is only ever read with ``weights_only=True``; a file that needs more is refused.
"""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from files import file_sha256

logger = logging.getLogger(__name__)

PREFERRED = ("model.safetensors", "pytorch_model.bin")
# Published without a package: who lacks one of these reads where it is to be had and where it goes.
SOURCES = {
    "chatir_weights.ckpt": "https://drive.google.com/file/d/16HXxAnZzRzTFo9Ay-5nftkRdJCHmUMJA/view",
}
SUFFIXES = (".safetensors", ".pth", ".ckpt", ".pt", ".bin")
NESTS = ("model", "state_dict")


class UnreadableFileError(ValueError):
    """A file is there, but no checkpoint can be read from it."""


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
