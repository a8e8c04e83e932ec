"""Calibration: how much a query and a pick tell about the image in mind, fitted to each index without labels.

Three numbers of the posterior in `feedback.strategies.bayes` depend on encoder and collection. They are
fitted by maximum likelihood to sessions that the system plays with itself: the first words of its own caption
of an image are the query for that image (as sentences are in the Inverse Cloze Task, Lee et al. 2019, arXiv
1906.00300), the ranking is scrolled, and a pseudo-user picks on each page.

- The prior's temperature: the likelihood of those images under softmax(similarity / temperature).
- The weight of the picture vectors: the likelihood of the picks of a pseudo-user who compares captions.
- The weight of the caption vectors: likewise, of one who compares pictures.

Neither is fitted to its own similarity: that would be the most certain judge there is. Both are then halved,
since captions are made of the same pictures and agree with them more than a person does. Together the halves
are the logarithmic opinion pool of two user models with equal shares (Genest and Zidek 1986, Statistical
Science 1); on Flickr8k's development pictures the unhalved weights were two to three times those that fit the
independent user, on COCO's captions about right.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from index.scores import all_scores, best_rows

SESSIONS = 1000
AT_ONCE = 64  # sessions whose scores are in memory
WORDS = 5  # of a caption that serve as a query
PAGES, SHOWN = 3, 10
SHARE = 0.5
TEMPERATURES = np.geomspace(0.01, 1, 41)
WEIGHTS = np.concatenate([[0.0], np.geomspace(0.3, 40, 41)])
NOISE = 0.05  # share of picks at random in the user model


@dataclass(frozen=True)
class Calibration:
    """The user model's numbers; the defaults are those of the demo's drawings, for an index without captions.

    Attributes:
        prior: Temperature of the query's similarities, in cosines.
        pictures: Weight of the picture vectors' cosine in what is picked.
        captions: Weight of the caption vectors' cosine, where captions are compared.
    """

    prior: float = 0.03
    pictures: float = 1.67
    captions: float = 0.0


def calibrate(
    pictures: np.ndarray,
    captions: np.ndarray,
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], np.ndarray],
    seed: int = 0,
) -> Calibration:
    """Fits the user model to an index, with what the system has written about it.

    People's captions of development pictures may take the place of the system's, as texts and as caption
    vectors; the weights are halved all the same.

    Args:
        pictures: (n, d) float32 unit rows of the grid, the index's.
        captions: (n, e) float32 unit rows of the grid, of the captions' sentence vectors.
        texts: The n captions; images with an empty one play no session.
        encode: Texts to the index's space, (q, d) float32 unit rows.
        seed: Of the choice of images, where there are more than SESSIONS.

    Raises:
        ValueError: If no image has a caption, or there are fewer than three.
    """
    described = [row for row, text in enumerate(texts) if text.strip()]
    if len(described) < 3:
        raise ValueError(f"calibration: got {len(described)} images with a caption, expected at least 3")
    targets = np.array(random.Random(seed).sample(described, min(SESSIONS, len(described))))
    queries = encode([" ".join(texts[int(row)].split()[:WORDS]) for row in targets])
    likelihood = np.zeros(len(TEMPERATURES))
    pages: list[tuple[int, np.ndarray]] = []  # target and rows shown, without it
    for target, scores in zip(targets, _scores_of(queries, pictures), strict=True):
        for number, temperature in enumerate(TEMPERATURES):
            likelihood[number] += scores[target] / temperature - _log_sum(scores / temperature)
        listed = best_rows(scores, min(PAGES * SHOWN, len(scores)))
        for start in range(0, len(listed), SHOWN):
            page = listed[start : start + SHOWN]
            if len(shown := page[page != target]) > 1:
                pages.append((int(target), shown))
            if len(shown) < len(page):  # found
                break
    by_picture, by_caption = _nearness(pages, pictures), _nearness(pages, captions)
    return Calibration(
        prior=round(float(TEMPERATURES[likelihood.argmax()]), 4),
        pictures=round(SHARE * likeliest_weight(by_picture, by_caption), 4),
        captions=round(SHARE * likeliest_weight(by_caption, by_picture), 4),
    )


def likeliest_weight(similarities: Sequence[np.ndarray], judged_by: Sequence[np.ndarray]) -> float:
    """Finds the weight under which softmax(weight * similarity) best explains the picks of another judge.

    Args:
        similarities: Of each page's images with the image in mind.
        judged_by: The judge's, likewise; it picks the greatest, of equals the one shown first.

    Returns:
        One of `WEIGHTS`; 0 if the similarity says nothing of the picks.
    """
    likelihood = np.zeros(len(WEIGHTS))
    for similarity, judged in zip(similarities, judged_by, strict=True):
        logs = WEIGHTS[:, None] * (similarity - similarity.max())
        share = np.exp(logs[:, judged.argmax()]) / np.exp(logs).sum(axis=1)
        likelihood += np.log((1 - NOISE) * share + NOISE / len(judged))
    return float(WEIGHTS[likelihood.argmax()])


def _scores_of(queries: np.ndarray, vectors: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the scores of one query after the other; of all together they would not fit into memory."""
    for start in range(0, len(queries), AT_ONCE):
        yield from all_scores(queries[start : start + AT_ONCE], vectors)


def _nearness(pages: Sequence[tuple[int, np.ndarray]], vectors: np.ndarray) -> list[np.ndarray]:
    return [vectors[shown].astype(np.float64) @ vectors[target] for target, shown in pages]


def _log_sum(values: np.ndarray) -> float:
    top = values.max()
    return float(top + np.log(np.exp(values - top).sum()))
