"""Names the weights behind a model id: other weights under the same id make other captions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from generation.opening import naming_model
from generation.servers import SERVED

# What a model's folder holds that changes what the model says: weights, configuration, vocabulary, template.
MODEL_SUFFIXES = (
    ".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".gguf", ".json", ".txt", ".jinja", ".model"
)  # fmt: skip


def model_identity(model_id: str, hashes_of: Callable[[Iterable[Path]], Mapping[Path, str]]) -> str:
    """Names a model's content, wherever it lies.

    Args:
        model_id: A file, a folder, a model of the hub, or one behind servers.
        hashes_of: SHA-256 of files, in hexadecimal, by path.

    Returns:
        For a file or folder the first 16 hexadecimal digits of a SHA-256 over names and contents of its model
        files; for a model of the hub ``id@commit``, the commit being the newest, or without network the one
        that was downloaded. Of a model behind servers the id itself: nobody here can see its files.

    Raises:
        ValueError: If there is no such model, or its files cannot be read.
    """
    if model_id.startswith(SERVED):
        return model_id
    path = Path(model_id)
    if not path.exists():
        return f"{model_id}@{_commit(model_id)}"
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in MODEL_SUFFIXES)
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
