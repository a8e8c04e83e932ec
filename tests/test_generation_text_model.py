"""Batched completion against one prompt at a time, on a tiny random Llama in float32."""

import json
import shutil
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from generation import openvino_engine
from generation.prompts import FEW_SHOT_OPEN, FEW_SHOT_PREFIX
from generation.text_model import PACKAGED, TextModel, _sampled, engine_of

PREFIX = "Combine the two descriptions.\n1: an animal\n"
PROMPTS = [
    "a red dog on the beach in the green field",
    "a",
    "cat",
    "Query: a green cat\nCaption: food",
    "two cups of coffee and a man left of a red dog, keep everything",
    "the",
    "a dog",
    "beach Löwe 犬",
    *(f"{number} words" for number in range(8)),
]


@pytest.fixture(scope="module")
def plain(language_model):
    """The new tokens of one prompt: no batch, no padding, no shared prefix."""
    model = AutoModelForCausalLM.from_pretrained(language_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(language_model)

    def complete(prompt, max_tokens):
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        for _ in range(max_tokens):
            with torch.inference_mode():
                logits = model(ids).logits[0, -1]
            ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
            if ids[0, -1] == tokenizer.eos_token_id:
                break
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        return tokenizer, ids[0, start:].tolist()

    return complete


@pytest.fixture(scope="module")
def expected(plain):
    answers = {}
    for prefix in ("", PREFIX):
        for prompt in PROMPTS:
            tokenizer, ids = plain(prefix + prompt, 24)
            # The prefix ends where a token ends, else the two could not be compared.
            whole = tokenizer(prefix + prompt, add_special_tokens=False)["input_ids"]
            parts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prefix, prompt)]
            assert whole == parts[0] + parts[1]
            answers[prefix, prompt] = tokenizer.decode(ids, skip_special_tokens=True)
    return answers


@pytest.mark.parametrize(("prefix", "batch_size"), [("", 3), (PREFIX, 1), (PREFIX, 3), (PREFIX, 64)])
def test_batches_and_a_shared_prefix_change_nothing(language_model, expected, prefix, batch_size):
    model = TextModel(language_model, "fp32", batch_size)
    prompts = [prefix + prompt for prompt in PROMPTS]
    answers = model.complete(prompts, max_tokens=24)
    assert answers == [expected[prefix, prompt] for prompt in PROMPTS]
    assert model.complete(prompts[::-1], max_tokens=24) == answers[::-1]
    assert model.complete([], max_tokens=24) == []
    assert len(set(answers)) > 10
    assert len({len(answer) for answer in answers}) > 5


def test_sampling_depends_on_seed_and_prompt_and_follows_the_models_probabilities(language_model):
    model = TextModel(language_model, "fp32", 4)
    answers = model.complete(PROMPTS, max_tokens=12, temperature=1.0, seed=3)
    alone = [model.complete([prompt], max_tokens=12, temperature=1.0, seed=3)[0] for prompt in PROMPTS[:3]]
    assert alone == answers[:3]
    assert model.complete(PROMPTS, max_tokens=12, temperature=1.0, seed=4) != answers
    likeliest = model.complete(PROMPTS, max_tokens=12)
    assert answers != likeliest == model.complete(PROMPTS, max_tokens=12, temperature=1e-6)
    scores = torch.tensor([[2.0, 0.0, -1.0]]).expand(4000, -1)
    for temperature in (0.5, 2.0):
        add_noise = _sampled(temperature, 0, [f"prompt {number}" for number in range(len(scores))])
        drawn = add_noise(None, scores).argmax(dim=1).bincount(minlength=3) / len(scores)
        assert drawn == pytest.approx((scores[0] / temperature).softmax(dim=0), abs=0.02)


def test_loading_shows_no_bar_of_its_own(language_model, capfd):
    TextModel(language_model, "fp32", 4).load()
    assert "%|" not in capfd.readouterr().err


