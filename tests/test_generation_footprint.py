"""The estimate against models that are really loaded, and against the sizes that are published."""

import json
import weakref
from pathlib import Path

import pytest
import tiny_vlms
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from generation.footprint import CONFIGS, configuration, footprint, image_tokens
from generation.opening import open_model

PUBLISHED = {  # number of parameters that the hub shows
    "llava-hf/llava-v1.6-mistral-7b-hf": 7_566_747_648,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "HuggingFaceTB/SmolVLM-256M-Instruct": 256_484_928,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of random models by kind: plain, with tied embeddings, and seeing."""
    folders = {"llama": tmp_path_factory.mktemp("llama"), "qwen2": tmp_path_factory.mktemp("qwen2")}
    torch.manual_seed(0)
    settings = {
        "vocab_size": 300, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(folders["llama"])
    Qwen2ForCausalLM(Qwen2Config(**settings, tie_word_embeddings=True)).save_pretrained(folders["qwen2"])
    seeing = {kind: build(tmp_path_factory.mktemp(kind), 128) for kind, build in tiny_vlms.BUILDERS.items()}
    return {kind: str(folder) for kind, folder in folders.items()} | seeing


def loaded_bytes(model):
    """Of all tensors that a loaded model holds, what bitsandbytes keeps beside its weights included."""
    tensors = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        if getattr(parameter, "SCB", None) is not None:
            tensors.append(parameter.SCB)
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tensors += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    seen = {id(tensor): tensor.numel() * tensor.element_size() for tensor in tensors}
    return sum(seen.values())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int4"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", *tiny_vlms.BUILDERS])
def test_weights_are_exact(models, kind, precision):
    if precision.startswith("int"):
        pytest.importorskip("bitsandbytes")
    auto = AutoModelForImageTextToText if kind in tiny_vlms.BUILDERS else AutoModelForCausalLM
    model = open_model(auto, models[kind], precision)
    estimate = footprint(models[kind], precision, 10, 10)
    assert estimate.weight_bytes == loaded_bytes(model)
    if precision == "fp32":
        assert estimate.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["llama", "qwen2", "llava_next"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_cache_is_exact(models, kind, precision):
    auto = AutoModelForImageTextToText if kind in tiny_vlms.BUILDERS else AutoModelForCausalLM
    model = open_model(auto, models[kind], precision)
    with torch.inference_mode():
        cache = model(torch.ones((3, 17), dtype=torch.long), use_cache=True).past_key_values
    held = sum(
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
    )
    assert held == 3 * 17 * footprint(models[kind], precision, 10, 10).cache_bytes_per_token


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, and the most alive at once."""

    def __init__(self):
        super().__init__()
        self.seen, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.seen:
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                self.seen[key] = size
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.forget, key, size)
        return result

    def forget(self, key, size):
        if self.seen.pop(key, None) is not None:
            self.now -= size


@pytest.mark.parametrize(("batch", "tokens"), [(1, 200), (4, 64), (2, 400)])
def test_activations_are_an_upper_estimate_and_a_near_one(tmp_path, batch, tokens):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=128, intermediate_size=448, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = open_model(AutoModelForCausalLM, str(tmp_path), "fp32")
    ids = torch.ones((batch, tokens), dtype=torch.long)
    with torch.inference_mode(), PeakMemory() as memory:
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, pad_token_id=0)
    estimate = footprint(str(tmp_path), "fp32", tokens, 0)
    needed = estimate.working_bytes(batch)
    assert 0.5 * needed < memory.peak < 1.05 * needed


@pytest.mark.parametrize(("model_id", "count"), PUBLISHED.items())
def test_the_kept_configurations_have_the_published_sizes(model_id, count):
    assert footprint(model_id, "fp16", 100, 100).parameters == count


def test_blip_base_has_its_published_sizes():
    from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

    with torch.device("meta"):
        search = BlipForImageTextRetrieval(configuration("Salesforce/blip-itm-base-coco"))
        captioner = BlipForConditionalGeneration(configuration("Salesforce/blip-image-captioning-base"))
    assert sum(parameter.numel() for parameter in search.parameters()) == 223_744_258
    # Published as 247,414,076: the file holds the word embeddings a second time.
    words = captioner.text_decoder.get_input_embeddings().weight.numel()
    assert sum(parameter.numel() for parameter in captioner.parameters()) + words == 247_414_076


def test_every_kept_configuration_is_a_presets_model():
    from settings import PRESETS

    used = {preset[key] for preset in PRESETS.values() for key in ("blip", "caption_model", "rewrite_model")}
    kept = {path.stem.replace("--", "/") for path in CONFIGS.glob("*.json")}
    assert kept - used == {"Salesforce/blip-image-captioning-base"}  # the other captioner for a laptop
    hub = {name for name in used if name.count("/") == 1 and not name.endswith(".ckpt")}
    assert hub <= kept


def test_llava_next_reads_as_many_tokens_as_its_largest_grid_gives(models):
    """Against the processor: the largest count over pictures of many shapes."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(models["llava_next"])
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    counts = []
    for picture in tiny_vlms.pictures():
        ids = processor(images=[picture], text=["<image>"], return_tensors="pt")["input_ids"]
        counts.append(int((ids == image).sum()))
    assert max(counts) <= image_tokens(AutoConfig.from_pretrained(models["llava_next"])) <= max(counts) + 2
    assert image_tokens(configuration("llava-hf/llava-v1.6-mistral-7b-hf")) == 24 * 24 + 48 * 49


def test_smolvlm_reads_seventeen_tiles_at_most():
    assert image_tokens(configuration("HuggingFaceTB/SmolVLM-256M-Instruct")) == 17 * (64 + 4)


def test_weights_that_came_packed_are_counted_packed(models, tmp_path):
    config = json.loads(Path(models["llama"], "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    packed = footprint(str(tmp_path), "fp16", 10, 10)
    assert packed.weight_bytes == footprint(models["llama"], "int4", 10, 10).weight_bytes
    with pytest.raises(ValueError, match="whose weights are stored as awq already"):
        footprint(str(tmp_path), "int8", 10, 10)


def test_an_unknown_model_is_named_in_one_line():
    with pytest.raises(ValueError, match="the model /no/such cannot be opened") as caught:
        footprint("/no/such", "fp16", 100, 100)
    assert "\n" not in str(caught.value)
