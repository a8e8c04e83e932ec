"""The measures of a run, per query and round, and their means.

Target measures look at the rank of the one image the person had in mind; relevant-set measures look at the
first k of a round's list and at the relevant images that had not been shown before that round (residual
collection); session measures look at everything shown so far. See docs/evaluation.md for what each number
says.

Every measure averages over all queries: one that stopped carries its last state forward, and one that the run
lacks is scored 0, or with the worst rank. Only a query for which a measure has no meaning (no target, or no
relevant image at all) stays out of that measure's mean.

Ties: a target rank is 1 + the images with a strictly higher score + those with the same score that come
earlier in the collection's order. Ranks and lists arrive that way; nothing here sorts by score again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.sessions import Session, build_sessions
from records import Query, Round

K = 10  # of the relevant-set measures; a shorter list counts as it is, precision still divides by K
CUTOFFS = (1, 5, K)  # of Recall and Hits
QUERIES_AT_ONCE = 10_000  # given to ir-measures, which wants dictionaries

DEFINITIONS = {
    "Recall@k": "Share of queries whose target ranks k-th or better among this round's candidates.",
    "Hits@k": "Share of queries whose target ranked k-th or better in this round or an earlier one "
    "(ChatIR, arXiv:2305.20062).",
    "MRR": "Mean of 1 / rank of the target in this round; 0 for a query the run lacks.",
    "Mean rank": "Mean rank of the target in this round, 1 is best; a query the run lacks ranks last.",
    "Median rank": "Median rank of the target in this round.",
    "BRI": "Best log Rank Integral up to this round (PlugIR, arXiv:2406.03411): the area under the natural "
    "logarithm of the best rank so far, by trapezoids, divided by the rounds since round 0; lower is better. "
    "In round 0 the logarithm itself.",
    "P@k": "Relevant images among the first k of the list / k; those shown in earlier rounds do not count.",
    "R@k": "Relevant images among the first k of the list / relevant images not shown in earlier rounds.",
    "F1@k": "Per query 2 P@k R@k / (P@k + R@k), 0 when both are 0; one relevant image allows 2 / (k + 1).",
    "RR@k": "1 / place of the first relevant image among the first k of the list, 0 when there is none.",
    "nDCG@k": "Discounted gain of the first k (relevant 1, discount log2(place + 1)) / that of the best "
    "list (Jarvelin and Kekalainen 2002).",
    "Session recall": "R^T: distinct relevant images shown in rounds 0..T / relevant images, mean over "
    "queries (arXiv:2404.18746).",
    "Session precision": "P^T: distinct relevant images shown in rounds 0..T / distinct images shown then.",
    "Session F1": "Per query the harmonic mean of R^T and P^T, 0 when both are 0.",
}


@dataclass(frozen=True)
class Measures:
    """All measures of one run; one without meaning for every query is absent."""

    query_ids: tuple[str, ...]  # in the order of the columns of `values`
    values: dict[str, np.ndarray]  # float64 (rounds, queries) by measure; NaN where it has no meaning

    def summary(self) -> dict[str, list[float]]:
        """Returns for each measure its mean in each round; also the median rank."""
        means = {name: np.nanmean(values, axis=1).tolist() for name, values in self.values.items()}
        if "Mean rank" in means:
            means["Median rank"] = np.nanmedian(self.values["Mean rank"], axis=1).tolist()
        return means

    def to_json(self) -> dict[str, Any]:
        """Returns what measures.json holds: cutoff, queries behind the means, means, definitions."""
        summary = self.summary()
        counted = {name: int(np.isfinite(values[0]).sum()) for name, values in self.values.items()}
        return {
            "k": K,
            "query_count": len(self.query_ids),
            "queries_with_a_target": counted.get("Mean rank", 0),
            "queries_with_relevant_images": counted.get(f"P@{K}", 0),
            "means_per_round": summary,
            "definitions": {name: DEFINITIONS[name] for name in dict.fromkeys(map(_definition, summary))},
        }


def evaluate(
    rounds: Iterable[Round],
    round_count: int,
    queries: Sequence[Query] | None = None,
    image_count: int | None = None,
) -> Measures:
    """Measures a run.

    Args:
        rounds: The run's records in any order.
        round_count: How many rounds the run was to have.
        queries: The queries that were asked, so that those the run lacks are scored as failures instead of
            being dropped. None: the queries that the run holds.
        image_count: Size of the collection; the rank of a query that the run lacks.

    Returns:
        Per-query values of every measure, shape (round_count, queries).

    Raises:
        ValueError: If there is no query, records are missing, doubled or contradictory (see
            `build_sessions`), or a query is missing from the run and ``image_count`` is not given.

    Example:
        A target at ranks 8, 2, 6: Recall@5 is 0, 1, 0; Hits@5 is 0, 1, 1; MRR 1/8, 1/2, 1/6; the best ranks
        are 8, 2, 2, so BRI is log 8, then (log 8 + log 2) / 2, then (log 8 / 2 + log 2 + log 2 / 2) / 2.
    """
    return measure_sessions(build_sessions(rounds, round_count, queries), round_count, image_count)


def measure_sessions(
    sessions: Sequence[Session], round_count: int, image_count: int | None = None
) -> Measures:
    """Measures a run whose records `build_sessions` has grouped; all else as `evaluate`."""
    values = _target_measures(_target_ranks(sessions, round_count), image_count)
    values |= _relevant_measures(sessions, round_count) | _session_measures(sessions, round_count)
    return Measures(
        query_ids=tuple(session.query_id for session in sessions),
        values={name: array for name, array in values.items() if not np.isnan(array).all()},
    )


# Each of these returns float64 (round_count, queries), NaN where a measure has no meaning for the query.


def _target_ranks(sessions: Sequence[Session], round_count: int) -> np.ndarray:
    """Collects the target's rank in each round, carried forward; infinite for a query without rounds."""
    ranks = np.full((round_count, len(sessions)), np.nan)
    for column, session in enumerate(sessions):
        if session.target is None:
            continue
        states = [session.state(number) for number in range(round_count)]
        ranks[:, column] = [np.inf if state is None else state.target_rank for state in states]
    return ranks


