"""Calibration: how much a query and a pick tell about the image in mind, fitted to each index.

What the posterior in `feedback.strategies.bayes` and the fused search in `index.fused` weigh depends on
encoder, captioner and collection. It is fitted by maximum likelihood to sessions that the system plays with
itself: a ranking is scrolled, and a pseudo-user picks on each page.

Where people have captioned development pictures (`calibrate_on_people`), one of their captions is the query,
whole or its first words by turns, and the pseudo-user judges by the others.

Else (`calibrate`) the first words of the system's own caption of an image are the query for that image (as
sentences are in the Inverse Cloze Task, Lee et al. 2019, arXiv 1906.00300):

- The prior's temperature: the likelihood of those images under softmax(similarity / temperature).
- The weight of the picture vectors: the likelihood of the picks of a pseudo-user who compares captions.
- The weight of the caption vectors: likewise, of one who compares pictures.

Neither is fitted to its own similarity: that would be the most certain judge there is. Both are then halved,
since captions are made of the same pictures and agree with them more than a person does. Together the halves
are the logarithmic opinion pool of two user models with equal shares (Genest and Zidek 1986, Statistical
Science 1). What captions are worth in the search no caption of the system's own can tell, so that their share
is fixed there.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from index.scores import all_scores, best_rows

SESSIONS = 1000
AT_ONCE = 64  # sessions whose scores are in memory
WORDS = 5  # of a caption that serve as a query
PAGES, SHOWN = 3, 10
HALF = 0.5
SHARE = 0.2  # of captions in a fused search, where nobody has said what they are worth
SHARES = np.linspace(0, 0.6, 13)
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
        share: Of the captions in the score of a fused search.
        fused_prior: The prior's temperature there.
    """

    prior: float = 0.03
    pictures: float = 1.67
    captions: float = 0.0
    share: float = 0.0
    fused_prior: float = 0.03

    def fused(self) -> Calibration:
        """Returns the same user model over fused rows, whose cosine is (1 - share) pictures + share captions.

        The weight of the captions may be negative there: it takes back what the fused rows say too much.
        """
        pictures = self.pictures / (1 - self.share)
        captions = self.captions - pictures * self.share
        return replace(self, prior=self.fused_prior, pictures=pictures, captions=captions)


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
    pages: list[tuple[int, np.ndarray]] = []
    for target, scores in zip(targets, _scores_of(queries, pictures), strict=True):
        likelihood += _log_softmax(scores, target)
        pages += _scrolled(scores, target)
    by_picture, by_caption = _nearness(pages, pictures), _nearness(pages, captions)
    prior = round(float(TEMPERATURES[likelihood.argmax()]), 4)
    return Calibration(
        prior=prior,
        pictures=round(HALF * likeliest_weight(by_picture, by_caption), 4),
        captions=round(HALF * likeliest_weight(by_caption, by_picture), 4),
        share=SHARE,
        fused_prior=round(prior * math.hypot(1 - SHARE, SHARE), 4),  # as if the two scores erred apart
    )


