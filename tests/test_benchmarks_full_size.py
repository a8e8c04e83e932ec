"""The measurement of full-size models takes all its steps with tiny ones; a GPU only makes it meaningful."""

import argparse

import pytest
import torch

from benchmarks.full_size import measure, measure_model


def arguments(**given):
    return argparse.Namespace(
        **{"tiny": True, "folder": None, "precisions": ["fp32"], "batches": [2]} | given
    )


def test_every_model_and_batch_is_measured(tmp_path):
    rows = measure(arguments(folder=tmp_path))
    measured = [(row["model"], row["precision"], row["batch"]) for row in rows]
    assert measured == [(name, "fp32", 2) for name in ("captioner", "rewriter", "BLIP")]
    for row in rows:
        assert row["batch, s"] > 0 and not row["note"]
        tokens = {"captioner": 200, "rewriter": 100, "BLIP": None}[row["model"]]
        assert row["tokens/s"] == (tokens and pytest.approx(tokens * row["items/s"]))
        assert (row["peak GPU memory, GiB"] is None) == (not torch.cuda.is_available())
    assert len(list(tmp_path.glob("tiny-*/model.safetensors"))) == 3


def test_running_out_of_memory_is_a_row():
    def use(model, batch, turn):
        raise ValueError("captioning: the GPU's memory does not suffice for a batch of 1")

    (row,) = measure_model("captioner", "fp16", [8], lambda size: object(), use, 200)
    assert row["note"] == "does not fit" and row["batch, s"] is None


def test_another_mistake_is_not_taken_for_it():
    def use(model, batch, turn):
        raise ValueError("no such picture")

    with pytest.raises(ValueError, match="no such picture"):
        list(measure_model("captioner", "fp16", [8], lambda size: object(), use, 200))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_without_a_gpu_the_full_sizes_are_refused():
    with pytest.raises(ValueError, match="no GPU found, and the full sizes need one; --tiny"):
        measure(arguments(tiny=False))
