"""What QUANTIZATION means."""

import importlib.util

import pytest
import torch

from generation.precision import PRECISIONS, device_options, fastest_precision, loading_options, precision_of


def test_true_is_int8_and_false_is_fp16():
    assert precision_of(True) == "int8"
    assert precision_of(False) == "fp16"
    assert [precision_of(name) for name in PRECISIONS] == list(PRECISIONS)


@pytest.mark.parametrize("name", ["int16", "INT8", "", "auto", None, 8, 1])
def test_other_names_are_errors(name):
    with pytest.raises(ValueError, match=r"quantization: got .*expected True, False or one of .*int4"):
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


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_quantised_ones_name_their_bits():
    assert loading_options("int8")["quantization_config"].load_in_8bit
    four = loading_options("int4")["quantization_config"]
    assert four.load_in_4bit and four.bnb_4bit_quant_type == "nf4" and four.bnb_4bit_use_double_quant


def test_the_fastest_precision_is_one_that_loads_here():
    assert fastest_precision() in ("bf16", "fp16", "fp32")
    assert "dtype" in loading_options(fastest_precision())
    assert device_options() == ({"device_map": "auto"} if torch.cuda.is_available() else {})
