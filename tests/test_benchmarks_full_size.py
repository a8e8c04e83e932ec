"""The measurement of full-size models takes all its steps with tiny ones; a GPU only makes it meaningful."""

import argparse

import pytest
import torch

from benchmarks.full_size import measure, measure_batch


def test_every_model_and_batch_is_measured(tmp_path, caplog):
    caplog.set_level("INFO")
    given = {"device": "cuda", "max_tokens": None, "caption_pixels": 28 * 28, "loop": 2}
    arguments = argparse.Namespace(tiny=True, folder=tmp_path, precisions=["fp32"], batches=[2], **given)
    rows = list(measure(arguments))
    measured = [(row["model"], row["precision"], row["batch"]) for row in rows]
    assert measured == [(name, "fp32", 2) for name in ("captioner", "rewriter", "both, in a loop")]
    assert rows[-1]["batch, s"] > 0 and "take turns" not in caplog.text
    released = [line.split()[2] for line in caplog.messages if line.startswith("releasing the ")]
    assert released == ["captioner"]  # before the rewriter comes
    for row, tokens in zip(rows[:-1], (200, 100), strict=True):
        assert row["batch, s"] > 0 and not row["note"]
        assert row["tokens/s"] == pytest.approx(tokens * row["items/s"])
        assert row["peak memory, GiB"] > 0
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
    with pytest.raises(ValueError, match="no GPU found; --device cpu takes the full sizes"):
        next(measure(argparse.Namespace(tiny=False, device="cuda")))
