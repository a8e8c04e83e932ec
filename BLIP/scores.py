"""How well a BLIP retrieves: recall of each image by its own captions, over a whole split.

python -m BLIP.scores --model BLIP/weights/demo --dataset demo --split test
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from transformers import BlipForImageTextRetrieval

from BLIP.model import BlipEncoder
from BLIP.tokenizer import Tokenizer
from embedding.decode import open_image
from records import Dataset

log = logging.getLogger(__name__)

CUTOFFS = (1, 5, 10)


def recall_by_caption(
    model: BlipForImageTextRetrieval, tokenizer: Tokenizer, dataset: Dataset
) -> dict[str, dict[int, float]]:
    """Scores a model while it trains; see `BlipEncoder` and `recall`."""
    was_training = model.training
    model.eval()
    encoder = BlipEncoder(model, tokenizer, "in training", batch_size=100)
    scores = {number: recall(values) for number, values in ranks_by_caption(encoder, dataset).items()}
    model.train(was_training)
    return scores


def ranks_by_caption(encoder: BlipEncoder, dataset: Dataset) -> dict[str, np.ndarray]:
    """Returns the rank of each captioned image, by comment number.

    Args:
        encoder: The model.
        dataset: Images and queries with targets; a query id ends in ``#comment_number``.

    Returns:
        For each comment number the 1-based ranks, (queries,) int64; images of equal score rank by position.
    """
    rows = np.concatenate(
        [
            encoder.encode_images([open_image(image.path) for image in dataset.images[start : start + 100]])
            for start in range(0, len(dataset.images), 100)
        ]
    )
    place = {image.id: number for number, image in enumerate(dataset.images)}
    groups = defaultdict(list)
    for query in dataset.queries:
        groups[query.id.rsplit("#", 1)[-1]].append(query)
    ranks = {}
    for number, queries in sorted(groups.items()):
        scores = encoder.encode_texts([query.text for query in queries]) @ rows.T
        targets = np.array([place[query.target] for query in queries])
        own = scores[np.arange(len(queries)), targets][:, None]
        before = (scores == own) & (np.arange(len(rows)) < targets[:, None])
        ranks[number] = 1 + (scores > own).sum(axis=1) + before.sum(axis=1)
    return ranks


def recall(ranks: np.ndarray, cutoffs: Sequence[int] = CUTOFFS) -> dict[int, float]:
    """Returns the share of ranks within each cutoff."""
    return {cutoff: float((ranks <= cutoff).mean()) for cutoff in cutoffs}
