"""The two models a search needs: `BlipEncoder` embeds and matches, `BlipCaptioner` describes.

```python
encoder = BlipEncoder.open("BLIP/weights/demo")
rows = encoder.encode_images(pictures) @ encoder.encode_texts(["a dog on the beach"]).T
```
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from BLIP import images as pictures
from BLIP.beam_search import beam_search
from BLIP.checkpoints import load_captioner, load_retrieval
from BLIP.sizes import read_settings
from BLIP.tokenizer import Tokenizer
from BLIP.weight_files import find_weights, fingerprint

logger = logging.getLogger(__name__)

TEXT_LIMIT = 200  # tokens, as ChatIR cuts its dialogs; fewer where the model has fewer positions
PROMPT = "a picture of "  # what the released captioners were trained to begin with


class BlipEncoder:
    """Embeds images and texts in one space, and judges pairs of them.

    Attributes:
        model: The transformers model.
        tokenizer: Its tokenizer.
        image_size: Side of the images it reads, in pixels.
        text_limit: The most tokens of a text; longer texts are cut, which is logged.
        dimension: Width of the rows.
        fingerprint: Of the weights file.
        truncated: How many texts have been cut so far.
    """

    def __init__(
        self, model: BlipForImageTextRetrieval, tokenizer: Tokenizer, fingerprint: str, batch_size: int
    ) -> None:
        self.model: Any = model  # transformers types its configurations too loosely to read
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.image_size: int = self.model.config.vision_config.image_size
        self.text_limit = min(TEXT_LIMIT, self.model.config.text_config.max_position_embeddings)
        self.dimension: int = self.model.text_proj.out_features
        self.truncated = 0
        self._batch_size = _checked_batch(batch_size)

    @classmethod
    def open(
        cls,
        path: Path | str,
        image_size: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        batch_size: int = 32,
        config: Mapping[str, Any] | Path | str | None = None,
        vocabulary: Path | str | None = None,
    ) -> BlipEncoder:
        """Opens a retrieval checkpoint.

        Args:
            path: A weights file, or a folder with one, of any format that `BLIP.checkpoints` reads.
            image_size: Side of the images in pixels; None: what the file was trained for.
            device: Where to compute.
            dtype: Of the weights; the rows are float32 whatever it is.
            batch_size: Images, texts or pairs computed at a time.
            config: As for `BLIP.sizes.read_settings`.
            vocabulary: A vocabulary file; None: ``vocab.txt`` beside the weights.

        Raises:
            FileNotFoundError: If the weights or the vocabulary are not there.
            ValueError: If they do not make a retrieval model.
        """
        weights = find_weights(path)
        tokenizer = Tokenizer.open(vocabulary or weights)
        model = load_retrieval(
            weights, image_size=image_size, config=config, tokenizer=tokenizer, device=device, dtype=dtype
        )
        return cls(model, tokenizer, fingerprint(weights), batch_size)

    def prepare_image(self, image: Image.Image) -> Image.Image:
        """Resizes a picture to what the model reads; `encode_images` gives the same rows with it or without.

        Threads that decode call it, so that resizing does not keep the model waiting.
        """
        return pictures.resize(image, self.image_size)

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embeds pictures.

        Args:
            images: PIL images of any mode and size.

        Returns:
            (n, dimension) float32, rows of length 1, in the order given.
        """
        rows = np.empty((len(images), self.dimension), dtype=np.float32)
        for start in range(0, len(images), self._batch_size):
            batch = images[start : start + self._batch_size]
            features = self.image_features(self.image_hidden(pictures.to_pixels(batch, self.image_size)))
            rows[start : start + len(batch)] = normalize(features, dim=-1).cpu().numpy()
        return rows

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts, read by themselves and beginning with [CLS].

        Args:
            texts: Of any length; those over `text_limit` tokens are cut.

        Returns:
            (n, dimension) float32, rows of length 1, in the order given.

        Raises:
            ValueError: If one string is given in place of a list.
        """
        _refuse_one_string(texts)
        rows = np.empty((len(texts), self.dimension), dtype=np.float32)
        # Texts of like length share a batch, so that little is computed for padding.
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            ids, mask = self._tokens([texts[number] for number in batch])
            features = self.text_features(self.text_hidden(ids, mask))
            rows[batch] = normalize(features, dim=-1).cpu().numpy()
        return rows

    def match(self, images: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
        """Judges whether each image shows what the text beside it says.

        The text begins with [ENC], as the matching head was trained and as the paper reranks. (The
        reference's own ``BLIP_ITM.forward`` leaves [CLS] there, and its logits differ.)

        Args:
            images: PIL images.
            texts: As many; text n is judged with image n.

        Returns:
            (n,) float32, probabilities that the pair matches.

        Raises:
            ValueError: If there are not as many texts as images.
        """
        _refuse_one_string(texts)
        if len(images) != len(texts):
            raise ValueError(
                f"got {len(images)} images and {len(texts)} texts, expected as many: repeat the one"
            )
        chances = np.empty(len(texts), dtype=np.float32)
        for start in range(0, len(texts), self._batch_size):
            part = slice(start, start + self._batch_size)
            hidden = self.image_hidden(pictures.to_pixels(images[part], self.image_size))
            ids, mask = self._tokens(texts[part], first=self.tokenizer.enc_id)
            logits = self.match_logits(self.fused_hidden(ids, mask, hidden))
            chances[part] = logits.softmax(dim=-1)[:, 1].cpu().numpy()
        return chances

    @torch.inference_mode()
    def image_hidden(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, size, size) pixel values to (n, 1 + patches, width) states, of the model's dtype."""
        pixels = pixels.to(self.model.device, self.model.dtype)
        return self.model.vision_model(pixels).last_hidden_state

    @torch.inference_mode()
    def text_hidden(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(n, length) ids and mask to (n, length, width) states; the text alone, every token sees all."""
        device = self.model.device
        return self.model.text_encoder(ids.to(device), attention_mask=mask.to(device)).last_hidden_state

    @torch.inference_mode()
    def fused_hidden(self, ids: torch.Tensor, mask: torch.Tensor, image_hidden: torch.Tensor) -> torch.Tensor:
        """As `text_hidden`, with the states of image n read by text n."""
        device = self.model.device
        return self.model.text_encoder(
            ids.to(device), attention_mask=mask.to(device), encoder_hidden_states=image_hidden
        ).last_hidden_state

    @torch.inference_mode()
    def image_features(self, image_hidden: torch.Tensor) -> torch.Tensor:
        """(n, tokens, width) states to (n, dimension) float32 features, not normalised."""
        return self.model.vision_proj(image_hidden[:, 0]).float()

    @torch.inference_mode()
    def text_features(self, text_hidden: torch.Tensor) -> torch.Tensor:
        """(n, tokens, width) states to (n, dimension) float32 features, not normalised."""
        return self.model.text_proj(text_hidden[:, 0]).float()

    @torch.inference_mode()
    def match_logits(self, fused_hidden: torch.Tensor) -> torch.Tensor:
        """(n, tokens, width) fused states to (n, 2) float32 logits: no match, match."""
        return self.model.itm_head(fused_hidden[:, 0]).float()

    def _tokens(self, texts: Sequence[str], first: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.tokenizer.encode(texts, self.text_limit, first=first)
        if tokens.truncated:
            self.truncated += tokens.truncated
            logger.warning("%d texts were cut to %d tokens", tokens.truncated, self.text_limit)
        return tokens.ids, tokens.mask


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
        self._batch_size = _checked_batch(batch_size)

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
        return cls(model, tokenizer, fingerprint(weights), PROMPT if stated is None else stated, batch_size)

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
        pixels = pixels.to(self.model.device, self.model.dtype)
        return self.model.vision_model(pixels).last_hidden_state

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


def _checked_batch(batch_size: int) -> int:
    if batch_size < 1:
        raise ValueError(f"got batch_size={batch_size}, expected at least 1")
    return batch_size


def _refuse_one_string(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise ValueError("got one str, expected a sequence of texts: put it in a list")
