"""Is one run better than another, or was it luck with the queries? A paired bootstrap over the queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.measures import Measures


@dataclass(frozen=True)
class Difference:
    """Second run minus first run.

    Attributes:
        mean: Difference of the means over the queries.
        low: Lower end of the interval.
        high: Upper end. An interval that holds 0 shows no difference.
        query_count: Queries behind it.
    """

    mean: float
    low: float
    high: float
    query_count: int


def compare(
    first: Measures,
    second: Measures,
    measure: str,
    round_number: int = -1,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Compares two runs of the same queries by one measure in one round.

    Args:
        first: The run to compare with.
        second: The run in question.
        measure: Name of a per-query measure, such as ``Recall@10``.
        round_number: Which round; -1 is the last of each run.
        resamples: See `paired_bootstrap`.
        seed: See `paired_bootstrap`.

    Returns:
        The difference of the means, with its 95 percent interval.

    Raises:
        ValueError: If the runs hold different queries, or lack the measure or the round.
    """
    values = []
    for position, measures in (("first", first), ("second", second)):
        if measure not in measures.values:
            raise ValueError(
                f"the {position} run has no measure {measure!r}; it has {', '.join(measures.values)}"
            )
        rows = measures.values[measure]
        if not -len(rows) <= round_number < len(rows):
            raise ValueError(f"the {position} run has no round {round_number}; it has {len(rows)} rounds")
        row = rows[round_number]
        known = np.isfinite(row)
        values.append(
            {query: value for query, value, use in zip(measures.query_ids, row, known, strict=True) if use}
        )
    before, after = values
    if before.keys() != after.keys():
        only = {"first": sorted(before.keys() - after.keys()), "second": sorted(after.keys() - before.keys())}
        differing = "; ".join(
            f"{len(queries)} only in the {run}, such as {queries[0]!r}"
            for run, queries in only.items()
            if queries
        )
        raise ValueError(
            f"the runs have different queries for {measure}: {differing}; run both on the same queries"
        )
    differences = np.array([after[query] - before[query] for query in before])
    return paired_bootstrap(differences, resamples, seed)


def paired_bootstrap(
    differences: np.ndarray, resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> Difference:
    """Puts a percentile interval around a mean of paired differences.

    Queries are drawn with replacement, each keeping its pair, so that what makes a query hard for both runs
    cancels out.

    Args:
        differences: float64 (queries,), second minus first.
        resamples: How many times to draw.
        seed: Of the random numbers; the same seed gives the same interval.
        confidence: Share of resampled means inside the interval.

    Returns:
        Mean difference with its interval.

    Raises:
        ValueError: If there are no differences, one is not finite, or ``resamples`` or ``confidence`` is out
            of range.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; Sakai, SIGIR 2006, for
        retrieval.
    """
    if differences.ndim != 1 or not len(differences) or not np.isfinite(differences).all():
        raise ValueError(
            f"expected one finite difference per query, got an array of shape {differences.shape}"
        )
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"resamples is {resamples} (at least 1), confidence {confidence} (between 0 and 1)")
    random = np.random.default_rng(seed)
    count = len(differences)
    block = max(1, 2_000_000 // count)  # draws of about 16 MB at a time, however many queries there are
    means = np.concatenate(
        [
            differences[random.integers(count, size=(min(block, resamples - start), count))].mean(axis=1)
            for start in range(0, resamples, block)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Difference(float(differences.mean()), float(low), float(high), count)
