"""Tensor names: Salesforce's to Hugging Face's and back, and the names a loader may leave out.

The naming is told from the names alone: files of either naming come nested and flat.
"""

from __future__ import annotations

from collections.abc import Collection

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


def naming_of(names: Collection[str]) -> str | None:
    """Returns `SALESFORCE`, `HUGGING_FACE`, or None when the names are not BLIP's or are of both kinds."""
    salesforce = any(name.startswith("visual_encoder.") for name in names)
    hugging_face = any(name.startswith("vision_model.") for name in names)
    if salesforce == hugging_face:
        return None
    return SALESFORCE if salesforce else HUGGING_FACE


def to_hugging_face(name: str) -> str:
    """Translates one Salesforce name; a name that is in neither table is returned unchanged."""
    for salesforce, hugging_face in _PREFIXES:
        if name.startswith(salesforce):
            name = hugging_face + name.removeprefix(salesforce)
            for inner, translated in _INSIDE_LAYERS:
                name = name.replace(inner, translated)
            return name
    return name


def to_salesforce(name: str) -> str:
    """Translates one Hugging Face name; the inverse of `to_hugging_face`."""
    for salesforce, hugging_face in _PREFIXES:
        if name.startswith(hugging_face):
            name = salesforce + name.removeprefix(hugging_face)
            for translated, inner in _INSIDE_LAYERS:
                name = name.replace(inner, translated)
            return name
    return name


def surplus_kind(name: str) -> str | None:
    """Says what known surplus a name is, or None when the tensor may be needed.

    Momentum twins (first part ends in ``_m``) are moving averages and not copies: they never stand in for the
    tensors they are twins of.
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


def describe(names: Collection[str]) -> str:
    """Says what the model looks like that has tensors of these names (of either naming)."""
    parts = {name.split(".")[0] for name in names}
    if {"text_encoder", "text_decoder", "itm_head"} <= parts:
        return "retrieval model and captioner in one"
    if {"text_encoder", "text_decoder"} <= parts:
        return "question answering model"
    if "text_decoder" in parts:
        return "captioner"
    if {"text_encoder", "cls_head"} <= parts:
        return "classifier over image pairs (NLVR)"
    if "text_encoder" in parts and parts & {"vision_proj", "text_proj", "itm_head"}:
        return "retrieval model"
    if "text_encoder" in parts:
        return "text encoder without projections"
    return "vision encoder alone"
