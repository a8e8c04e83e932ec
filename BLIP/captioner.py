"""The captioner: `BlipCaptioner` describes pictures.

The image is read by `BLIP.towers`, the words are written by transformers' decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from transformers import BlipForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from BLIP import images as pictures
from BLIP.beam_search import beam_search
from BLIP.checkpoints import load_captioner, share_vision
from BLIP.model import checked_batch
from BLIP.packed import can_pack, pack
from BLIP.sizes import read_settings
from BLIP.tokenizer import Tokenizer
from BLIP.weight_files import find_weights, fingerprint

PROMPT = "a picture of "  # what the released captioners were trained to begin with


class BlipCaptioner:
    """Describes images.

    Attributes:
        model: The transformers model.
        tokenizer: Its tokenizer.
        image_size: Side of the images it reads, in pixels.
        prompt: What a caption begins with unless told otherwise; it is cut off again.
        fingerprint: Of the weights file.
    """

    def __init__(
        self,
        model: BlipForConditionalGeneration,
        tokenizer: Tokenizer,
        fingerprint: str,
        prompt: str,
        batch_size: int,
    ) -> None:
        self.model: Any = model  # transformers types its configurations too loosely to read
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.prompt = prompt
        self.image_size: int = self.model.config.vision_config.image_size
        self._vision = share_vision(model)
        self._batch_size = checked_batch(batch_size)

    @classmethod
    def open(
        cls,
        path: Path | str,
        image_size: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        batch_size: int = 16,
        config: Mapping[str, Any] | Path | str | None = None,
        vocabulary: Path | str | None = None,
    ) -> BlipCaptioner:
        """Opens a captioner's checkpoint; arguments and errors are those of `BlipEncoder.open`.

        The default prompt is ``"prompt"`` in the configuration, or else the released models' "a picture of ".
        """
        weights = find_weights(path)
        tokenizer = Tokenizer.open(vocabulary or weights)
        model = load_captioner(
            weights, image_size=image_size, config=config, tokenizer=tokenizer, device=device, dtype=dtype
        )
        stated = read_settings(config, weights).prompt
        captioner = cls(
            model, tokenizer, fingerprint(weights), PROMPT if stated is None else stated, batch_size
        )
        if model.device.type == "cpu" and can_pack():
            pack(captioner._vision)
            pack(model.text_decoder)
            del model.vision_model  # whose weights the tower has packed
        return captioner

    def caption(
        self,
        images: Sequence[Image.Image],
        prompt: str | None = None,
        *,
        num_beams: int = 3,
        max_length: int = 20,
        min_length: int = 5,
        repetition_penalty: float = 1.0,
        length_penalty: float = 1.0,
    ) -> list[str]:
        """Describes pictures, one sentence each.

        Args:
            images: PIL images of any mode and size.
            prompt: What the caption continues; not part of what is returned. None: the model's own.
            num_beams: 1 takes the likeliest word each time; more search with the reference's length rule.
            max_length: The most tokens, prompt counted.
            min_length: The fewest tokens, prompt counted.
            repetition_penalty: Above 1, words already said become less likely.
            length_penalty: Of the beam search; above 1 favours longer captions.

        Returns:
            Captions in the order given.

        Raises:
            ValueError: If a setting is out of range.
        """
        captions = []
        for start in range(0, len(images), self._batch_size):
            pixels = pictures.to_pixels(images[start : start + self._batch_size], self.image_size)
            ids = self.generate(
                pixels,
                prompt,
                num_beams=num_beams,
                max_length=max_length,
                min_length=min_length,
                repetition_penalty=repetition_penalty,
                length_penalty=length_penalty,
            )
            captions += [caption.strip() for caption in self.read(ids, prompt)]
        return captions

    def prompt_ids(self, prompt: str | None = None) -> torch.Tensor:
        """Returns the tokens a caption begins with, (1, p) int64: [DEC] and the prompt, no [SEP]."""
        words = self.prompt if prompt is None else prompt
        limit: int = self.model.config.text_config.max_position_embeddings
        return self.tokenizer.encode([words], limit, first=self.tokenizer.dec_id).ids[:, :-1]

    @torch.inference_mode()
    def image_hidden(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, size, size) pixel values to (n, 1 + patches, width) states."""
        return self._vision(pixels.to(self.model.device, self.model.dtype))

    @torch.inference_mode()
    def generate(
        self,
        pixels: torch.Tensor,
        prompt: str | None = None,
        *,
        num_beams: int,
        max_length: int,
        min_length: int,
        repetition_penalty: float,
        length_penalty: float,
    ) -> torch.Tensor:
        """Generates from pixel values, (n, 3, size, size); the settings are those of `caption`.

        Returns:
            (n, length) int64: [DEC], prompt, caption, [SEP], padding.

        Raises:
            ValueError: If a setting is out of range.
        """
        start = self.prompt_ids(prompt)
        positions: int = self.model.config.text_config.max_position_embeddings
        if not start.shape[1] < max_length <= positions:
            raise ValueError(
                f"max_length {max_length} is out of range: the prompt takes {start.shape[1]} tokens and the"
                f" model has {positions} positions; give {start.shape[1] + 1} to {positions}"
            )
        if num_beams < 1 or not 0 <= min_length <= max_length or repetition_penalty <= 0:
            raise ValueError(
                f"expected num_beams >= 1, 0 <= min_length <= max_length and repetition_penalty > 0, got"
                f" num_beams={num_beams}, min_length={min_length}, max_length={max_length},"
                f" repetition_penalty={repetition_penalty}"
            )
        hidden = self.image_hidden(pixels)
        start = start.to(hidden.device).repeat(len(hidden), 1)
        sep, pad = self.tokenizer.sep_id, self.tokenizer.pad_id
        if num_beams > 1:
            return beam_search(
                _Decoder(self.model, hidden.repeat_interleave(num_beams, dim=0)),
                start,
                num_beams=num_beams,
                max_length=max_length,
                min_length=min_length,
                end_id=sep,
                pad_id=pad,
                repetition_penalty=repetition_penalty,
                length_penalty=length_penalty,
            )
        return self.model.text_decoder.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            encoder_hidden_states=hidden,
            do_sample=False,
            num_beams=1,
            max_length=max_length,
            min_length=min_length,
            repetition_penalty=repetition_penalty,
            eos_token_id=sep,
            pad_token_id=pad,
        )

    def read(self, ids: torch.Tensor, prompt: str | None = None) -> list[str]:
        """Turns generated ids, (n, length), into captions: decoded, less the prompt's characters."""
        cut = len(self.prompt if prompt is None else prompt)
        return [self.tokenizer.decode(row)[cut:] for row in ids.tolist()]


class _Decoder:
    """Next-token logits for the beam search; keeps what it computed for earlier tokens."""

    def __init__(self, model: BlipForConditionalGeneration, image_hidden: torch.Tensor) -> None:
        self._decoder: Any = model.text_decoder
        self._hidden = image_hidden
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def __call__(self, tokens: torch.Tensor, parents: torch.Tensor | None) -> torch.Tensor:
        new = tokens
        if parents is not None:
            self._cache.reorder_cache(cast(torch.LongTensor, parents))
            new = tokens[:, -1:]
        output = self._decoder(
            input_ids=new,
            attention_mask=torch.ones_like(tokens),
            encoder_hidden_states=self._hidden,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]
