"""Batches shrink when memory runs out, lose nothing, and stay small."""

import gc
import weakref

import pytest
import torch

from generation.batching import ShrinkingBatches


class Memory:
    """Doubles numbers; runs out of memory above a batch size."""

    def __init__(self, most):
        self.most, self.tried = most, []

    def __call__(self, batch):
        self.tried.append(list(batch))
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [2 * number for number in batch]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 23])
@pytest.mark.parametrize("size", [1, 3, 8, 100])
@pytest.mark.parametrize("most", [1, 2, 5, 1000])
def test_all_results_in_order_whatever_fits(count, size, most):
    memory, batches = Memory(most), ShrinkingBatches(size)
    numbers = list(range(count))
    assert batches.map(numbers, memory, "doubling") == [2 * number for number in numbers]
    done = [number for batch in memory.tried if len(batch) <= most for number in batch]
    assert done == numbers  # nothing twice, nothing left out
    assert batches.size == size or batches.size <= most


def test_the_size_that_fits_is_kept():
    memory, batches = Memory(3), ShrinkingBatches(8)
    batches.map(range(10), memory, "doubling")
    assert [len(batch) for batch in memory.tried] == [8, 4, 2, 2, 2, 2, 2]
    batches.map(range(4), memory, "doubling")
    assert [len(batch) for batch in memory.tried[7:]] == [2, 2]


def test_one_that_does_not_fit_alone_is_an_error_of_one_line():
    with pytest.raises(
        ValueError, match="doubling: the GPU's memory does not suffice for a batch of 1"
    ) as caught:
        ShrinkingBatches(4).map([1, 2], Memory(0), "doubling")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_results_come_in_any_order_and_are_kept_when_memory_runs_out(size):
    tried = []

    def backwards(items, at_a_time):
        tried.append((list(items), at_a_time))
        for place in reversed(range(len(items))):
            if len(items) > 3 and place == 2 and at_a_time > 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            yield place, 10 * items[place]

    batches = ShrinkingBatches(size)
    assert batches.stream([5, 6, 7, 8, 9], backwards, "multiplying") == [50, 60, 70, 80, 90]
    expected = {1: [([5, 6, 7, 8, 9], 1)], 2: [([5, 6, 7, 8, 9], 2), ([5, 6, 7], 1)]}
    assert tried == expected.get(size, [([5, 6, 7, 8, 9], 8), ([5, 6, 7], 2)])


def test_other_errors_pass():
    def broken(batch):
        raise RuntimeError("a bug")

    batches = ShrinkingBatches(4)
    with pytest.raises(RuntimeError, match="a bug"):
        batches.map([1], broken, "doubling")
    assert batches.size == 4


def test_what_filled_the_memory_is_let_go_before_the_next_try():
    alive = []

    def work(batch):
        gc.collect()
        assert not any(reference() is not None for reference in alive)
        tensor = torch.zeros(1000)
        alive.append(weakref.ref(tensor))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [int(tensor.sum())]

    assert ShrinkingBatches(4).map(range(2), work, "doubling") == [0, 0]
    assert len(alive) == 3


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch size: got 0, expected at least 1"):
        ShrinkingBatches(0)
