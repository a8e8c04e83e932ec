import numpy as np
import pytest

from evaluation.comparison import compare, paired_bootstrap
from evaluation.measures import Measures


def make_measures(values, names=None):
    values = np.atleast_2d(np.asarray(values, dtype=float))
    names = names or [f"q{number}" for number in range(values.shape[1])]
    return Measures(tuple(names), 10, {"Recall@10": values})


def test_equal_runs_differ_by_zero():
    run = make_measures([0, 1, 1, 0, 1])
    difference = compare(run, run, "Recall@10")
    assert (difference.mean, difference.low, difference.high, difference.query_count) == (0, 0, 0, 5)


def test_constant_gain_has_no_width():
    difference = paired_bootstrap(np.full(30, 0.25))
    assert (difference.mean, difference.low, difference.high) == (0.25, 0.25, 0.25)


def test_two_queries_give_the_exact_distribution():
    # Means of two draws from {0, 1}: 0, 0.5, 1 with chances 1/4, 1/2, 1/4.
    difference = paired_bootstrap(np.array([0.0, 1.0]), confidence=0.6)
    assert (difference.mean, difference.low, difference.high) == (0.5, 0, 1)
    narrow = paired_bootstrap(np.array([0.0, 1.0]), confidence=0.4)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_large_sample_agrees_with_the_normal_interval():
    differences = np.random.default_rng(1).normal(0.1, 1, 2000)
    difference = paired_bootstrap(differences)
    half = 1.96 * differences.std() / np.sqrt(2000)
    assert difference.low == pytest.approx(differences.mean() - half, abs=0.003)
    assert difference.high == pytest.approx(differences.mean() + half, abs=0.003)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    intervals = [paired_bootstrap(random.normal(0.2, 1, 60), 500, seed) for seed in range(300)]
    covered = np.mean([interval.low <= 0.2 <= interval.high for interval in intervals])
    assert 0.90 <= covered <= 0.98


def test_queries_are_paired_by_id_and_seeded():
    first = make_measures([[0, 0, 0], [0, 1, 0]], ["a", "b", "c"])
    second = make_measures([[0, 0, 0], [1, 1, 0]], ["b", "a", "c"])
    difference = compare(first, second, "Recall@10")
    assert difference.mean == pytest.approx(1 / 3)
    assert difference.low == 0
    assert difference == compare(first, second, "Recall@10")
    assert compare(first, second, "Recall@10", round_number=0).high == 0


def test_a_query_without_the_measure_in_both_runs_is_left_out():
    run = make_measures([1, np.nan, 0])
    assert compare(run, run, "Recall@10").query_count == 2


def test_what_cannot_be_compared_is_refused():
    first = make_measures([0, 1], ["a", "b"])
    with pytest.raises(
        ValueError, match="1 only in the first, such as 'b'; 1 only in the second, such as 'c'"
    ):
        compare(first, make_measures([0, 1], ["a", "c"]), "Recall@10")
    with pytest.raises(ValueError, match="no measure 'BRI'"):
        compare(first, first, "BRI")
    with pytest.raises(ValueError, match="no round 1"):
        compare(first, first, "Recall@10", round_number=1)
    for bad in (np.array([]), np.array([np.nan]), np.zeros((2, 2))):
        with pytest.raises(ValueError, match="one finite difference per query"):
            paired_bootstrap(bad)
    with pytest.raises(ValueError, match="resamples"):
        paired_bootstrap(np.zeros(3), resamples=0)
