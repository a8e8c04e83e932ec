"""The captioner: `BlipCaptioner` describes pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from BLIP import images as pictures
from BLIP.checkpoints import load_captioner
from BLIP.model import checked_batch
from BLIP.packed import can_pack, pack
from BLIP.sizes import read_stated
from BLIP.tokenizer import Tokenizer
from BLIP.towers import Captioner
from BLIP.weight_files import content, find_weights

SMALL = 256  # width of a decoder; the demo's has 192, BLIP base 768
PROMPT = "a picture of "  # what the released captioners were trained to begin with


@contextmanager
def _few_threads(model: Captioner) -> Iterator[None]:
    """Has a small model compute with one thread, as it was before afterwards.

    Its steps are so short that threads mostly wait for each other, and where another process keeps a core
    busy, a spinning wait takes many times as long as the step.
    """
    before = torch.get_num_threads()
    if model.text_decoder.config.hidden_size <= SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class BlipCaptioner:
    """Describes images with the vision tower and transformers' text decoder.

    Attributes:
        image_size: Side of the images it reads, in pixels.
        positions: Longest text in tokens.
        prompt: What a caption begins with unless told otherwise; it is cut off again.
        fingerprint: Of weights and configuration.
    """

    def __init__(
        self, model: Captioner, tokenizer: Tokenizer, fingerprint: str, prompt: str, batch_size: int
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.prompt = prompt
        self.image_size = model.sizes.image_size
        self.positions = model.sizes.positions
        self._batch_size = checked_batch(batch_size)

    @classmethod
    def open(
        cls,
        path: Path | str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 16,
    ) -> BlipCaptioner:
        """Opens a captioner's checkpoint, its weights as `dtype`; other arguments as for `BlipEncoder.open`.

        The default prompt is ``"prompt"`` in the configuration, or else the released models' "a picture of ".
        """
        weights = find_weights(path)
        tokenizer = Tokenizer.open(weights)
        model = load_captioner(weights, tokenizer, device=device, dtype=dtype)
        if model.device.type == "cpu" and can_pack():
            pack(model)
        stated = read_stated(weights).prompt
        return cls(model, tokenizer, content(weights), PROMPT if stated is None else stated, batch_size)

    def caption(
        self,
        images: Sequence[Image.Image],
        prompt: str | None = None,
        *,
        max_length: int = 20,
        min_length: int = 5,
    ) -> list[str]:
        """Describes PIL images of any mode and size, one sentence each, taking the likeliest word each time.

        Args:
            images: In the order of which captions are returned.
            prompt: What the caption continues; not part of what is returned. None: the model's own.
            max_length: The most tokens, prompt counted; out of range is a ValueError.
            min_length: The fewest tokens, prompt counted.
        """
        captions = []
        for start in range(0, len(images), self._batch_size):
            pixels = pictures.to_pixels(images[start : start + self._batch_size], self.image_size)
            with _few_threads(self.model):
                ids = self.generate(pixels, prompt, max_length=max_length, min_length=min_length)
            captions += [caption.strip() for caption in self.read(ids, prompt)]
        return captions

    def prompt_ids(self, prompt: str | None = None) -> torch.Tensor:
        """Returns the tokens a caption begins with, (1, p) int64: [DEC] and the prompt, no [SEP]."""
        words = self.prompt if prompt is None else prompt
        return self.tokenizer.encode([words], self.positions, first=self.tokenizer.dec_id).ids[:, :-1]

    @torch.inference_mode()
    def image_hidden(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, size, size) pixel values to (n, 1 + patches, width) states."""
        return self.model.vision_model(pixels.to(self.model.device, self.model.dtype))

    @torch.inference_mode()
    def generate(
        self, pixels: torch.Tensor, prompt: str | None = None, *, max_length: int, min_length: int = 0
    ) -> torch.Tensor:
        """Generates greedily from (n, 3, size, size) pixel values; other arguments as for `caption`.

        Returns:
            (n, length) int64: [DEC], prompt, caption, [SEP], padding.
        """
        start = self.prompt_ids(prompt)
        if not start.shape[1] < max_length <= self.positions:
            raise ValueError(
                f"max_length {max_length} is out of range: the prompt takes {start.shape[1]} tokens and the"
                f" model has {self.positions} positions; give {start.shape[1] + 1} to {self.positions}"
            )
        if not 0 <= min_length <= max_length:
            raise ValueError(f"got min_length={min_length}, expected 0 to max_length, {max_length}")
        hidden = self.image_hidden(pixels)
        start = start.to(hidden.device).repeat(len(hidden), 1)
        return self.model.text_decoder.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            encoder_hidden_states=hidden,
            do_sample=False,
            num_beams=1,
            max_length=max_length,
            min_length=min_length,
            eos_token_id=self.tokenizer.sep_id,
            pad_token_id=self.tokenizer.pad_id,
        )

    def read(self, ids: torch.Tensor, prompt: str | None = None) -> list[str]:
        """Turns generated ids, (n, length), into captions: decoded, less the prompt's characters."""
        cut = len(self.prompt if prompt is None else prompt)
        return [self.tokenizer.decode(row)[cut:] for row in ids.tolist()]
