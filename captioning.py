"""Pictures to sentences: `Captioning(model_id, quantization).caption(images)`.

The model is a BLIP captioner's file or folder, or a vision-language model of the hub that follows
instructions, such as ``llava-hf/llava-v1.6-mistral-7b-hf``.
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from generation.opening import naming_model
from generation.parsing import one_line
from generation.precision import Quantization, device_options, loading_options, precision_of
from generation.prompts import CAPTION

log = logging.getLogger(__name__)

MOST_WORDS = 60
MOST_TOKENS = 200


class Captioning:
    """Describes pictures in one line each; the model is loaded on first use.

    Attributes:
        model_id: A BLIP captioner's path, or a vision-language model's hub id or folder.
        name: What makes captions differ: model, precision and prompt.
        empty: How many captions came out empty so far; they become "an image".
    """

    def __init__(self, model_id: str, quantization: Quantization = "fp16", batch_size: int = 16) -> None:
        self.model_id = model_id
        self.quantization = precision_of(quantization)
        self.name = f"{model_id} {self.quantization}: {CAPTION}"
        self.empty = 0
        self._batch_size = batch_size

    @cached_property
    def _blip(self) -> Any:
        """The BLIP captioner, or None when the model is another kind."""
        path = Path(self.model_id)
        if not path.exists():
            return None
        config = path / "config.json"
        if path.is_dir() and config.is_file() and '"blip' not in config.read_text(encoding="utf-8"):
            return None
        from BLIP.model import BlipCaptioner

        options = loading_options(self.quantization)
        if "quantization_config" in options:
            raise ValueError(
                f"quantization: got {self.quantization} for a BLIP captioner, expected fp16, bf16 or fp32"
            )
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        return BlipCaptioner.open(path, device=device, dtype=options["dtype"], batch_size=self._batch_size)

    @cached_property
    def _vision_language(self) -> tuple[Any, Any]:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        log.info("loading the captioner %s", self.model_id)
        with naming_model(self.model_id):
            processor = AutoProcessor.from_pretrained(self.model_id)
            # Else answers of unequal prompts in a batch come out empty.
            processor.tokenizer.padding_side = "left"
            model = AutoModelForImageTextToText.from_pretrained(
                self.model_id, **loading_options(self.quantization), **device_options()
            )
        return model.eval(), processor

    def caption(self, images: list[Image.Image]) -> list[str]:
        """Describes pictures.

        Args:
            images: RGB pictures.

        Returns:
            One line each, at most `MOST_WORDS` words, in order.
        """
        captions: list[str] = []
        for start in range(0, len(images), self._batch_size):
            batch = images[start : start + self._batch_size]
            texts = self._with_blip(batch) if self._blip else self._with_instructions(batch)
            captions += [one_line(text, MOST_WORDS) for text in texts]
        self.empty += captions.count("")
        return [caption or "an image" for caption in captions]

    def _with_blip(self, images: list[Image.Image]) -> list[str]:
        longest = min(MOST_TOKENS, self._blip.model.config.text_config.max_position_embeddings)
        return self._blip.caption(images, num_beams=1, max_length=longest)

    def _with_instructions(self, images: list[Image.Image]) -> list[str]:
        import torch

        model, processor = self._vision_language
        content = [{"type": "image"}, {"type": "text", "text": CAPTION}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = processor(images=images, text=[prompt] * len(images), padding=True, return_tensors="pt")
        inputs = inputs.to(model.device, model.dtype)
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=MOST_TOKENS, do_sample=False)
        return processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