def _target_measures(ranks: np.ndarray, image_count: int | None) -> dict[str, np.ndarray]:
    """Computes Recall, Hits, MRR, rank and BRI from the ranks of the targets.

    Source:
        Hits@k: Levy et al., "Chatting Makes Perfect" (ChatIR), arXiv:2305.20062.
        BRI: Lee et al., "Interactive Text-to-Image Retrieval with Large Language Models: A Plug-and-Play
        Approach" (PlugIR), arXiv:2406.03411, definition 2: with pi_t the best rank in rounds 0..t, log(pi_0
        pi_T) / 2T + sum over t = 1..T-1 of log(pi_t) / T, which is the trapezoid rule over T steps. It is
        undefined for T = 0; we take log(pi_0), its limit for a rank that does not change.
    """
    missing = np.isinf(ranks)
    if missing.any() and image_count is None:
        raise ValueError(
            f"{missing[0].sum()} queries are not in the run; pass image_count, the rank they are to be given"
        )
    finite = np.where(missing, np.nan if image_count is None else image_count, ranks)
    best = np.minimum.accumulate(ranks, axis=0)
    known = ~np.isnan(ranks)
    values = {f"Recall@{k}": np.where(known, ranks <= k, np.nan) for k in CUTOFFS}
    values |= {f"Hits@{k}": np.where(known, best <= k, np.nan) for k in CUTOFFS}
    log_best = np.log(np.minimum.accumulate(finite, axis=0))
    steps = np.arange(1, len(ranks))[:, None]
    area = np.cumsum((log_best[1:] + log_best[:-1]) / 2, axis=0)
    return values | {
        "MRR": 1 / ranks,
        "Mean rank": finite,
        "BRI": np.concatenate([log_best[:1], area / steps]),
    }


def _relevant_measures(sessions: Sequence[Session], round_count: int) -> dict[str, np.ndarray]:
    """Computes P, R, F1, RR and nDCG of the first K of each round's list.

    Source:
        Residual collection: Chang, Cirillo and Razon 1971; Salton and Buckley 1990. All but F1 are computed
        by ir-measures. F1@k is the harmonic mean of P@k and R@k per query, averaged afterwards; for one
        relevant image, R = 1 and P = 1/k at best, hence the ceiling 2 / (k + 1).
    """
    import ir_measures

    measures = [measure @ K for measure in (ir_measures.P, ir_measures.R, ir_measures.RR, ir_measures.nDCG)]
    values = {str(measure): np.full((round_count, len(sessions)), np.nan) for measure in measures}
    columns = [column for column, session in enumerate(sessions) if session.relevant]
    parts = [columns[start : start + QUERIES_AT_ONCE] for start in range(0, len(columns), QUERIES_AT_ONCE)]
    for number, part in itertools.product(range(round_count), parts):
        qrels, run = {}, {}
        for column in part:
            session = sessions[column]
            state = session.state(number)
            qrels[str(column)] = dict.fromkeys(session.relevant if state is None else state.relevant, 1)
            if state is not None:
                # Falling scores keep the order; ir-measures would break ties by image id.
                run[str(column)] = {image: -float(place) for place, image in enumerate(state.image_ids[:K])}
        for metric in ir_measures.iter_calc(measures, qrels, run):
            values[str(metric.measure)][number, int(metric.query_id)] = metric.value
    return values | {f"F1@{K}": _harmonic_mean(values[f"P@{K}"], values[f"R@{K}"])}


def _session_measures(sessions: Sequence[Session], round_count: int) -> dict[str, np.ndarray]:
    """Computes recall, precision and F1 over everything shown so far.

    Source:
        R^T: Zhu et al., "Enhancing Interactive Image Retrieval With Query Rewriting Using Large Language
        Models and Vision Language Models", arXiv:2404.18746, where rounds show unseen images only. An image
        shown again (reference protocol) counts once.
    """
    recall = np.full((round_count, len(sessions)), np.nan)
    precision = recall.copy()
    for column, session in enumerate(sessions):
        if not session.relevant:
            continue
        seen: set[str] = set()
        for number in range(round_count):
            if number < len(session.rounds):
                outcome = session.rounds[number]
                seen.update(outcome.image_ids[: outcome.shown])
            found = len(seen & session.relevant)
            recall[number, column] = found / len(session.relevant)
            precision[number, column] = found / len(seen) if seen else 0.0
    return {
        "Session recall": recall,
        "Session precision": precision,
        "Session F1": _harmonic_mean(precision, recall),
    }


def _harmonic_mean(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Returns F1 = 2 P R / (P + R) element by element, 0 where both are 0, NaN where either is NaN."""
    total = precision + recall
    return np.where(total == 0, 0.0, 2 * precision * recall / np.where(total == 0, 1.0, total))


def _definition(name: str) -> str:
    base, at, _ = name.partition("@")
    return f"{base}@k" if at else base
