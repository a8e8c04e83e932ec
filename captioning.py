"""Pictures to sentences: `Captioning(model_id, quantization).caption(images)`.

The model is a BLIP captioner (file, folder or hub id), or a vision-language model of the hub that follows
instructions, such as ``llava-hf/llava-v1.6-mistral-7b-hf`` or ``HuggingFaceTB/SmolVLM-256M-Instruct``.
Such a one may also run elsewhere, behind `generation.servers.ChatServers`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from generation.batching import ShrinkingBatches, free_memory
from generation.gpu_memory import GpuMemory
from generation.loading import (
    Quantization,
    loading_options,
    model_type,
    open_model,
    precision_of,
    say_once,
)
from generation.parsing import one_line
from generation.processors import bound_pixels, open_processor
from generation.prompts import CAPTION
from generation.servers import SERVED, ChatServers, ServersFailed
from index.formats import middle

log = logging.getLogger(__name__)

MAX_WORDS = 60
MAX_TOKENS = 200


class Captioning:
    """Describes pictures in one line each; the model is loaded on first use.

    Attributes:
        model_id: A BLIP captioner's path or hub id, or a vision-language model's hub id or folder; of one
            behind servers, what they call it, with "server " before it.
        name: What makes captions differ: model, precision and prompt.
        empty: How many captions came out empty so far; they become "an image".
        tokens_written: How many tokens the model has written so far, padding not counted.
        money: What a model behind servers has cost so far, at the prices given for it.
    """

    def __init__(
        self,
        model_id: str,
        quantization: Quantization = "fp16",
        batch_size: int = 16,
        memory: GpuMemory | None = None,
        servers: ChatServers | None = None,
        pixels: int | None = None,
    ) -> None:
        """Takes what to open; nothing is loaded yet.

        Args:
            model_id: As the attribute; of a model behind servers without "server ".
            quantization: As for `generation.loading.precision_of`.
            batch_size: Pictures at a time.
            memory: Shared with other models.
            servers: Where the model runs, if not here.
            pixels: What a vision-language model reads of a picture at most; its processor's own when None.
        """
        self.model_id = f"{SERVED}{model_id}" if servers else model_id
        self.quantization = precision_of(quantization)
        # Servers keep their precision to themselves, and where they stand is no part of a caption.
        self.name = f"{self.model_id}: {CAPTION}"
        if not servers:
            made = f"{self.quantization} {pixels} pixels" if pixels else self.quantization
            self.name = f"{model_id} {made}: {CAPTION}"
        self.empty = 0
        self.tokens_written = 0
        self._batches = ShrinkingBatches(batch_size)
        self._memory = memory or GpuMemory()
        self._batches.make_room = lambda: self._memory.release_others(self)
        self._servers = servers
        self._pixels = pixels
        if servers is None and Path(model_id).exists() and model_type(model_id) == "blip":
            self._check_blip_precision()  # at once, where no hub need be asked

    @property
    def money(self) -> float:
        """What it has cost so far."""
        return self._servers.money if self._servers else 0.0

    def caption(self, images: list[Image.Image]) -> list[str]:
        """Describes RGB pictures, one line of at most `MAX_WORDS` words each, in order.

        Raises ValueError if the model cannot be opened, or does not fit into memory; ServersFailed if a
        server gives no answer, with the captions made before.
        """
        if not images:
            return []
        if self._servers is not None:
            return self._with_servers(self._servers, images)
        self._memory.acquire(self)
        describe = self._with_blip if self._blip else self._with_instructions
        return [self._line(text) for text in self._batches.map(images, describe, "captioning")]

    def load(self) -> None:
        """Loads the model, if it is not there; errors are those of `open_model`."""
        if not self._blip:
            _ = self._vision_language

    def release(self) -> None:
        """Lets go of the model; the next use loads it again."""
        if {"_blip", "_vision_language"} & self.__dict__.keys():
            log.info("releasing the captioner %s", self.model_id)
        self.__dict__.pop("_blip", None)
        self.__dict__.pop("_vision_language", None)
        free_memory()

    @cached_property
    def _blip(self) -> Any:
        """The BLIP captioner, or None when the model is another kind."""
        path = _blip_captioner(self.model_id)
        if path is None:
            return None
        import torch

        from BLIP.captioner import BlipCaptioner

        self._check_blip_precision()
        dtype = loading_options(self.quantization)["dtype"]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        say_once(f"loading {self.model_id} in {self.quantization}")
        return BlipCaptioner.open(path, device=device, dtype=dtype, batch_size=self._batches.size)

    def _check_blip_precision(self) -> None:
        if self.quantization.startswith("int"):
            raise ValueError(
                f"quantization: got {self.quantization} for a BLIP captioner, expected fp16, bf16 or fp32:"
                " it is small, and its loader knows no bitsandbytes"
            )

    @cached_property
    def _vision_language(self) -> tuple[Any, Any]:
        from transformers import AutoModelForImageTextToText

        processor = open_processor(self.model_id)
        if not (getattr(processor, "chat_template", None) and hasattr(processor, "image_processor")):
            raise ValueError(
                f"the model {self.model_id} has no chat template for pictures, expected a vision-language"
                " model that follows instructions, or a BLIP captioner"
            )
        # Else answers of unequal prompts in a batch come out empty.
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        model = open_model(AutoModelForImageTextToText, self.model_id, self.quantization)
        if self._pixels and not bound_pixels(model, processor, self._pixels):
            say_once(
                f"{self.model_id} reads every picture at its own size: caption_pixels has no effect on it"
            )
        return model, processor

    def _line(self, text: str) -> str:
        caption = one_line(text, MAX_WORDS, prompt=CAPTION)
        self.empty += not caption
        return caption or "an image"

    def _with_servers(self, servers: ChatServers, images: Sequence[Image.Image]) -> list[str]:
        try:
            texts = servers.describe(images, CAPTION, max_tokens=MAX_TOKENS)
        except ServersFailed as error:
            error.answers = [None if text is None else self._line(text) for text in error.answers]
            raise
        finally:
            self.tokens_written = servers.tokens_written
        return [self._line(text) for text in texts]

    def _with_blip(self, images: Sequence[Image.Image]) -> list[str]:
        longest = min(MAX_TOKENS, self._blip.positions)
        captions = self._blip.caption(images, max_length=longest)
        # A token at each end is the encoder's; of the two the model writes the last.
        encoded = self._blip.tokenizer.encode(captions, longest)
        self.tokens_written += int(encoded.mask.sum()) - len(captions)
        return captions

    def _with_instructions(self, images: Sequence[Image.Image]) -> list[str]:
        import torch

        model, processor = self._vision_language
        prompt = {"type": "text", "text": CAPTION}
        inputs = processor.apply_chat_template(
            [
                [{"role": "user", "content": [{"type": "image", "image": middle(image)}, prompt]}]
                for image in images
            ],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(model.device, model.dtype)
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
                pad_token_id=processor.tokenizer.pad_token_id,
            )
        new = output[:, inputs["input_ids"].shape[1] :]
        self.tokens_written += int((new != processor.tokenizer.pad_token_id).sum())
        return processor.batch_decode(new, skip_special_tokens=True)


def _blip_captioner(model_id: str) -> Path | None:
    """Returns where a BLIP captioner lies, fetched from the hub if need be; None for other models."""
    if model_type(model_id) != "blip":
        return None
    if (path := Path(model_id)).exists():
        return path
    from BLIP.weight_files import fetch_checkpoint

    return fetch_checkpoint(model_id)
