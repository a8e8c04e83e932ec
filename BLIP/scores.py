"""How well a BLIP retrieves, matches and describes, over a whole split of a dataset.

    python -m BLIP.scores --model BLIP/weights/demo --dataset demo --split test

Prints, for each comment number, the recall of an image by its own caption, and Recall@1 after the matching
head has re-ranked the ten best; for the demo scenes also the captioner's precision and recall of objects.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from BLIP.captioner import BlipCaptioner
from BLIP.images import to_pixels
from BLIP.model import BlipEncoder
from index.decode import open_image
from playground import open_dataset
from records import Dataset, Query

CUTOFFS = (1, 5, 10)
RERANKED = 10  # best images that the matching head looks at
COSINE_WEIGHT = 20.0  # 1 over the contrast's temperature; chosen on the demo's dev split among 0 to 100
PICTURE_BATCH = 50
PAIR_BATCH = 64


def image_states(encoder: BlipEncoder, dataset: Dataset) -> torch.Tensor:
    """Runs the vision tower over all images of a split; (images, 1 + patches, width) on the CPU."""
    states = []
    for start in tqdm(range(0, len(dataset.images), PICTURE_BATCH), desc="images", unit="batch", leave=False):
        pictures = [open_image(image.path) for image in dataset.images[start : start + PICTURE_BATCH]]
        states.append(encoder.image_hidden(to_pixels(pictures, encoder.image_size)).cpu())
    return torch.cat(states)


def by_caption_number(dataset: Dataset) -> dict[str, list[Query]]:
    """Groups queries by comment number; a query id ends in ``#comment_number``.

    Raises:
        ValueError: If a query has no single target, as those of MSR-VTT: there is no rank to score.
    """
    groups = defaultdict(list)
    for query in dataset.queries:
        if query.target is None:
            raise ValueError(
                f"{dataset.name}: query {query.id} has no one target to rank; score another dataset"
            )
        groups[query.id.rsplit("#", 1)[-1]].append(query)
    return dict(sorted(groups.items()))


def target_ranks(
    encoder: BlipEncoder, states: torch.Tensor, dataset: Dataset, queries: Sequence[Query], rerank: bool
) -> np.ndarray:
    """Ranks each query's target by the embeddings, and perhaps by the matching head.

    Re-ranking gives the `RERANKED` best images a new order among themselves: an image scores the log odds of
    a match plus `COSINE_WEIGHT` times the cosine. Both are logarithms of how likely the image is, by the
    matching head and by the contrast.

    Args:
        encoder: The model.
        states: From `image_states`.
        dataset: The split.
        queries: Of the split.
        rerank: Whether the matching head re-ranks.

    Returns:
        (queries,) int64, from 1; images of equal score rank by position.

    Source: Li et al. 2022, arXiv 2201.12086, section 5.1 (re-ranking of the k best candidates); their code
    adds the match logit to the plain cosine, which leaves the contrast next to no say.
    """
    texts = [query.text for query in queries]
    device = encoder.model.device
    rows = torch.nn.functional.normalize(encoder.image_features(states.to(device)), dim=-1)
    scores = encoder.encode_texts(texts) @ rows.cpu().numpy().T
    place = {image.id: row for row, image in enumerate(dataset.images)}
    targets = np.array([place[query.target or ""] for query in queries])
    if not rerank:
        return _ranks(scores, targets)
    order = COSINE_WEIGHT * scores
    best = np.argsort(-scores, axis=1, kind="stable")[:, :RERANKED]
    for start in tqdm(range(0, len(texts), PAIR_BATCH), desc="matching", unit="batch", leave=False):
        part = slice(start, start + PAIR_BATCH)
        tokens = encoder.tokenizer.encode(texts[part], encoder.text_limit, first=encoder.tokenizer.enc_id)
        for chosen in best[part].T:  # the best image of each text, then the second best, ...
            hidden = encoder.text_hidden(tokens.ids, tokens.mask, states[chosen].to(device))
            logits = encoder.match_logits(hidden).cpu().numpy()
            # 1,000 lifts the re-ranked ones above all others.
            order[np.arange(start, start + len(chosen)), chosen] += 1000 + logits[:, 1] - logits[:, 0]
    return _ranks(order, targets)


def recall_by_caption(encoder: BlipEncoder, dataset: Dataset) -> dict[str, float]:
    """Returns Recall@10 by comment number, by the embeddings alone."""
    states = image_states(encoder, dataset)
    return {
        number: float((target_ranks(encoder, states, dataset, queries, rerank=False) <= 10).mean())
        for number, queries in by_caption_number(dataset).items()
    }


def score(model: Path, dataset: Dataset) -> dict[str, Any]:
    """Scores a checkpoint.

    Args:
        model: File or folder of a retrieval model; for the demo its captioner is scored too.
        dataset: The split.

    Returns:
        JSON-able: recalls by comment number and, for the demo, the captioner's objects.

    Raises:
        FileNotFoundError: If the checkpoint is missing.
        ValueError: If it is no retrieval model.
    """
    encoder = BlipEncoder.open(model)
    states = image_states(encoder, dataset)
    result: dict[str, Any] = {"images": len(dataset.images)}
    for number, queries in by_caption_number(dataset).items():
        ranks = target_ranks(encoder, states, dataset, queries, rerank=False)
        reranked = target_ranks(encoder, states, dataset, queries, rerank=True)
        result[f"comment {number}"] = {f"R@{cutoff}": float((ranks <= cutoff).mean()) for cutoff in CUTOFFS}
        result[f"comment {number}"]["R@1 re-ranked"] = float((reranked == 1).mean())
    if dataset.name == "demo":
        from playground.demo.scoring import object_scores

        captioner = BlipCaptioner.open(model, batch_size=PICTURE_BATCH)
        captions = []
        for start in tqdm(range(0, len(dataset.images), PICTURE_BATCH), desc="captioning", unit="batch"):
            pictures = [open_image(image.path) for image in dataset.images[start : start + PICTURE_BATCH]]
            captions += captioner.caption(pictures, max_length=60)
        seeds = [int(Path(image.id).stem) for image in dataset.images]
        result["captioner"] = object_scores(captions, seeds)
    return result


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
        root: The dataset's folder; the usual one if not given.
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
