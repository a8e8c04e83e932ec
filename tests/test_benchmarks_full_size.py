"""The measurement of full-size models takes all its steps with tiny ones; a GPU only makes it meaningful."""

import argparse

import pytest
import torch

from benchmarks.full_size import measure, measure_batch


def test_every_model_and_batch_is_measured(tmp_path):
    arguments = argparse.Namespace(tiny=True, folder=tmp_path, precisions=["fp32"], batches=[2])
    rows = list(measure(arguments))
    measured = [(row["model"], row["precision"], row["batch"]) for row in rows]
    assert measured == [(name, "fp32", 2) for name in ("captioner", "rewriter")]
    for row, tokens in zip(rows, (200, 100), strict=True):
        assert row["batch, s"] > 0 and not row["note"]
        assert row["tokens/s"] == pytest.approx(tokens * row["items/s"])
        assert (row["peak GPU memory, GiB"] is None) == (not torch.cuda.is_available())
    assert len(list(tmp_path.glob("tiny-*/model.safetensors"))) == 2


def test_running_out_of_memory_is_a_row_and_another_mistake_is_not():
    def fail(says):
        raise ValueError(says)

    row = measure_batch(object, lambda *_: fail("the GPU's memory does not suffice for a batch of 1"), 8, 200)
    assert row["note"] == "does not fit" and row["batch, s"] is None
    with pytest.raises(ValueError, match="no such picture"):
        measure_batch(object, lambda *_: fail("no such picture"), 8, 200)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_without_a_gpu_the_full_sizes_are_refused():
    with pytest.raises(ValueError, match="no GPU found, and the full sizes need one; --tiny"):
        next(measure(argparse.Namespace(tiny=False)))
