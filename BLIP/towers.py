"""BLIP's two towers and its matching head in plain torch; searched with and trained.

transformers has the same model with the same tensor names and numbers (`tests/test_blip_models.py`), but is
slower (docs/performance.md) and slow to import. Only the captioner's decoder is transformers'.

Source: Li et al. 2022 (arXiv 2201.12086): a vision transformer with the norms first, and a BERT, norms last,
with cross-attention in every layer; a text alone skips it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from BLIP.sizes import TEXT_EPSILON, VISION_EPSILON, Sizes


class _BlipModel(nn.Module):
    """A vision tower and something that reads its states; `sizes` are the model's."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.vision_model = VisionTower(sizes)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vision_model.embeddings.class_embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.vision_model.embeddings.class_embedding.dtype


class Towers(_BlipModel):
    """The retrieval model: embeds images and texts, and matches pairs; to be filled with weights."""

    def __init__(self, sizes: Sizes) -> None:
        """Makes the model; `sizes` are a retrieval model's, with a joint space."""
        super().__init__(sizes)
        assert sizes.projection is not None
        self.text_encoder = TextTower(sizes)
        self.vision_proj = nn.Linear(sizes.vision_width, sizes.projection)
        self.text_proj = nn.Linear(sizes.text_width, sizes.projection)
        self.itm_head = nn.Linear(sizes.text_width, 2)


class Captioner(_BlipModel):
    """The vision tower and a text decoder (transformers' ``BlipTextLMHeadModel``) that reads its states."""

    def __init__(self, sizes: Sizes, text_decoder: Any) -> None:
        super().__init__(sizes)
        self.text_decoder = text_decoder


class VisionTower(nn.Module):
    """Pixels to states."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embeddings = _PatchEmbeddings(sizes)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(_VisionLayer(sizes) for _ in range(sizes.vision_layers))
        self.post_layernorm = nn.LayerNorm(sizes.vision_width, eps=VISION_EPSILON)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, size, size) pixel values to (n, 1 + patches, width) states."""
        states = self.embeddings(pixels)
        for layer in cast(nn.ModuleList, self.encoder.layers):
            states = layer(states)
        return self.post_layernorm(states)


class TextTower(nn.Module):
    """Token ids to states; every token sees all."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embeddings = _WordEmbeddings(sizes)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(_TextLayer(sizes) for _ in range(sizes.text_layers))

    def forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Reads texts, alone or each with an image: (n, length) token ids to (n, length, width) states.

        `mask` is (n, length), nonzero where a token is; None if no text is padded, which is faster.
        `image_states` are (n, tokens, width).
        """
        # (n, 1, 1, length): every head and every query of a text sees the same keys. Padding is only hidden
        # from the others; what it computes itself is never read.
        seen = None if mask is None else mask[:, None, None, :].bool()
        states = self.embeddings(ids)
        for layer in cast(nn.ModuleList, self.encoder.layer):
            states = layer(states, seen, image_states)
        return states


class _PatchEmbeddings(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.vision_width
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + sizes.grid**2, width))
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=sizes.patch, stride=sizes.patch)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), -1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding


class _VisionLayer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, inner = sizes.vision_width, sizes.vision_mlp
        self.heads = sizes.vision_heads
        self.layer_norm1 = nn.LayerNorm(width, eps=VISION_EPSILON)
        self.self_attn = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "projection": nn.Linear(width, width)}
        )
        self.layer_norm2 = nn.LayerNorm(width, eps=VISION_EPSILON)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        # One fused matrix: the output's columns are all queries, then all keys, then all values.
        query, key, value = self.self_attn["qkv"](self.layer_norm1(states)).chunk(3, dim=-1)
        states = states + self.self_attn["projection"](_attend(query, key, value, self.heads))
        return states + self.mlp["fc2"](gelu(self.mlp["fc1"](self.layer_norm2(states))))


class _WordEmbeddings(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.word_embeddings = _table(sizes.vocabulary, sizes.text_width)
        self.position_embeddings = _table(sizes.positions, sizes.text_width)
        self.LayerNorm = nn.LayerNorm(sizes.text_width, eps=TEXT_EPSILON)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        # BLIP's BERT has no token types, whatever type_vocab_size a configuration states.
        return self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings.weight[: ids.shape[1]])


class _TextLayer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, inner = sizes.text_width, sizes.text_mlp
        self.attention = _TextAttention(sizes, width)
        self.crossattention = _TextAttention(sizes, sizes.vision_width)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = _closing(inner, width)

    def forward(
        self, states: torch.Tensor, seen: torch.Tensor | None, image_states: torch.Tensor | None
    ) -> torch.Tensor:
        states = self.attention(states, states, seen)
        if image_states is not None:
            states = self.crossattention(states, image_states, None)
        inner = gelu(self.intermediate["dense"](states))
        return self.output["LayerNorm"](states + self.output["dense"](inner))


class _TextAttention(nn.Module):
    def __init__(self, sizes: Sizes, read_width: int) -> None:
        super().__init__()
        width = sizes.text_width
        self.heads = sizes.text_heads
        self.self = nn.ModuleDict(
            {
                "query": nn.Linear(width, width),
                "key": nn.Linear(read_width, width),
                "value": nn.Linear(read_width, width),
            }
        )
        self.output = _closing(width, width)

    def forward(self, states: torch.Tensor, read: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        attended = _attend(
            self.self["query"](states), self.self["key"](read), self.self["value"](read), self.heads, seen
        )
        return self.output["LayerNorm"](states + self.output["dense"](attended))


def _table(rows: int, width: int) -> nn.Embedding:
    """Makes an embedding without drawing random rows, which on the meta device imports torch's compiler."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


def _closing(inner: int, width: int) -> nn.ModuleDict:
    norm = nn.LayerNorm(width, eps=TEXT_EPSILON)
    return nn.ModuleDict({"dense": nn.Linear(inner, width), "LayerNorm": norm})


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, seen: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of (n, length, width) queries over (n, read, width) keys and values, head by head."""
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    attended = scaled_dot_product_attention(query, key, value, attn_mask=seen)
    return attended.transpose(1, 2).flatten(2)
