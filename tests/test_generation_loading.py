"""Which precision and attention a model is opened with, and which wishes are refused."""

import importlib.util
import logging
import time

import pytest
import tiny_vlms
import torch
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from BLIP.weight_files import fetch_checkpoint
from captioning import Captioning
from experiments.models import quantization_of
from generation import loading
from generation.loading import (
    PRECISIONS,
    check_precision,
    fits_flash_attention,
    loading_options,
    model_type,
    precision_of,
)
from query_editing import QueryEditing
from settings import SessionSettings, reach_hub

AMPERE, TURING = (8, 6), (7, 5)


def test_true_is_int8_and_false_is_fp16():
    assert precision_of(True) == "int8"
    assert precision_of(False) == "fp16"
    assert [precision_of(name) for name in PRECISIONS] == list(PRECISIONS)
    assert "dtype" in loading_options(precision_of("auto"))
    assert loading_options("fp32") == {"dtype": torch.float32}
    assert loading_options("fp16") == loading_options(False) == {"dtype": torch.float16}


def test_without_the_hub_a_model_that_is_not_there_is_refused_in_seconds(monkeypatch, tmp_path, caplog):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    reach_hub.cache_clear()
    begun = time.monotonic()
    with pytest.raises(ValueError, match="the model some/one cannot be opened"):
        model_type("some/one")
    with pytest.raises(ValueError, match="some/two is no path here and cannot be fetched"):
        fetch_checkpoint("some/two")
    assert time.monotonic() - begun < 10 and constants.HF_HUB_OFFLINE
    reach_hub.cache_clear()


@pytest.mark.parametrize("name", ["INT8", None, 1])
def test_other_names_are_errors(name):
    with pytest.raises(
        ValueError, match=r"quantization: got .*expected True, False, 'auto' or one of .*int4"
    ):
        precision_of(name)


def test_quantised_ones_ask_for_bitsandbytes_in_one_line(monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda package: None if package == "bitsandbytes" else there(package)
    )
    with pytest.raises(ModuleNotFoundError, match="needs bitsandbytes; run: pip install -r ") as caught:
        loading_options("int4")
    assert "\n" not in str(caught.value)


def test_the_threshold_of_int8_is_part_of_the_precision():
    pytest.importorskip("bitsandbytes")
    for precision, threshold in (("int8", 6.0), (True, 6.0), ("int8:0", 0.0), ("int8:3.5", 3.5)):
        assert loading_options(precision)["quantization_config"].llm_int8_threshold == threshold
    assert precision_of("int8:0") == "int8:0"
    for wrong in ("int4:0", "fp16:0"):
        with pytest.raises(ValueError, match="quantization: got"):
            precision_of(wrong)
    with pytest.raises(ValueError, match=r"needs a GPU of compute capability 7\.5"):
        check_precision("int8:0", "some/model", None, (7, 0))


@pytest.mark.parametrize(
    ("settings", "precision"),
    [
        ({"quantization": "int8"}, "int8"),
        ({"quantization": True, "int8_threshold": 6.0}, True),
        ({"quantization": "int8", "int8_threshold": 0.0}, "int8:0"),
        ({"quantization": "int4", "int8_threshold": 0.0}, "int4"),
        ({"preset": "rtx3090-modern"}, "int8:0"),
        ({"preset": "rtx3090-int8"}, "int8"),
    ],
)
def test_settings_name_the_threshold(settings, precision):
    assert quantization_of(SessionSettings("image_folder", **settings).resolved()) == precision


@pytest.mark.parametrize("precision", ["int8", "int4"])
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
        ("fp32", None, None),
        ("bf16", None, None),
        ("int8", (8, 6), None),
    ],
)
def test_what_works_slowly_is_said(precision, capability, said, caplog):
    with caplog.at_level(logging.WARNING):
        check_precision(precision, "some/model", None, capability)
    assert len(caplog.messages) == (said is not None)
    assert said is None or said in caplog.messages[0]


@pytest.mark.parametrize(
    ("gpus", "options"), [(0, {}), (1, {"device_map": {"": 0}}), (2, {"device_map": "auto"})]
)
def test_one_gpu_takes_the_whole_model(gpus, options, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert loading._device_options() == options


def llama(**settings):
    config = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, **settings)
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def wide():
    return llama(num_attention_heads=1, num_key_value_heads=1, head_dim=512)


def blip():
    with torch.device("meta"):
        return BlipForConditionalGeneration(BlipConfig())


def llava():
    with torch.device("meta"):
        return LlavaForConditionalGeneration(LlavaConfig())


@pytest.mark.parametrize(
    ("build", "settings", "fits"),
    [
        (llama, {}, True),
        (llava, {}, True),
        (llama, {"capability": None}, False),
        (llama, {"capability": TURING}, False),
        (llama, {"dtype": torch.float32}, False),
        (wide, {}, False),
        (blip, {}, False),
    ],
)
def test_flash_attention_is_for_what_all_of_a_model_supports(build, settings, fits, monkeypatch):
    given = {"dtype": torch.float16, "capability": AMPERE} | settings
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    assert fits_flash_attention(build(), **given) == fits
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: False)
    assert not fits_flash_attention(build(), **given)


def test_one_part_without_flash_attention_decides_for_the_whole(monkeypatch):
    model = llava()
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(type(model.model.vision_tower), "_supports_flash_attn", False)
    assert not fits_flash_attention(model, torch.float16, AMPERE)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int8:0", "int4"])
def test_captioners_and_rewriters_ask_for_flash_attention(precision, language_model, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    folders = [tiny_vlms.BUILDERS[kind](tmp_path / kind) for kind in ("llava_next", "smolvlm2", "qwen3_vl")]
    asked = []

    def from_pretrained(source, **options):
        asked.append(options.get("attn_implementation"))
        raise OSError("as far as a machine without a GPU can go")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", from_pretrained)
    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", from_pretrained)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(loading, "gpu_capability", lambda: AMPERE)
    opened = [Captioning(folder, precision) for folder in folders]
    for model in (*opened, QueryEditing(language_model, precision)):
        with pytest.raises(ValueError, match="as far as"):
            model.load()
    assert asked == ["flash_attention_2"] * 4
