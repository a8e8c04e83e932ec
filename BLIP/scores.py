"""How well a BLIP retrieves, matches and describes, over a whole split of a dataset.

    python -m BLIP.scores --model BLIP/weights/demo --dataset demo --split test

Prints, for each comment number, the recall of an image by its own caption, and Recall@1 after the matching
head re-ranked the ten best; for the demo scenes also the captioner's precision and recall of objects.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import BlipForImageTextRetrieval

from BLIP.captioner import BlipCaptioner
from BLIP.checkpoints import share_towers
from BLIP.images import to_pixels
from BLIP.model import BlipEncoder
from BLIP.tokenizer import Tokenizer
from index.decode import open_image
from playground import open_dataset
from records import Dataset, Query

log = logging.getLogger(__name__)

CUTOFFS = (1, 5, 10)
RERANKED = 10  # best images that the matching head looks at
COSINE_WEIGHT = 20.0  # 1 over the contrast's temperature; chosen on the demo's dev split among 0 to 100


@dataclass(frozen=True)
class Seen:
    """A split as one model sees it.

    Attributes:
        hidden: States of all images, (images, tokens, width).
        rows: Their embeddings, (images, dimension) float32, unit rows.
        place: Row by image id.
    """

    hidden: torch.Tensor
    rows: np.ndarray
    place: dict[str, int]


def see(encoder: BlipEncoder, dataset: Dataset, batch_size: int = 100) -> Seen:
    """Runs the vision tower over all images of a split."""
    hidden = []
    for start in tqdm(range(0, len(dataset.images), batch_size), desc="images", unit="batch", leave=False):
        pictures = [open_image(image.path) for image in dataset.images[start : start + batch_size]]
        hidden.append(encoder.image_hidden(to_pixels(pictures, encoder.image_size)).cpu())
    states = torch.cat(hidden)
    features = encoder.image_features(states.to(encoder.model.device))
    rows = torch.nn.functional.normalize(features, dim=-1).cpu().numpy()
    return Seen(states, rows, {image.id: row for row, image in enumerate(dataset.images)})


def by_caption_number(dataset: Dataset) -> dict[str, list[Query]]:
    """Groups queries by comment number; a query id ends in ``#comment_number``.

    Raises:
        ValueError: If a query has no one target, as those of MSR-VTT: there is no rank to score.
    """
    groups = defaultdict(list)
    for query in dataset.queries:
        if query.target is None:
            raise ValueError(
                f"{dataset.name}: query {query.id} has no one target to rank; score another dataset"
            )
        groups[query.id.rsplit("#", 1)[-1]].append(query)
    return dict(sorted(groups.items()))


def embedding_ranks(encoder: BlipEncoder, seen: Seen, queries: Sequence[Query]) -> np.ndarray:
    """Ranks each query's target by the embeddings alone.

    Returns:
        (queries,) int64, from 1; images of equal score rank by position.
    """
    scores = encoder.encode_texts([query.text for query in queries]) @ seen.rows.T
    return _ranks(scores, _targets(queries, seen))


def matched_ranks(
    encoder: BlipEncoder, seen: Seen, queries: Sequence[Query], batch_size: int = 64
) -> np.ndarray:
    """Ranks each query's target after the matching head put the `RERANKED` best into its own order.

    The text begins with [ENC]. An image scores the log odds of a match plus `COSINE_WEIGHT` times the cosine:
    both are logarithms of how likely the image is, by the matching head and by the contrast.

    Returns:
        (queries,) int64, from 1.

    Source: Li et al. 2022, arXiv 2201.12086, section 5.1 (re-ranking of the k best candidates); their code
    adds the match logit to the plain cosine, which leaves the contrast next to no say.
    """
    texts = [query.text for query in queries]
    scores = encoder.encode_texts(texts) @ seen.rows.T
    order = COSINE_WEIGHT * scores
    best = np.argsort(-scores, axis=1, kind="stable")[:, :RERANKED]
    for start in tqdm(range(0, len(texts), batch_size), desc="matching", unit="batch", leave=False):
        part = slice(start, start + batch_size)
        tokens = encoder.tokenizer.encode(texts[part], encoder.text_limit, first=encoder.tokenizer.enc_id)
        for column in range(best.shape[1]):
            chosen = best[part, column]
            fused = encoder.fused_hidden(
                tokens.ids, tokens.mask, seen.hidden[chosen].to(encoder.model.device)
            )
            logits = encoder.match_logits(fused).cpu().numpy()
            # 1,000 lifts the re-ranked ones above all others
            order[np.arange(start, start + len(chosen)), chosen] += 1000 + logits[:, 1] - logits[:, 0]
    return _ranks(order, _targets(queries, seen))


def recall(ranks: np.ndarray, cutoffs: Sequence[int] = CUTOFFS) -> dict[int, float]:
    """Returns the share of ranks within each cutoff."""
    return {cutoff: float((ranks <= cutoff).mean()) for cutoff in cutoffs}


def recall_by_caption(
    model: BlipForImageTextRetrieval, tokenizer: Tokenizer, dataset: Dataset
) -> dict[str, dict[int, float]]:
    """Scores a model while it trains, by the embeddings alone, for each comment number."""
    was_training = model.training
    model.eval()
    encoder = BlipEncoder(share_towers(model), tokenizer, "in training", batch_size=100)
    seen = see(encoder, dataset)
    groups = by_caption_number(dataset).items()
    scores = {number: recall(embedding_ranks(encoder, seen, queries)) for number, queries in groups}
    model.train(was_training)
    return scores


def score(model: Path, dataset: Dataset) -> dict[str, Any]:
    """Scores a checkpoint.

    Args:
        model: File or folder of a retrieval model; its captioner is scored too where there is one.
        dataset: The split.

    Returns:
        JSON-able: recalls by comment number and, for the demo, the captioner's objects.

    Raises:
        FileNotFoundError: If the checkpoint is missing.
        ValueError: If it is no retrieval model.
    """
    encoder = BlipEncoder.open(model, batch_size=100)
    seen = see(encoder, dataset)
    result: dict[str, Any] = {"images": len(dataset.images)}
    for number, queries in by_caption_number(dataset).items():
        plain = recall(embedding_ranks(encoder, seen, queries))
        result[f"comment {number}"] = {f"R@{cutoff}": value for cutoff, value in plain.items()} | {
            "R@1 re-ranked": recall(matched_ranks(encoder, seen, queries))[1]
        }
    if dataset.name == "demo":
        from playground.demo.scoring import object_scores

        captioner = BlipCaptioner.open(model, batch_size=50)
        pictures = [open_image(image.path) for image in tqdm(dataset.images, desc="opening", leave=False)]
        captions = []
        for start in tqdm(range(0, len(pictures), 50), desc="captioning", unit="batch", leave=False):
            captions += captioner.caption(pictures[start : start + 50], num_beams=1, max_length=60)
        seeds = [int(Path(image.id).stem) for image in dataset.images]
        result["captioner"] = object_scores(captions, seeds)
    return result


def _targets(queries: Sequence[Query], seen: Seen) -> np.ndarray:
    return np.array([seen.place[query.target] for query in queries if query.target is not None])


def _ranks(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    own = scores[np.arange(len(scores)), targets][:, None]
    before = (scores == own) & (np.arange(scores.shape[1]) < targets[:, None])
    return 1 + (scores > own).sum(axis=1) + before.sum(axis=1)


@dataclass(frozen=True)
class ScoreSettings:
    """Scores a BLIP on a split.

    Attributes:
        model: Checkpoint, a file or a folder.
        dataset: Name of a playground dataset.
        split: Part of the dataset.
        root: The dataset's folder; the usual one when not given.
    """

    model: Path
    dataset: str
    split: str
    root: Path | None = None


def main() -> None:
    """Runs from the command line."""
    import tyro

    settings = tyro.cli(ScoreSettings)
    result = score(settings.model, open_dataset(settings.dataset, settings.root, settings.split))
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    from settings import run_script

    raise SystemExit(run_script(main))
