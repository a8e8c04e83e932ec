"""Dual encoders of transformers: CLIP, SigLIP, SigLIP 2, MetaCLIP 2, Chinese-CLIP, ALIGN.

Texts and pictures are prepared as each family was trained. Vectors are computed in float32, with PyTorch's
fused attention where the model has it: an index must not depend on what its pictures shared a batch with.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from index.formats import middle

log = logging.getLogger(__name__)

# Trained on lower-case texts, all padded to one length, and no mask: the padding is read as well
# (Zhai et al. 2023, arXiv 2303.15343; Tschannen et al. 2025, arXiv 2502.14786).
UNMASKED = frozenset({"siglip", "siglip2"})
# Tokens of a text in training, of those whose text tower has more positions than that
# (Yang et al. 2022, arXiv 2211.01335; Jia et al. 2021, arXiv 2102.05918).
TEXT_LIMITS = {"chinese_clip": 52, "align": 64}


class DualEncoder:
    """Embeds images and texts in one space.

    Attributes:
        text_limit: Longest text in tokens; longer ones are cut, which is logged.
        dimension: Width of the rows.
        fingerprint: Names the weights.
    """

    def __init__(
        self, model: Any, tokenizer: Any, image_processor: Any, fingerprint: str, batch_size: int
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"got batch_size={batch_size}, expected at least 1")
        kind = model.config.model_type
        self.fingerprint = fingerprint
        self.text_limit: int = TEXT_LIMITS.get(kind) or model.config.text_config.max_position_embeddings
        self._model, self._tokenizer, self._image_processor = model, tokenizer, image_processor
        self._unmasked = kind in UNMASKED
        self._batch_size = batch_size
        self.dimension = self.encode_texts(["a"]).shape[1]

    @classmethod
    def open(
        cls, source: str, fingerprint: str, device: torch.device | str = "cpu", batch_size: int = 32
    ) -> DualEncoder:
        """Opens a folder or a model of the hub.

        Args:
            source: The folder's name or the hub id.
            fingerprint: Names the weights.
            device: Where to compute.
            batch_size: Images or texts computed at a time.

        Raises OSError or ValueError if there is no such model, or it does not embed both texts and images.
        """
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

        config = AutoConfig.from_pretrained(source)
        with torch.device("meta"):  # looked at before gigabytes are read
            skeleton = AutoModel.from_config(config)
        if not (hasattr(skeleton, "get_text_features") and hasattr(skeleton, "get_image_features")):
            raise ValueError(
                f"it is a {config.model_type} model, expected BLIP, or a dual encoder of texts and images"
                " such as CLIP or SigLIP"
            )
        model = AutoModel.from_pretrained(source, config=config, dtype=torch.float32).to(device).eval()
        # Pillow resizes: the same vectors on every machine, and no torchvision.
        image_processor = AutoImageProcessor.from_pretrained(source, backend="pil")
        return cls(model, AutoTokenizer.from_pretrained(source), image_processor, fingerprint, batch_size)

    def prepare_image(self, image: Image.Image) -> Image.Image:
        """Resizes a picture to what the model reads; `encode_images` gives the same rows with it or without.

        Threads that decode call it, so that resizing does not keep the model waiting.
        """
        if "spatial_shapes" in self._image_processor.model_input_names:  # each picture keeps its proportions
            return middle(image)
        options = dict.fromkeys(("do_center_crop", "do_rescale", "do_normalize"), False)
        (pixels,) = self._prepared([image], **options)["pixel_values"]
        return Image.fromarray(np.asarray(pixels).astype(np.uint8).transpose(1, 2, 0))

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embeds RGB images of any size, in order: (n, dimension) float32, rows of length 1."""
        return self._rows(images, lambda batch: self._model.get_image_features(**self._prepared(batch)))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts, cut to `text_limit` tokens, in order: (n, dimension) float32, rows of length 1."""
        if isinstance(texts, str):
            raise ValueError("got one str, expected a sequence of texts: put it in a list")
        return self._rows(texts, lambda batch: self._model.get_text_features(**self._tokens(batch)))

    def _prepared(self, images: Sequence[Image.Image], **options: Any) -> Any:
        inputs = self._image_processor(
            [np.asarray(middle(image)) for image in images],
            input_data_format="channels_last",  # else guessed, wrongly of a picture three pixels high
            return_tensors="pt",
            **options,
        )
        return inputs.to(self._model.device)

    def _tokens(self, texts: Sequence[str]) -> Any:
        texts = [text.lower() for text in texts] if self._unmasked else list(texts)
        tokens = self._tokenizer(
            texts,
            padding="max_length" if self._unmasked else True,
            padding_side="right",
            truncation=True,
            max_length=self.text_limit,
            return_attention_mask=True,
            return_tensors="pt",
        )
        full = tokens["attention_mask"].sum(dim=1) == self.text_limit
        whole = [len(self._tokenizer(texts[row], verbose=False)["input_ids"]) for row in full.nonzero()]
        if cut := sum(length > self.text_limit for length in whole):
            log.warning("%d texts were cut to %d tokens", cut, self.text_limit)
        if self._unmasked:
            del tokens["attention_mask"]
        return tokens.to(self._model.device)

    @torch.inference_mode()
    def _rows(self, items: Sequence[Any], features_of: Any) -> np.ndarray:
        parts = [
            torch.nn.functional.normalize(features_of(items[first : first + self._batch_size]).pooler_output)
            for first in range(0, len(items), self._batch_size)
        ]
        if not parts:
            return np.empty((0, self.dimension), dtype=np.float32)
        return torch.cat(parts).float().cpu().numpy()
