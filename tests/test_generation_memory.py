"""Batches shrink when memory runs out, and models that do not fit together take turns."""

import gc
import weakref

import pytest
import torch

from generation.batching import ShrinkingBatches
from generation.gpu_memory import GpuMemory
from query_editing import QueryEditing


class Memory:
    """Doubles numbers; runs out of memory above a batch size."""

    def __init__(self, most):
        self.most, self.tried = most, []

    def __call__(self, batch):
        self.tried.append(list(batch))
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [2 * number for number in batch]


@pytest.mark.parametrize(
    ("count", "size", "most"), [(0, 8, 1), (1, 1, 1), (7, 3, 2), (8, 8, 1), (23, 100, 5), (23, 100, 1000)]
)
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


class Card:
    """A GPU with room for so many numbers."""

    def __init__(self, room):
        self.room, self.used = room, 0


class Weights:
    """A model that takes room on the card."""

    def __init__(self, model_id, size, card):
        self.model_id, self.size, self.card, self.loads, self.there = model_id, size, card, 0, False

    def load(self):
        if self.there:
            return
        if self.card.used + self.size > self.card.room:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        self.card.used += self.size
        self.loads, self.there = self.loads + 1, True

    def release(self):
        if self.there:
            self.card.used -= self.size
        self.there = False


@pytest.mark.parametrize(("room", "loads", "both"), [(10, [1, 1], True), (9, [3, 3], False)])
def test_models_stay_while_they_fit_and_take_turns_when_they_do_not(room, loads, both, caplog):
    card, memory = Card(room), GpuMemory()
    caplog.set_level("INFO")
    captioner, rewriter = Weights("captioner", 6, card), Weights("rewriter", 4, card)
    for _ in range(3):
        for model in (captioner, captioner, rewriter):
            memory.acquire(model)
            assert model.there
    assert [captioner.loads, rewriter.loads] == loads and captioner.there == both
    assert ("take turns: rewriter, captioner" in caplog.text) != both


def test_a_model_that_does_not_fit_alone_is_refused_with_what_to_try():
    memory, card = GpuMemory(), Card(5)
    other = Weights("other", 4, card)
    memory.acquire(other)
    with pytest.raises(ValueError, match=r"large does not fit .*; use --quantization int4") as caught:
        memory.acquire(Weights("large", 6, card))
    assert "\n" not in str(caught.value) and not other.there
    memory.acquire(other)
    assert other.there


def test_a_batch_of_one_that_does_not_fit_beside_the_other_model_takes_its_place(language_model):
    memory = GpuMemory()
    other = Weights("other", 4, Card(5))
    memory.acquire(other)
    editing = QueryEditing(language_model, "fp32", batch_size=2, memory=memory)
    editing.load()
    expected = editing.rewrite(["a dog", "food"], ["a red dog", "a cat"])

    def small_memory(module, given):
        if other.there:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    memory.acquire(other)
    editing._model._model.model.get_input_embeddings().register_forward_pre_hook(small_memory)
    assert editing.rewrite(["a dog", "food"], ["a red dog", "a cat"]) == expected
    assert not other.there
