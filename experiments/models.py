"""Opens the models that settings name: encoder, captioner, rewriter, here or behind a server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.identity import weights_identity
from generation.gpu_memory import GpuMemory
from generation.loading import OUTLIERS, model_type, naming_model
from generation.servers import ChatServers
from generation.text_model import PACKAGED, source_of
from index.fingerprint import fingerprint
from settings import (
    CaptionSettings,
    DatasetSettings,
    IndexSettings,
    LoopSettings,
    SessionSettings,
    find_model,
)

if TYPE_CHECKING:  # imported where they are opened: they bring the model libraries
    from BLIP.model import BlipEncoder
    from captioning import Captioning
    from index.dual_encoder import DualEncoder
    from query_editing import QueryEditing


def open_encoder(settings: IndexSettings) -> BlipEncoder | DualEncoder:
    """Opens the model that embeds queries and pictures; settings are resolved.

    Raises:
        FileNotFoundError: If the checkpoint is missing.
        ModuleNotFoundError: If it needs a package that is not installed.
        ValueError: If it cannot be used.
    """
    import torch

    from BLIP.model import PUBLISHED_TEXT_LIMIT, TEXT_LIMIT, BlipEncoder
    from BLIP.weight_files import fetch_checkpoint, is_hub_id

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name, batch = settings.encoder or "", settings.image_batch or 32
    path = find_model(name)
    if path is None and not is_hub_id(name):
        path = Path(name)  # which says where to get it
    kind = model_type(str(path or name)) if path is None or path.exists() else "blip"
    if kind == "blip":
        limit = PUBLISHED_TEXT_LIMIT if is_published(settings) else TEXT_LIMIT
        return BlipEncoder.open(path or fetch_checkpoint(name), settings.image_size, device, batch, limit)
    from index.dual_encoder import DualEncoder

    if settings.image_size is not None:
        raise ValueError(
            f"image_size: got {settings.image_size} for {name}, a {kind} model, expected none: only a BLIP "
            "can read pictures of another size"
        )
    source = str(path or name)
    named = fingerprint(f"{kind} {weights_identity(source, {})}", library="transformers")
    with naming_model(name):
        return DualEncoder.open(source, named, device, batch)


def is_published(settings: DatasetSettings) -> bool:
    """Says whether resolved settings ask for rewriting as published."""
    return isinstance(settings, LoopSettings) and settings.rewriting == "published"


def open_captioner(settings: CaptionSettings, memory: GpuMemory | None = None) -> Captioning:
    """Opens the model that describes pictures; it is loaded on first use. `memory` is shared with others.

    Raises:
        ValueError: If the precision is not known, or a server does not have the model.
    """
    from captioning import Captioning

    size, model_id = settings.caption_batch or 8, settings.caption_model or ""
    servers = _caption_servers(settings)
    if servers:
        servers.check()
        return Captioning(servers.model_id, quantization_of(settings), size, servers=servers)
    return Captioning(
        str(find_model(model_id) or model_id), quantization_of(settings), size, memory,
        pixels=settings.caption_pixels,
    )  # fmt: skip


def open_rewriter(settings: SessionSettings, memory: GpuMemory | None = None) -> QueryEditing:
    """Opens the model that rewrites queries; it is loaded on first use. `memory` is shared with others.

    Raises:
        ValueError: If the precision is not known.
        ModuleNotFoundError: If it needs a package that is not installed.
    """
    from query_editing import QueryEditing

    size = settings.rewrite_batch or 8
    servers = rewrite_servers(settings)
    return QueryEditing(
        settings.rewrite_model or "", quantization_of(settings), size, memory, servers,
        published=is_published(settings), seed=settings.seed,
    )  # fmt: skip


def check_language_model(model_id: str) -> None:
    """Looks whether a language model is there, without opening its weights.

    Raises:
        ValueError: If there is none of that name, or it is no language model.
        ModuleNotFoundError: If it comes in a package that is not installed.
    """
    if model_id in PACKAGED:
        source_of(model_id)
        return
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    with naming_model(model_id):
        kind = AutoConfig.from_pretrained(model_id).model_type
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise ValueError(f"it is a {kind} model, expected one that writes text")


def caption_batch(settings: CaptionSettings) -> int:
    """Pictures captioned, and then kept, at a time: enough to keep all servers busy."""
    servers = _caption_servers(settings)
    return max(settings.caption_batch or 8, 4 * servers.at_a_time if servers else 0)


def hardware() -> str:
    """Names what the models run on: figures of cost mean nothing without it."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads"


def _caption_servers(settings: CaptionSettings) -> ChatServers | None:
    return _servers(settings, settings.caption_servers, settings.caption_model or "", settings.caption_prices)


def rewrite_servers(settings: SessionSettings) -> ChatServers | None:
    """Returns the servers that offer the rewriter, if settings name some."""
    return _servers(settings, settings.rewrite_servers, settings.rewrite_model or "", settings.rewrite_prices)


def _servers(
    settings: CaptionSettings,
    addresses: Sequence[str] | None,
    model_id: str,
    prices: tuple[float, float] | None,
) -> ChatServers | None:
    if not addresses:
        return None
    return ChatServers(
        addresses, model_id, requests=settings.server_requests, max_seconds=settings.server_seconds,
        prices=prices or (0.0, 0.0),
    )  # fmt: skip


def quantization_of(settings: CaptionSettings) -> str | bool:
    """Returns the precision that settings ask for, as for `generation.loading.precision_of`."""
    asked, threshold = settings.quantization, settings.int8_threshold
    if asked in ("int8", True) and threshold not in (None, OUTLIERS):
        return f"int8:{threshold:g}"
    return "auto" if asked is None else asked
