import numpy as np
import pytest

from evaluation.comparison import adjusted_by_holm, compare, mean_over_seeds, paired_bootstrap
from evaluation.measures import Measures


def make_measures(values, names=None):
    values = np.atleast_2d(np.asarray(values, dtype=float))
    names = names or [f"q{number}" for number in range(values.shape[1])]
    return Measures(tuple(names), {"Recall@10": values})


def test_two_queries_give_the_exact_distribution():
    # Means of two draws from {0, 1}: 0, 0.5, 1 with chances 1/4, 1/2, 1/4.
    difference = paired_bootstrap(np.array([0.0, 1.0]))
    assert (difference.mean, difference.low, difference.high) == (0.5, 0, 1)
    sure = paired_bootstrap(np.full(30, 0.25))
    assert (sure.mean, sure.low, sure.high) == (0.25, 0.25, 0.25)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    intervals = [paired_bootstrap(random.normal(0.2, 1, 60), 500, seed) for seed in range(300)]
    covered = np.mean([interval.low <= 0.2 <= interval.high for interval in intervals])
    assert 0.90 <= covered <= 0.98


def test_queries_are_paired_by_id_in_the_last_round_and_seeded():
    first = make_measures([[0, 0, 0], [0, 1, 0]], ["a", "b", "c"])
    second = make_measures([[0, 0, 0], [1, 1, 0]], ["b", "a", "c"])
    difference = compare(first, second, "Recall@10")
    assert difference.mean == pytest.approx(1 / 3)
    assert difference.low == 0
    assert difference == compare(first, second, "Recall@10")
    with pytest.raises(
        ValueError, match="1 only in the first, such as 'c'; 1 only in the second, such as 'd'"
    ):
        compare(first, make_measures([0, 0, 1], ["a", "b", "d"]), "Recall@10")


def test_a_query_without_the_measure_in_both_runs_is_left_out():
    run = make_measures([1, np.nan, 0])
    difference = compare(run, run, "Recall@10")
    assert (difference.mean, difference.low, difference.high, difference.query_count) == (0, 0, 0, 2)


def test_the_p_value_counts_the_resamples_on_the_other_side():
    # Means of two draws from {-1, 2}: -1, 0.5, 2 with chances 1/4, 1/2, 1/4; a quarter lies below 0.
    assert paired_bootstrap(np.array([-1.0, 2.0]), 40_000).p_value == pytest.approx(0.5, abs=0.02)
    assert paired_bootstrap(np.zeros(9)).p_value == 1
    assert paired_bootstrap(np.full(9, 0.5), 999).p_value == pytest.approx(2 / 1000)
    assert paired_bootstrap(-np.full(9, 0.5), 999).p_value == pytest.approx(2 / 1000)


def test_holm_by_hand():
    assert adjusted_by_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjusted_by_holm([0.9, 0.8]) == [1, 1]
    assert adjusted_by_holm([0.02, 0.02]) == [0.04, 0.04]
    assert adjusted_by_holm([]) == []


def test_runs_of_several_seeds_become_one_run_of_means():
    runs = [make_measures([[0, 1, np.nan]]), make_measures([[1, 1, np.nan]])]
    mean = mean_over_seeds(runs)
    assert mean.values["Recall@10"].tolist()[0][:2] == [0.5, 1] and np.isnan(mean.values["Recall@10"][0][2])
    assert mean.query_ids == runs[0].query_ids and mean_over_seeds(runs[:1]).values["Recall@10"][0][0] == 0
