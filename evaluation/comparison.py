"""Is one run better than another, or was it luck with the queries? A paired bootstrap over the queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluation.measures import Measures


@dataclass(frozen=True)
class Difference:
    """Second run minus first run."""

    mean: float  # difference of the means over the queries
    low: float  # lower end of the 95 percent interval
    high: float  # upper end; an interval that holds 0 shows no difference
    query_count: int  # queries behind it
    p_value: float  # of no difference, two-sided, from the same resamples as the interval


def compare(first: Measures, second: Measures, measure: str, seed: int = 0) -> Difference:
    """Compares the last rounds of two runs of the same queries by a measure that both have, query by query.

    Raises:
        ValueError: If the runs hold different queries.
    """
    before, after = (
        {
            query: value
            for query, value in zip(run.query_ids, run.values[measure][-1], strict=True)
            if np.isfinite(value)
        }
        for run in (first, second)
    )
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
    return paired_bootstrap(np.array([after[query] - before[query] for query in before]), seed=seed)


def paired_bootstrap(differences: np.ndarray, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Puts a percentile interval around a mean of paired differences.

    Queries are drawn with replacement, each keeping its pair, so that what makes a query hard for both runs
    cancels out.

    Args:
        differences: float64 (queries,), second minus first; at least one, all finite.
        resamples: How many times to draw.
        seed: Of the random numbers; the same seed gives the same interval.

    Returns:
        Mean difference with its interval and p-value. With b resampled means, the p-value is the smaller of
        (1 + means <= 0) / (b + 1) and (1 + means >= 0) / (b + 1), times two, at most 1: it falls below 0.05
        about where the 95 percent interval leaves 0 out.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 15; Davison and
        Hinkley, Bootstrap Methods (1997), section 4.2, for counting the sample itself; Sakai, SIGIR 2006, for
        retrieval.
    """
    random = np.random.default_rng(seed)
    count = len(differences)
    block = max(1, 2_000_000 // count)  # draws of about 16 MB at a time, however many queries there are
    means = np.concatenate(
        [
            differences[random.integers(count, size=(min(block, resamples - start), count))].mean(axis=1)
            for start in range(0, resamples, block)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    rarer = min((means <= 0).sum(), (means >= 0).sum())
    p_value = min(1.0, 2 * (1 + int(rarer)) / (resamples + 1))
    return Difference(float(differences.mean()), float(low), float(high), count, p_value)


def mean_over_seeds(runs: Sequence[Measures]) -> Measures:
    """Averages runs of the same queries that differ in the seed alone, query by query.

    A query then stands once in a comparison, however many seeds were played, and the bootstrap over queries
    speaks of the mean over these seeds.
    """
    first = runs[0]
    return replace(
        first, values={name: np.mean([run.values[name] for run in runs], axis=0) for name in first.values}
    )


def adjusted_by_holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for being several, so that calling those below 0.05 real errs in 5 percent of tables.

    The i-th smallest of m is multiplied by m - i + 1 (i from 1), and never lies below the one before it; at
    most 1. Equal p-values stay equal.

    They are those of all comparisons made, not of the best ones; 0.01, 0.04, 0.03 become 0.03, 0.06, 0.06.

    Source:
        Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scand. J. Statistics 1979.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, number in enumerate(sorted(range(len(p_values)), key=lambda number: p_values[number])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[number]))
        adjusted[number] = largest
    return adjusted
