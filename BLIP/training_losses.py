"""What training minimises: the losses of BLIP (Li et al. 2022, arXiv 2201.12086, section 3.2) and helpers.

Unlike the paper there is no momentum twin and no queue: negatives come from the batch. Trained from scratch
on few images, contrast alone stays on a plateau; predicting the captions' words from both embeddings gets it
off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from BLIP.towers import Towers

POOL = 1000  # pictures among which a text's hard negatives are looked for in the second stage
HARDEST = 10  # of them, one is drawn
SAME_WORDS = -1e4  # score of a negative that must not be drawn


@dataclass(frozen=True)
class TokenBatch:
    """Token ids (n, length) int64 and attention mask (n, length) int64; token 0 is [CLS]."""

    ids: torch.Tensor
    mask: torch.Tensor

    def starting_with(self, token: int) -> torch.Tensor:
        """Returns the ids with token 0 replaced."""
        ids = self.ids.clone()
        ids[:, 0] = token
        return ids


class TrainingModel(nn.Module):
    """The retrieval model and the captioner over one vision tower, with the losses' own parameters."""

    def __init__(self, towers: Towers, text_decoder: Any, enc_id: int, words: int, labels: int = 0) -> None:
        """Adds the layers that only the losses use.

        Args:
            towers: The retrieval model.
            text_decoder: From `BLIP.checkpoints.make_decoder`; None to train no captioner.
            enc_id: Of [ENC], which begins a text that is matched.
            words: How many words `WordTargets` has.
            labels: How many labels `PatchTargets` has.
        """
        super().__init__()
        self.towers, self.text_decoder, self.enc_id = towers, text_decoder, enc_id
        sizes = towers.sizes
        width = towers.vision_proj.out_features
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.word_scale = nn.Parameter(torch.tensor(math.log(12.0)))
        self.image_words = nn.Linear(width, words)
        self.text_words = nn.Linear(width, words)
        self.patch_words = nn.Linear(sizes.vision_width, words)
        self.patch_labels = nn.Linear(sizes.vision_width, 1 + labels) if labels else None
        for layer in (self.image_words, self.text_words, self.patch_words, self.patch_labels):
            if layer is not None:
                draw_weights(layer)

    def forward(
        self,
        pixels: torch.Tensor,
        queries: TokenBatch,
        captions: TokenBatch,
        words: torch.Tensor,
        with_matching: bool,
        patches: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Computes the first stage's losses of a batch: scalars by the names in docs/training.md.

        Args:
            pixels: Normalised pictures, (n, 3, side, side).
            queries: A caption of each, for contrast and matching.
            captions: A caption of each, for the captioner; token 0 is [DEC].
            words: Word distributions, (n, words) float32.
            with_matching: Whether to compute the ITM loss as well.
            patches: Classes of the patches, (n, patches) int64.
        """
        hidden = self.towers.vision_model(pixels)
        image = F.normalize(self.towers.vision_proj(hidden[:, 0]).float(), dim=-1)
        text = self.text_features(queries)
        similarity = image @ text.t() * self.log_scale.exp().clamp(max=100)
        own = torch.arange(len(image), device=image.device)
        image_loss = self._word_loss(self.image_words, image, words)
        text_loss = self._word_loss(self.text_words, text, words)
        losses = {
            "itc": (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.t(), own)) / 2,
            "words": (image_loss + text_loss) / 2,
            "patches": self._patch_loss(hidden, words),
        }
        if patches is not None and self.patch_labels is not None:
            logits = self.patch_labels(hidden[:, 1:]).float()
            losses["regions"] = F.cross_entropy(logits.flatten(0, 1), patches.flatten())
        if self.text_decoder is not None:
            losses["lm"] = self.language_loss(hidden, captions)
        if with_matching:
            # Half of the pairs: three passes through text encoder and image states are expensive enough.
            half = own[: (len(own) + 1) // 2]
            scores = similarity.detach()
            same = same_texts(queries.ids)
            hard_texts = drawn(scores.masked_fill(same, SAME_WORDS))[half]
            hard_images = drawn(scores.t().masked_fill(same, SAME_WORDS))[half]
            states = torch.cat([hidden[half], hidden[half], hidden[hard_images]])
            losses["itm"] = self.matching_loss(states, queries, torch.cat([half, hard_texts, half]))
        return losses

    def text_features(self, texts: TokenBatch) -> torch.Tensor:
        """Returns unit rows, (n, dimension) float32."""
        return F.normalize(self.towers.text_proj(self.read(texts.ids, texts.mask)).float(), dim=-1)

    def read(self, ids: torch.Tensor, mask: torch.Tensor, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the first token's state of each text, (n, width); texts of similar length share a pass."""
        order = mask.sum(dim=1).argsort(stable=True)
        states = []
        for rows in order.chunk(4):
            longest = int(mask[rows].sum(dim=1).max())
            read = None if hidden is None else hidden[rows]
            states.append(self.towers.text_encoder(ids[rows, :longest], mask[rows, :longest], read)[:, 0])
        return torch.cat(states)[order.argsort()]

    def language_loss(self, hidden: torch.Tensor, captions: TokenBatch) -> torch.Tensor:
        """Cross-entropy of the captions, read over the pictures' states; smoothed as the config says."""
        output = self.text_decoder(
            input_ids=captions.ids,
            attention_mask=captions.mask,
            encoder_hidden_states=hidden,
            labels=captions.ids.masked_fill(captions.mask == 0, -100),  # padding does not count
            reduction="mean",
        )
        return output.loss

    def matching_loss(self, states: torch.Tensor, texts: TokenBatch, text_rows: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of match or no match.

        `states` are (3 n, tokens, width), the pictures of n true pairs, then those of 2 n false ones;
        `text_rows` are (3 n,) int64, which of the texts (token 0 is replaced by [ENC]) belongs to each.
        """
        ids = texts.starting_with(self.enc_id)[text_rows]
        fused = self.read(ids, texts.mask[text_rows], states)
        logits = self.towers.itm_head(fused).float()
        is_match = torch.arange(len(logits), device=logits.device) < len(logits) // 3
        return F.cross_entropy(logits, is_match.long())

    def _word_loss(self, layer: nn.Linear, embedding: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        logits = self.word_scale.exp() * embedding @ F.normalize(layer.weight, dim=-1).t() + layer.bias
        return -(words * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()

    def _patch_loss(self, hidden: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Some patch must speak for each word: the patches' logits are pooled by log-sum-exp."""
        logits = torch.logsumexp(self.patch_words(hidden[:, 1:]).float(), dim=1)
        return -(words * F.log_softmax(logits, dim=-1)).sum(dim=-1).mean()


def hard_negatives(
    text: torch.Tensor, features: torch.Tensor, own: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws for each text a picture it may be mistaken for, and for each text's picture a text.

    Harder than a batch offers: pictures out of the ten best of a thousand, which is what re-ranking is asked
    to tell apart.

    Args:
        text: (n, dimension) unit rows.
        features: (images, dimension) unit rows.
        own: (n,) int64, the image of each text.
        ids: (n, length) int64, the texts' tokens; a text of the same words is never drawn.

    Returns:
        (n,) int64 images, (n,) int64 texts.
    """
    pool = torch.randint(len(features), (POOL,), device=text.device)
    scores = (text @ features[pool].t()).masked_fill(pool[None] == own[:, None], -1)
    best = scores.topk(HARDEST, dim=1).indices
    picked = torch.randint(HARDEST, (len(own), 1), device=text.device)
    hard_rows = pool[best.gather(1, picked).squeeze(1)]
    among = (features[own] @ text.t() / 0.05).masked_fill(same_texts(ids), SAME_WORDS)
    return hard_rows, drawn(among)


def same_texts(ids: torch.Tensor) -> torch.Tensor:
    """Says which texts have the same words, (n, n) bool: such a pair would be a false negative."""
    return (ids[:, None] == ids[None]).all(dim=-1)


def drawn(scores: torch.Tensor) -> torch.Tensor:
    """Draws a column for each row, (n,) int64, likelier the higher its score."""
    return torch.multinomial(scores.softmax(dim=1), 1).squeeze(1)


def draw_weights(model: nn.Module) -> None:
    """Draws all weights; transformers' defaults for BLIP are unusable (its vision std is 1e-10)."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.05 if isinstance(module, nn.Linear) else 0.03)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    if isinstance(model, Towers):
        embeddings = model.vision_model.embeddings
        nn.init.trunc_normal_(embeddings.class_embedding, std=0.02)
        nn.init.trunc_normal_(embeddings.position_embedding, std=0.02)