def calibrate_on_people(
    pictures: np.ndarray,
    captions: np.ndarray,
    people: Sequence[Sequence[str]],
    encode: Callable[[Sequence[str]], np.ndarray],
    compare: Callable[[Sequence[str]], np.ndarray],
    seed: int = 0,
) -> Calibration:
    """Fits the user model and the fused search to what people wrote about development pictures.

    Args:
        pictures: (n, d) float32 unit rows of the grid, of the development pictures.
        captions: (n, e) float32 rows of the grid, the sentence vectors of the system's captions.
        people: Captions by people, for each picture; one with fewer than two plays no session.
        encode: Texts to the index's space, (q, d) float32 unit rows of the grid.
        compare: Texts to sentence vectors, (q, e) float32 unit rows of the grid.
        seed: Of the choice of pictures, where there are more than SESSIONS.

    Raises:
        ValueError: If fewer than three pictures have two captions.
    """
    described = [row for row, said in enumerate(people) if len(said) > 1]
    if len(described) < 3:
        raise ValueError(f"calibration: got {len(described)} images with two captions, expected at least 3")
    targets = random.Random(seed).sample(described, min(SESSIONS, len(described)))
    texts = []
    for number, row in enumerate(targets):
        text = people[row][number % len(people[row])]
        texts.append(text if number % 2 else " ".join(text.split()[:WORDS]))
    judged = _judgements(people, targets, compare)
    likelihood = np.zeros((len(SHARES), len(TEMPERATURES)))
    pages: list[tuple[int, np.ndarray]] = []
    judgements = []
    scores = zip(_scores_of(encode(texts), pictures), _scores_of(compare(texts), captions), strict=True)
    for target, judge, (by_vector, by_text) in zip(targets, judged, scores, strict=True):
        for number, share in enumerate(SHARES):
            likelihood[number] += _log_softmax((1 - share) * by_vector + share * by_text, target)
        fresh = _scrolled(by_vector, target)
        pages += fresh
        judgements += [judge[shown] for _, shown in fresh]
    share, temperature = np.unravel_index(likelihood.argmax(), likelihood.shape)
    weights = _likeliest_weights(_nearness(pages, pictures), _nearness(pages, captions), judgements)
    return Calibration(
        prior=round(float(TEMPERATURES[likelihood[0].argmax()]), 4),
        pictures=round(weights[0], 4),
        captions=round(weights[1], 4),
        share=round(float(SHARES[share]), 4),
        fused_prior=round(float(TEMPERATURES[temperature]), 4),
    )


def _judgements(
    people: Sequence[Sequence[str]], targets: Sequence[int], compare: Callable[[Sequence[str]], np.ndarray]
) -> Iterator[np.ndarray]:
    """Yields (n,) similarities of all images with each target, by captions of which the query is none."""
    rows = compare([text for said in people for text in said]).astype(np.float64)
    ends = np.cumsum([len(said) for said in people])
    parts = np.split(rows, ends[:-1])
    means = np.stack([part.mean(axis=0) if len(part) else np.zeros(rows.shape[1]) for part in parts])
    for number, target in enumerate(targets):
        part = parts[target]
        yield means @ (part.sum(axis=0) - part[number % len(part)])


def _scrolled(scores: np.ndarray, target: int) -> list[tuple[int, np.ndarray]]:
    """Pages through a ranking: the target and the rows shown beside it, up to the page that holds it."""
    pages = []
    listed = best_rows(scores, min(PAGES * SHOWN, len(scores)))
    for start in range(0, len(listed), SHOWN):
        page = listed[start : start + SHOWN]
        if len(shown := page[page != target]) > 1:
            pages.append((int(target), shown))
        if len(shown) < len(page):  # found
            break
    return pages


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


def _likeliest_weights(
    pictures: Sequence[np.ndarray], captions: Sequence[np.ndarray], judged_by: Sequence[np.ndarray]
) -> tuple[float, float]:
    """As `likeliest_weight`, of two similarities together."""
    likelihood = np.zeros((len(WEIGHTS), len(WEIGHTS)))
    for picture, caption, judged in zip(pictures, captions, judged_by, strict=True):
        logs = WEIGHTS[:, None, None] * picture + WEIGHTS[None, :, None] * caption
        logs = np.exp(logs - logs.max(axis=2, keepdims=True))
        share = logs[..., judged.argmax()] / logs.sum(axis=2)
        likelihood += np.log((1 - NOISE) * share + NOISE / len(judged))
    first, second = np.unravel_index(likelihood.argmax(), likelihood.shape)
    return float(WEIGHTS[first]), float(WEIGHTS[second])


def _scores_of(queries: np.ndarray, vectors: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the scores of one query after the other; of all together they would not fit into memory."""
    for start in range(0, len(queries), AT_ONCE):
        yield from all_scores(queries[start : start + AT_ONCE], vectors)


def _nearness(pages: Sequence[tuple[int, np.ndarray]], vectors: np.ndarray) -> list[np.ndarray]:
    return [vectors[shown].astype(np.float64) @ vectors[target] for target, shown in pages]


def _log_softmax(scores: np.ndarray, target: int) -> np.ndarray:
    """Returns log softmax(scores / temperature) at the target, for all TEMPERATURES."""
    logs = (scores - scores.max())[None] / TEMPERATURES[:, None]
    return logs[:, target] - np.log(np.exp(logs).sum(axis=1))
