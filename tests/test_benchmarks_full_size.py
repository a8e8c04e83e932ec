"""The measurement of full-size models goes its whole way with tiny ones; a GPU only makes it meaningful."""

import pytest
import torch

from benchmarks.full_size import FullSizeSettings, Measured, _measure, format_table, measure


def test_every_model_and_batch_is_measured(tmp_path):
    settings = FullSizeSettings(tiny=True, folder=tmp_path, precisions=("fp32",), batches=(1, 2))
    results = measure(settings)
    rows = [(one.model, one.precision, one.batch) for one in results]
    assert rows == [(model, "fp32", batch) for model in ("captioner", "rewriter", "BLIP") for batch in (1, 2)]
    for one in results:
        assert one.seconds > 0 and not one.note
        assert one.tokens == {"captioner": 200, "rewriter": 100, "BLIP": 0}[one.model] * one.batch
        assert (one.peak_bytes is None) == (not torch.cuda.is_available())
    assert len(list(tmp_path.glob("tiny-*/model.safetensors"))) == 3


def test_the_table_says_what_does_not_fit():
    results = [
        Measured("captioner", "int8", 8, 12.34, 20.0, 1600, 9 * 2**30, "out of memory: went on with 4"),
        Measured("rewriter", "fp16", 32, note="does not fit"),
    ]
    said, _, _, _, first, second = format_table(results, tiny=False).splitlines()
    assert said.startswith("Full sizes, random weights, seed 0.") and f"torch {torch.__version__}" in said
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells[:8] == ["captioner", "int8", "8", "12.3", "20.00", "0.40", "80", "9.0 GiB"]
    assert "does not fit" in second and "0.00" not in second
    assert format_table(results, tiny=True).startswith("Tiny sizes: these figures mean nothing.")


def test_running_out_of_memory_is_a_row():
    def use(model, batch, turn):
        raise ValueError("captioning: the GPU's memory does not suffice for a batch of 1")

    (one,) = _measure("captioner", "fp16", (8,), lambda size: object(), use, 200)
    assert (one.note, one.seconds) == ("does not fit", 0.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_without_a_gpu_the_full_sizes_are_refused():
    with pytest.raises(ValueError, match="no GPU found, and the full sizes need one; --tiny"):
        measure(FullSizeSettings())


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"batches: got \(0,\), expected numbers from 1"):
        FullSizeSettings(batches=(0,))
