"""Judges texts and images together with BLIP's matching head; every pair once, every picture read once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from BLIP import images as pictures
from BLIP.model import BlipEncoder
from index.decode import open_image

BATCH_SIZE = 64  # pairs at a time
STATES_BYTES = 1 << 30  # of picture states kept; the pictures used longest ago are read again when needed


class ItmScorer:
    """Texts and image ids to probabilities that each text is true of its image."""

    def __init__(self, encoder: BlipEncoder, paths: Mapping[str, Path]) -> None:
        """Takes the model and the files.

        Args:
            encoder: With a trained matching head.
            paths: The picture file of each image id.
        """
        self._encoder = encoder
        self._paths = paths
        self._states: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._chances: dict[tuple[str, str], float] = {}

    def __call__(self, texts: Sequence[str], image_ids: Sequence[str]) -> np.ndarray:
        """Judges pairs.

        Args:
            texts: n.
            image_ids: n; text i is judged with image i.

        Returns:
            (n,) float64 from 0 to 1.

        Raises:
            ValueError: If there are not as many ids as texts, or a picture cannot be read.
        """
        pairs = list(zip(texts, image_ids, strict=True))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._chances]
        for start in range(0, len(new), BATCH_SIZE):
            batch = new[start : start + BATCH_SIZE]
            self._chances.update(zip(batch, self._judged(batch), strict=True))
        return np.array([self._chances[pair] for pair in pairs])

    def _judged(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        encoder = self._encoder
        tokens = encoder.tokenizer.encode(
            [text for text, _ in pairs], encoder.text_limit, first=encoder.tokenizer.enc_id
        )
        hidden = self._hidden([image_id for _, image_id in pairs]).to(encoder.model.device)
        logits = encoder.match_logits(encoder.text_hidden(tokens.ids, tokens.mask, hidden))
        return logits.softmax(dim=-1)[:, 1].tolist()

    def _hidden(self, image_ids: Sequence[str]) -> torch.Tensor:
        """Returns the pictures' states, (n, 1 + patches, width), reading the files of those not kept."""
        missing = [image_id for image_id in dict.fromkeys(image_ids) if image_id not in self._states]
        if missing:
            opened = [open_image(self._paths[image_id]) for image_id in missing]
            states = self._encoder.image_hidden(pictures.to_pixels(opened, self._encoder.image_size)).cpu()
            self._states.update((name, row.clone()) for name, row in zip(missing, states, strict=True))
        for image_id in image_ids:
            self._states.move_to_end(image_id)
        rows = torch.stack([self._states[image_id] for image_id in image_ids])
        while len(self._states) * rows[0].nbytes > STATES_BYTES:
            self._states.popitem(last=False)
        return rows