def test_a_prompt_without_tokens_is_refused(language_model):
    with pytest.raises(ValueError, match="prompt 1: got no tokens, expected at least one"):
        TextModel(language_model, "fp32", 4).complete(["a", ""], max_tokens=3)


def test_what_prompts_begin_with_is_read_once_for_all_calls(language_model):
    model = TextModel(language_model, "fp32", 8)
    model.load()
    network, tokenizer = model._model.model, model._model.tokenizer
    read = []  # how many tokens the model reads at a time
    network.get_input_embeddings().register_forward_hook(
        lambda module, given, output: read.append(given[0].shape[1])
    )
    shared = 4 * PREFIX
    longest = len(tokenizer(shared, add_special_tokens=False)["input_ids"])
    answers = [model.complete([shared + "cat", shared + "a dog"], max_tokens=2) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert sum(count >= longest - 1 for count in read) == 1


def test_a_line_end_ends_the_answer(language_model, expected):
    model = TextModel(language_model, "fp32", 8)
    stopped = model.complete([PREFIX + prompt for prompt in PROMPTS], max_tokens=24, stops_at_line_end=True)
    whole = [expected[PREFIX, prompt] for prompt in PROMPTS]
    assert sum("\n" in answer for answer in whole) >= 1  # else nothing is tested
    assert [answer.rstrip("\n") for answer in stopped] == [answer.split("\n")[0] for answer in whole]


def test_the_chat_template_is_applied_and_all_tokens_with_a_meaning_are_special(language_model):
    model = TextModel(language_model, "fp32", 8)
    prompt = model.chat_prompt("a {red} dog")
    assert prompt == "<s><|im_start|>user\na {red} dog<|im_end|>\n<|im_start|>assistant\n"
    tokens = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|tool|>"]
    assert sorted(model.special_tokens) == sorted(tokens)


def test_a_missing_model_or_package_is_named_in_one_line(monkeypatch):
    with pytest.raises(ValueError, match="the model /no/such cannot be opened, expected a folder") as caught:
        TextModel("/no/such", "fp32", 8).complete(["a"], max_tokens=1)
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(PACKAGED, "packaged", ("no_such_package", "model.gguf", "pip install no-such"))
    with pytest.raises(ModuleNotFoundError, match="packaged comes in a package; run: pip install no-such"):
        TextModel("packaged", "fp32", 8).complete(["a"], max_tokens=1)


def copy_with(language_model, folder, **settings):
    shutil.copytree(language_model, folder)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return TextModel(str(folder), "fp32", 8)


def test_every_end_that_the_model_lists_ends_an_answer(language_model, plain, expected, tmp_path):
    """Llama 3.1 lists three, of which its tokenizer knows one."""
    whole = [expected["", prompt] for prompt in PROMPTS]
    token = plain(PROMPTS[0], 24)[1][2]
    ended = copy_with(language_model, tmp_path / "model", eos_token_id=[1, token])
    answers = ended.complete(PROMPTS, max_tokens=24)
    assert answers != whole
    ids = plain(PROMPTS[0], 24)[1]
    decode = AutoTokenizer.from_pretrained(language_model).decode
    assert answers[0] == decode(ids[: ids.index(token) + 1], skip_special_tokens=True)
    assert ended._model.ends() == [1, token]


def test_sampling_and_penalties_that_come_with_a_model_are_left_out(language_model, expected, tmp_path):
    """Qwen 2.5 comes with a repetition penalty, Llama 3.1 with sampling."""
    model = copy_with(
        language_model,
        tmp_path / "model",
        do_sample=True,
        temperature=9.0,
        top_p=0.5,
        repetition_penalty=2.0,
        no_repeat_ngram_size=2,
        max_length=4,
        eos_token_id=1,
    )
    assert model.complete(PROMPTS, max_tokens=24) == [expected["", prompt] for prompt in PROMPTS]


def test_the_templates_first_token_stands_once(language_model):
    """Also where the tokenizer would put another one before it, as Llama's and Mistral's do."""
    from tokenizers.processors import TemplateProcessing

    model = TextModel(language_model, "fp32", 8)
    model.load()
    loaded, tokenizer = model._model.model, model._model.tokenizer
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert tokenizer("a")["input_ids"][0] == 0
    seen = []
    loaded.get_input_embeddings().register_forward_hook(lambda module, given, output: seen.append(given[0]))
    model.complete([model.chat_prompt("a dog")], max_tokens=2)
    assert seen[0][0].tolist().count(0) == 1 and seen[0][0, 0] == 0


def test_a_model_without_a_chat_template_is_named_in_one_line(language_model, tmp_path):
    shutil.copytree(language_model, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    with pytest.raises(
        ValueError, match="has no chat template, expected a chat model: most are named"
    ) as caught:
        TextModel(str(tmp_path / "model"), "fp32", 8).chat_prompt("a dog")
    assert "\n" not in str(caught.value)


def test_a_packed_model_is_not_quantized_again():
    with pytest.raises(ValueError, match="smollm2-135m-instruct, whose weights are stored as gguf already"):
        TextModel("smollm2-135m-instruct", "int8", 8).complete(["a"], max_tokens=1)


def test_a_packaged_model_goes_to_openvino_on_a_cpu_unless_a_precision_is_asked_for(monkeypatch):
    name = "smollm2-135m-instruct"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(openvino_engine, "is_installed", lambda: True)
    assert engine_of(name, "auto") == "openvino"
    assert engine_of(name, "fp32") == "fp32"
    assert engine_of("some/model", "auto") in ("bf16", "fp32")
    assert TextModel(name, "auto", 8).name == f"{name} openvino"
    monkeypatch.setattr(openvino_engine, "is_installed", lambda: False)
    assert engine_of(name, "auto") in ("bf16", "fp32")
    monkeypatch.setattr(openvino_engine, "is_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert engine_of(name, "auto") == "bf16"


@pytest.mark.demo
def test_openvino_answers_alone_as_in_any_company():
    if not openvino_engine.is_installed():
        pytest.skip("pip install -r requirements/demo.txt")
    queries = ("An open box including bottles", "Two planes are close together", "A slice of cake is")
    captions = (
        "Closeup of a switch in front of the old clock factory in town.",
        "Three cows, two black and one brown, graze in a green field.",
        "Pieces of fruit and a knife are kept on a board. Bread is on the table.",
    )
    prompts = [
        FEW_SHOT_PREFIX + FEW_SHOT_OPEN.format(query=query, caption=caption)
        for query in queries
        for caption in captions
    ]
    model = TextModel("smollm2-135m-instruct", "auto", 16)
    together = model.complete(prompts, max_tokens=60, stops_at_line_end=True)
    alone = [model.complete([prompt], max_tokens=60, stops_at_line_end=True)[0] for prompt in prompts]
    assert together == alone


@pytest.mark.demo
def test_openvino_answers_the_same_every_time_and_stops_at_a_line_end():
    if not openvino_engine.is_installed():
        pytest.skip("pip install -r requirements/demo.txt")
    model = TextModel("smollm2-135m-instruct", "auto", 2)
    prompts = ["1: a dog\n2: a cat on the beach\nCombined:", "One, two, three,", "1: a bus\nCombined:"]
    answers = model.complete(prompts, max_tokens=12, stops_at_line_end=True)
    assert model.complete(prompts, max_tokens=12, stops_at_line_end=True) == answers
    assert not any("\n" in answer for answer in answers) and answers[1].lstrip().startswith("four")
    assert 0 < model.tokens_written <= 2 * 3 * 12
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>"} <= set(model.special_tokens)
    assert "\n" in model.complete(prompts, max_tokens=30)[0]
    assert model.chat_prompt("a {red} dog").endswith("a {red} dog<|im_end|>\n<|im_start|>assistant\n")
    assert sys.modules["openvino_telemetry"] is None  # it would report every start
