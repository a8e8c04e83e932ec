"""The three losses of BLIP (Li et al. 2022, arXiv 2201.12086, section 3.2), and an auxiliary one.

Image-text contrast (ITC) aligns the two embeddings, image-text matching (ITM) tells a pair from a hard
negative, language modelling (LM) teaches the captioner; one vision tower serves all three. Unlike the paper
there is no momentum twin and no queue: negatives come from the batch. Training from scratch on few images,
ITC alone stays on a plateau; predicting the captions' words from both embeddings gets it moving.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval


@dataclass(frozen=True)
class TokenBatch:
    """Token ids (n, length) int64 and attention mask (n, length) int64; token 0 is [CLS]."""

    ids: torch.Tensor
    mask: torch.Tensor

    def starting_with(self, token: int) -> torch.Tensor:
        """Returns the ids with token 0 replaced, as [ENC] and [DEC] ask."""
        ids = self.ids.clone()
        ids[:, 0] = token
        return ids


class TrainingModel(nn.Module):
    """The retrieval model and the captioner over one vision tower, with the losses' own parameters."""

    def __init__(self, config: BlipConfig, words: int, with_captioner: bool = True, labels: int = 0) -> None:
        super().__init__()
        self.with_captioner = with_captioner
        self.retrieval = BlipForImageTextRetrieval(config)
        self.captioner = BlipForConditionalGeneration(config)
        self.captioner.vision_model = self.retrieval.vision_model
        text_config: Any = config.text_config  # transformers types its configurations too loosely to read
        vision_config: Any = config.vision_config
        self.decoder_start: int = text_config.bos_token_id
        self.encoder_start = self.decoder_start + 1
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        width = config.image_text_hidden_size
        self.image_words = nn.Linear(width, words)
        self.text_words = nn.Linear(width, words)
        self.patch_words = nn.Linear(vision_config.hidden_size, words)
        self.patches_a_side: int = vision_config.image_size // vision_config.patch_size
        self.patch_labels = nn.Linear(vision_config.hidden_size, 1 + labels) if labels else None
        self.word_scale = nn.Parameter(torch.tensor(math.log(12.0)))

    def initialise(self) -> None:
        """Draws all weights anew; transformers' defaults for BLIP are unusable (its vision std is 1e-10)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.05 if isinstance(module, nn.Linear) else 0.03)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        embeddings = self.retrieval.vision_model.embeddings
        nn.init.trunc_normal_(embeddings.class_embedding, std=0.02)
        nn.init.trunc_normal_(embeddings.position_embedding, std=0.02)
        self.captioner.tie_weights()

    def forward(
        self,
        pixels: torch.Tensor,
        queries: TokenBatch,
        captions: TokenBatch,
        words: torch.Tensor,
        with_matching: bool,
        patches: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Computes the losses of a batch.

        Args:
            pixels: Normalised pictures (n, 3, side, side).
            queries: A caption of each, for matching.
            captions: A caption of each, for the captioner.
            words: Word distributions (n, words).
            with_matching: Whether to compute the ITM loss as well.
            patches: Classes of the patches (n, patches) int64, see `BLIP.training_regions`.

        Returns:
            Scalars by name: "itc", "words", "patches"; "lm" with a captioner; "itm" if asked for; "regions"
            if the patches' classes are given.
        """
        hidden = self.retrieval.vision_model(pixel_values=pixels).last_hidden_state
        image = F.normalize(self.retrieval.vision_proj(hidden[:, 0]).float(), dim=-1)
        text = F.normalize(self.retrieval.text_proj(self.read(queries.ids, queries.mask)).float(), dim=-1)
        similarity = image @ text.t() * self.log_scale.exp().clamp(max=100)
        own = torch.arange(len(image), device=image.device)
        losses = {
            "itc": (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.t(), own)) / 2,
            "words": (
                self._word_loss(self.image_words, image, words)
                + self._word_loss(self.text_words, text, words)
            )
            / 2,
            "patches": self._patch_loss(hidden, words),
        }
        if patches is not None and self.patch_labels is not None:
            logits = self.patch_labels(hidden[:, 1:]).float()
            losses["regions"] = F.cross_entropy(logits.flatten(0, 1), patches.flatten())
        if self.with_captioner:
            losses["lm"] = self.language_loss(hidden, captions)
        if with_matching:
            losses["itm"] = self._matching_loss(hidden, queries, similarity.detach())
        return losses

    def read(self, ids: torch.Tensor, mask: torch.Tensor, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the first token's state of each text, (n, width); texts of like length share a pass."""
        order = mask.sum(dim=1).argsort(stable=True)
        states = []
        for rows in order.chunk(4):
            longest = int(mask[rows].sum(dim=1).max())
            output = self.retrieval.text_encoder(
                input_ids=ids[rows, :longest],
                attention_mask=mask[rows, :longest],
                encoder_hidden_states=None if hidden is None else hidden[rows],
            )
            states.append(output.last_hidden_state[:, 0])
        return torch.cat(states)[order.argsort()]

    def language_loss(self, hidden: torch.Tensor, captions: TokenBatch) -> torch.Tensor:
        """Cross-entropy of the captions, read over the pictures' states; smoothed as the config says."""
        ids = captions.starting_with(self.decoder_start)
        output = self.captioner.text_decoder(
            input_ids=ids,
            attention_mask=captions.mask,
            encoder_hidden_states=hidden,
            labels=ids.masked_fill(captions.mask == 0, -100),
            reduction="mean",
        )
        return output.loss

    def _word_loss(self, layer: nn.Linear, embedding: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        logits = self.word_scale.exp() * embedding @ F.normalize(layer.weight, dim=-1).t() + layer.bias
        return -(words * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()

    def _patch_loss(self, hidden: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Some patch must speak for each word: patches' logits are pooled by log-sum-exp."""
        logits = torch.logsumexp(self.patch_words(hidden[:, 1:]).float(), dim=1)
        return -(words * F.log_softmax(logits, dim=-1)).sum(dim=-1).mean()

    def _matching_loss(
        self, hidden: torch.Tensor, queries: TokenBatch, similarity: torch.Tensor
    ) -> torch.Tensor:
        """ITM over half of the true pairs, each image with a hard text and each text with a hard image."""
        # A text of two images of the batch would be a false negative: same words are never drawn.
        same = (queries.ids[:, None] == queries.ids[None]).all(dim=-1)
        chance = similarity.masked_fill(same, -1e4)
        hard_text = torch.multinomial(chance.softmax(dim=1), 1).squeeze(1)
        hard_image = torch.multinomial(chance.t().softmax(dim=1), 1).squeeze(1)
        own = torch.arange(
            (len(hidden) + 1) // 2, device=hidden.device
        )  # three fused passes a row cost enough
        image_rows = torch.cat([own, own, hard_image[own]])
        text_rows = torch.cat([own, hard_text[own], own])
        ids = queries.starting_with(self.encoder_start)[text_rows]
        fused = self.read(ids, queries.mask[text_rows], hidden[image_rows])
        logits = self.retrieval.itm_head(fused).float()
        return F.cross_entropy(logits, (torch.arange(len(logits), device=logits.device) < len(own)).long())
