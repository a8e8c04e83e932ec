"""The model a search needs: `BlipEncoder` embeds pictures and texts in one space, and scores pairs of them.

```python
encoder = BlipEncoder.open("BLIP/weights/demo")
rows = encoder.encode_images(pictures) @ encoder.encode_texts(["a dog on the beach"]).T
```
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from BLIP import images as pictures
from BLIP.checkpoints import load_towers
from BLIP.packed import can_pack, pack
from BLIP.tokenizer import Tokenizer
from BLIP.towers import Towers
from BLIP.weight_files import content, find_weights
from index.fingerprint import fingerprint

logger = logging.getLogger(__name__)

TEXT_LIMIT = 200  # tokens, as ChatIR cuts its dialogs; fewer where the model has fewer positions
PUBLISHED_TEXT_LIMIT = 300  # as the published code of arXiv 2404.18746 cuts its queries


class BlipEncoder:
    """Embeds images and texts in one space, and scores pairs of them.

    Attributes:
        image_size: Side of the images it reads, in pixels.
        text_limit: Longest text in tokens; longer ones are cut, which is logged.
        dimension: Width of the rows.
        fingerprint: Of weights, configuration, vocabulary and image size.
    """

    def __init__(
        self,
        model: Towers,
        tokenizer: Tokenizer,
        fingerprint: str,
        batch_size: int,
        text_limit: int = TEXT_LIMIT,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.image_size = model.sizes.image_size
        self.text_limit = min(text_limit, model.sizes.positions)
        self.dimension = model.text_proj.out_features
        self._batch_size = checked_batch(batch_size)

    @classmethod
    def open(
        cls,
        path: Path | str,
        image_size: int | None = None,
        device: torch.device | str = "cpu",
        batch_size: int = 32,
        text_limit: int = TEXT_LIMIT,
    ) -> BlipEncoder:
        """Opens a retrieval checkpoint, with the vocabulary and the configuration beside it.

        Args:
            path: A weights file, or a folder with one, of any format that `BLIP.checkpoints` reads.
            image_size: Side of the images in pixels; None: the size the file was trained for.
            device: Where to compute, in float32.
            batch_size: Images, texts or pairs computed at a time.
            text_limit: Longest text in tokens, if the model has as many positions.

        Raises FileNotFoundError if weights or vocabulary are not there; ValueError if they make no such
        model.
        """
        weights = find_weights(path)
        tokenizer = Tokenizer.open(weights)
        model = load_towers(weights, tokenizer, image_size, device)
        if model.device.type == "cpu" and can_pack():
            pack(model.vision_model)
            pack(model.text_encoder)
        made_with = f"vocabulary {tokenizer.content}", f"{model.sizes.image_size} pixels"
        named = fingerprint(f"blip {content(weights)}", *made_with, library="torch")
        return cls(model, tokenizer, named, batch_size, text_limit)

    def unknown_words(self, text: str) -> tuple[list[str], int]:
        """Returns the words of a text that the model hardly knows, and how many words there are."""
        return self.tokenizer.unknown_words(text)

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embeds PIL images of any mode and size, in order: (n, dimension) float32, rows of length 1."""
        rows = np.empty((len(images), self.dimension), dtype=np.float32)
        for start in range(0, len(images), self._batch_size):
            batch = images[start : start + self._batch_size]
            features = self.image_features(self.image_hidden(pictures.to_pixels(batch, self.image_size)))
            rows[start : start + len(batch)] = normalize(features, dim=-1).cpu().numpy()
        return rows

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts, cut to `text_limit` tokens, in order: (n, dimension) float32, rows of length 1."""
        if isinstance(texts, str):
            raise ValueError("got one str, expected a sequence of texts: put it in a list")
        rows = np.empty((len(texts), self.dimension), dtype=np.float32)
        # Texts of similar length share a batch, so that little is computed for padding.
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            tokens = self.tokenizer.encode([texts[number] for number in batch], self.text_limit)
            if tokens.truncated:
                logger.warning("%d texts were cut to %d tokens", tokens.truncated, self.text_limit)
            features = self.text_features(self.text_hidden(tokens.ids, tokens.mask))
            rows[batch] = normalize(features, dim=-1).cpu().numpy()
        return rows

    @torch.inference_mode()
    def image_hidden(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, size, size) pixel values to (n, 1 + patches, width) states, of the model's dtype."""
        return self.model.vision_model(pixels.to(self.model.device, self.model.dtype))

    @torch.inference_mode()
    def text_hidden(
        self, ids: torch.Tensor, mask: torch.Tensor, image_hidden: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Reads texts, alone or each over the states of an image; every token sees all.

        Args:
            ids: (n, length) int64. A text alone begins with [CLS], one that is matched with [ENC], as the
                matching head was trained and as the paper re-ranks. (The reference's ``BLIP_ITM.forward``
                leaves [CLS] there, and its logits differ.)
            mask: (n, length), nonzero where a token is.
            image_hidden: (n, tokens, width), the states of image n for text n; None: texts alone.

        Returns:
            (n, length, width) states.
        """
        padding = None if bool(mask.all()) else mask.to(self.model.device)
        return self.model.text_encoder(ids.to(self.model.device), padding, image_hidden)

    @torch.inference_mode()
    def image_features(self, image_hidden: torch.Tensor) -> torch.Tensor:
        """(n, tokens, width) states to (n, dimension) float32 features, not normalised."""
        return self.model.vision_proj(image_hidden[:, 0]).float()

    @torch.inference_mode()
    def text_features(self, text_hidden: torch.Tensor) -> torch.Tensor:
        """(n, tokens, width) states to (n, dimension) float32 features, not normalised."""
        return self.model.text_proj(text_hidden[:, 0]).float()

    @torch.inference_mode()
    def match_logits(self, text_hidden: torch.Tensor) -> torch.Tensor:
        """(n, tokens, width) states of texts read with images to (n, 2) float32 logits: no match, match."""
        return self.model.itm_head(text_hidden[:, 0]).float()


def checked_batch(batch_size: int) -> int:
    """Returns a batch size that can be used; below 1 it is a ValueError."""
    if batch_size < 1:
        raise ValueError(f"got batch_size={batch_size}, expected at least 1")
    return batch_size
