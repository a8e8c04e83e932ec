"""int8 and int4 by bitsandbytes, for real: random models quantized on the CPU, near their float32 selves."""

import pytest
import tiny_vlms
import torch
from conftest import make_language_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from captioning import Captioning
from generation.loading import open_model

bitsandbytes = pytest.importorskip("bitsandbytes")

LAYERS = {"int8": bitsandbytes.nn.Linear8bitLt, "int4": bitsandbytes.nn.Linear4bit}
NEAR = {"int8": 0.999, "int4": 0.9}  # cosine of the logits with float32's
OFF = {"int8": 0.015, "int4": 0.12}  # of one layer's output, relative: nf4 has 16 levels


@pytest.fixture(scope="module")
def llava_next(tmp_path_factory):
    return tiny_vlms.llava_next(tmp_path_factory.mktemp("llava"), width=128)


def linears(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}


def check_layers(model, precision):
    for name, layer in linears(model).items():
        if name == "lm_head":
            assert type(layer) is torch.nn.Linear and layer.weight.dtype.itemsize == 2
        else:
            assert type(layer) is LAYERS[precision], name
            assert layer.weight.dtype == {"int8": torch.int8, "int4": torch.uint8}[precision]
    if precision == "int4":
        layer = next(layer for layer in linears(model).values() if isinstance(layer, LAYERS["int4"]))
        assert layer.weight.quant_type == "nf4" and layer.weight.quant_state.nested
        assert layer.compute_dtype in (torch.float16, torch.bfloat16)


def cosine(one, other):
    return torch.nn.functional.cosine_similarity(one.float().flatten(), other.float().flatten(), dim=0).item()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_language_model(tmp_path, precision):
    llama = make_language_model(tmp_path, width=128)
    tokens = torch.randint(0, 250, (3, 12), generator=torch.Generator().manual_seed(0))
    states = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact = open_model(AutoModelForCausalLM, llama, "fp32")
        full = exact(tokens).logits
        model = open_model(AutoModelForCausalLM, llama, precision)
        check_layers(model, precision)  # before use: on a CPU, int4 is then packed in another order
        logits = model(tokens).logits
        layer, exact_layer = (one.model.layers[1].mlp.up_proj for one in (model, exact))
        wrong = layer(states.to(model.dtype)).float() - exact_layer(states)
    assert 0 < wrong.norm() / exact_layer(states).norm() < OFF[precision]
    assert torch.isfinite(logits).all()
    assert cosine(logits, full) > NEAR[precision]
    assert not torch.equal(logits.float(), full)


def test_without_outliers_every_number_is_multiplied_in_eight_bits(tmp_path):
    llama = make_language_model(tmp_path, width=128)
    states = 20 * torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).to(torch.float16)
    answers = []
    for precision in ("int8", "int8:0"):
        model = open_model(AutoModelForCausalLM, llama, precision)
        check_layers(model, "int8")
        layer = model.model.layers[1].mlp.up_proj
        assert layer.state.threshold == (6.0 if precision == "int8" else 0.0)
        with torch.inference_mode():
            answers.append(layer(states))
    assert not torch.equal(*answers)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_vision_language_model(llava_next, precision):
    captioning = Captioning(llava_next, "fp32")
    processor = captioning._vision_language[1]
    inputs = processor(
        images=tiny_vlms.pictures(),
        text=["[INST] <image>\na dog [/INST]"] * 5,
        padding=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        full = captioning._vision_language[0](**inputs).logits
        model = open_model(AutoModelForImageTextToText, llava_next, precision)
        check_layers(model, precision)
        logits = model(**inputs.to(model.dtype)).logits
    assert sum("vision_tower" in name for name in linears(model)) >= 12
    seen = inputs["attention_mask"].bool()
    assert torch.isfinite(logits[seen]).all()
    # Its random weights are larger than a trained model's, so that its captions differ: errors are, too.
    assert cosine(logits[seen], full[seen]) > {"int8": 0.97, "int4": 0.6}[precision]
