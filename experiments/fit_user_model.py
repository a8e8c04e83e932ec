"""Fits the user model of `strategies.bayes` on development data, by maximum likelihood.

    python -m experiments.fit_user_model --dataset demo --split dev --caption-numbers 4

No feedback moves these sessions: the simulated user points while the queries are only scrolled, and each pick
is one observation. Prints the temperatures to copy into `feedback/strategies/bayes.py`, with what the
model then knows of a pick, in bits; ten shown images hold log2(10) = 3.32.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.setup import Setup
from feedback.protocols import PROTOCOLS
from feedback.rounds import run_rounds
from feedback.strategies import make_strategy
from feedback.strategies.bayes import NOISE, WordOverlap, log_sum
from feedback.strategies.collection import Collection
from records import Round
from settings import ExperimentSettings, read_settings, run_script

log = logging.getLogger(__name__)

DEFAULTS = {"DATASET": "demo", "SPLIT": "dev"}
TEMPERATURES = (0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 2.0, 5.0)


@dataclass(frozen=True)
class Fit:
    """The temperatures under which the development data are likeliest.

    Attributes:
        prior: Of the query's similarities.
        vectors: Of the image vectors' similarities, where nothing else is compared.
        vectors_with_words: The same beside the captions' overlap.
        words: Of the captions' overlap.
        bits: What a pick tells without captions.
        bits_with_words: And with them.
        agreement: Share of picks that are the likeliest, without captions and with them.
    """

    prior: float
    vectors: float
    vectors_with_words: float
    words: float
    bits: float
    bits_with_words: float
    agreement: tuple[float, float]


def fit(collection: Collection, rounds: Sequence[Round]) -> Fit:
    """Fits prior and user model.

    Args:
        collection: What was searched; with captions.
        rounds: Scrolled sessions with targets and picks.

    Raises:
        ValueError: If there is no target, no pick or no captioner.
    """
    if collection.captions_of is None:
        raise ValueError("fitting needs captions of the images, got no captioner")
    opening = [turn for turn in rounds if turn.target is not None and turn.number == 0]
    picked = [turn for turn in rounds if turn.target is not None and turn.liked]
    if not opening or not picked:
        raise ValueError(
            f"fitting needs targets and picks, got {len(opening)} such queries and {len(picked)} picks"
        )
    targets = collection.rows([turn.target or "" for turn in opening])
    scores = collection.similarities(collection.encode([turn.text for turn in opening]))
    own = scores[np.arange(len(scores)), targets]
    prior = max(TEMPERATURES, key=lambda t: float((own / t - log_sum(scores / t, axis=1)).mean()))
    seen, said, picks = _views(collection, picked)
    alone = [(v, np.inf) for v in TEMPERATURES]
    both = [(v, w) for v in (*TEMPERATURES, np.inf) for w in TEMPERATURES]
    best_alone = max(alone, key=lambda pair: _knowledge(seen, said, picks, *pair)[0])
    best_both = max(both, key=lambda pair: _knowledge(seen, said, picks, *pair)[0])
    (bits, agreement), (bits_both, agreement_both) = (
        _knowledge(seen, said, picks, *pair) for pair in (best_alone, best_both)
    )
    return Fit(prior, best_alone[0], *best_both, bits, bits_both, (agreement, agreement_both))


def _views(collection: Collection, picked: Sequence[Round]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compares what was shown with the target.

    Returns:
        Image similarities (picks, shown) and caption overlaps, NaN where fewer were shown, and the place of
        each pick.
    """
    overlap = WordOverlap(collection.captions_of(collection.ids) if collection.captions_of else ())
    widest = max(turn.shown for turn in picked)
    seen, said = np.full((2, len(picked), widest), np.nan)
    picks = np.empty(len(picked), dtype=np.int64)
    for number, turn in enumerate(picked):
        (target,) = collection.rows([turn.target or ""])
        shown = collection.rows([i for i in turn.image_ids[: turn.shown] if i != turn.target])
        seen[number, : len(shown)] = collection.vectors[shown] @ collection.vectors[target]
        said[number, : len(shown)] = overlap.with_all(int(target))[shown]
        picks[number] = np.flatnonzero(shown == collection.rows(turn.liked[:1]))[0]
    return seen, said, picks


def _knowledge(
    seen: np.ndarray, said: np.ndarray, picks: np.ndarray, vectors: float, words: float
) -> tuple[float, float]:
    """Returns the mean bits over an even draw, and the share of picks that were the likeliest."""
    shown = np.isfinite(seen).sum(axis=1)
    affinity = np.where(np.isfinite(seen), seen / vectors + said / words, -np.inf)
    own = affinity[np.arange(len(picks)), picks]
    share = (1 - NOISE) * np.exp(own - log_sum(affinity, axis=1)) + NOISE / shown
    return float(np.log2(share * shown).mean()), float((affinity.argmax(axis=1) == picks).mean())


def main() -> None:
    """Plays the sessions, fits, and prints."""
    settings = read_settings(ExperimentSettings, DEFAULTS).resolved()
    parts = Setup.open(settings)
    rounds: list[Round] = []
    run_rounds(
        parts.queries,
        retriever=parts.retriever,
        user=parts.user(settings.user),
        strategy=make_strategy("original"),
        protocol=PROTOCOLS[settings.protocol],
        round_count=settings.rounds,
        keep=rounds.extend,
    )
    found = fit(parts.collection, rounds)
    print(  # noqa: T201  the answer
        f"PRIOR {found.prior}\n"
        f"bayes: VECTORS {found.vectors}; a pick tells {found.bits:.3f} bits, "
        f"{100 * found.agreement[0]:.1f}% of picks are the likeliest\n"
        f"bayes-captions: VECTORS {found.vectors_with_words}, WORDS {found.words}; a pick tells "
        f"{found.bits_with_words:.3f} bits, {100 * found.agreement[1]:.1f}% of picks are the likeliest"
    )


if __name__ == "__main__":
    raise SystemExit(run_script(main))
