"""What QUANTIZATION means, and which wishes are refused."""

import importlib.util
import logging

import pytest
import torch

from generation.precision import (
    PRECISIONS,
    check_precision,
    compute_dtype,
    device_options,
    fastest_precision,
    loading_options,
    precision_of,
)


def test_true_is_int8_and_false_is_fp16():
    assert precision_of(True) == "int8"
    assert precision_of(False) == "fp16"
    assert [precision_of(name) for name in PRECISIONS] == list(PRECISIONS)
    assert precision_of("auto") == fastest_precision()


@pytest.mark.parametrize("name", ["int16", "INT8", "", None, 8, 1])
def test_other_names_are_errors(name):
    with pytest.raises(
        ValueError, match=r"quantization: got .*expected True, False, 'auto' or one of .*int4"
    ):
        precision_of(name)


def test_plain_precisions_are_dtypes():
    assert loading_options("fp32") == {"dtype": torch.float32}
    assert loading_options("bf16") == {"dtype": torch.bfloat16}
    assert loading_options("fp16") == loading_options(False) == {"dtype": torch.float16}


@pytest.mark.parametrize("name", ["int8", "int4", True])
def test_quantised_ones_ask_for_bitsandbytes_in_one_line(name, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda package: None if package == "bitsandbytes" else there(package)
    )
    with pytest.raises(ModuleNotFoundError, match="needs bitsandbytes; run: pip install -r ") as caught:
        loading_options(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("has_bf16", "compute"), [(True, torch.bfloat16), (False, torch.float16)])
def test_quantised_ones_name_their_bits(has_bf16, compute, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_bf16)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bf16)
    eight, four = loading_options("int8"), loading_options("int4")
    assert eight["quantization_config"].load_in_8bit and eight["dtype"] == torch.float16
    config = four["quantization_config"]
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == four["dtype"] == compute
    assert [compute_dtype(name) for name in PRECISIONS[:2]] == [eight["dtype"], four["dtype"]]


@pytest.mark.parametrize("precision", ["int8", "int4", True])
@pytest.mark.parametrize("stored_as", ["gguf", "awq"])
def test_what_is_quantised_already_is_not_quantised_again(precision, stored_as):
    with pytest.raises(ValueError, match=f"for some/model, whose weights are stored as {stored_as} already"):
        check_precision(precision, "some/model", stored_as, (8, 6))
    for fine in ("fp16", "bf16", "fp32"):
        check_precision(fine, "some/model", stored_as, (8, 6))


def test_a_gpu_too_old_for_int8_is_named():
    with pytest.raises(ValueError, match=r"int8 needs a GPU of compute capability 7.5, got 7.0; use int4"):
        check_precision("int8", "some/model", None, (7, 0))
    check_precision("int8", "some/model", None, (7, 5))
    check_precision("int4", "some/model", None, (7, 0))


@pytest.mark.parametrize(
    ("precision", "capability", "said"),
    [
        ("fp16", None, "in fp16 on a CPU works, and is slower than fp32 or bf16"),
        ("int8", None, "in int8 on a CPU works, and is slower than fp32"),
        ("int4", None, "in int4 on a CPU works, and is slower than fp32"),
        ("bf16", (7, 5), "of compute capability 7.5 is emulated: fp16 is faster"),
        ("fp32", None, None),
        ("bf16", None, None),
        ("fp16", (7, 5), None),
        ("bf16", (8, 0), None),
        ("int8", (8, 6), None),
    ],
)
def test_what_works_slowly_is_said(precision, capability, said, caplog):
    with caplog.at_level(logging.WARNING):
        check_precision(precision, "some/model", None, capability)
    assert len(caplog.messages) == (said is not None)
    assert said is None or said in caplog.messages[0]


def test_the_fastest_precision_is_one_that_loads_here():
    assert fastest_precision() in ("bf16", "fp16", "fp32")
    assert "dtype" in loading_options(fastest_precision())


@pytest.mark.parametrize(
    ("gpus", "options"), [(0, {}), (1, {"device_map": {"": 0}}), (2, {"device_map": "auto"})]
)
def test_one_gpu_takes_the_whole_model(gpus, options, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert device_options() == options
