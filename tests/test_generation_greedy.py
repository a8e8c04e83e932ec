"""Decoding of many prompts at once against transformers' own greedy decoding, one prompt at a time."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from generation import greedy

WORDS = 40
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,  # wide: else a random model writes one token for ever
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
}
ENDS = [7, 11]
MOST = 18


def build(family):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[family]).eval()


def some_prompts(seed, count=23, longest=9):
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=random).tolist()
    return [torch.randint(1, WORDS, (length,), generator=random).tolist() for length in lengths]


def alone(model, ids):
    """The tokens of `generate`, with the model's usual attention."""
    model.set_attn_implementation("eager")
    prompt = torch.tensor([ids])
    with torch.inference_mode():
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=MOST,
            do_sample=False,
            eos_token_id=ENDS,
            pad_token_id=0,
        )
    return output[0, len(ids) :].tolist()


def together(model, starts, prompts, slots):
    model.set_attn_implementation(greedy.ATTENTION)
    with torch.inference_mode():
        opening = greedy.read_opening(model, starts)
        found = list(greedy.decode(model, opening, prompts, ENDS, MOST, slots))
    assert sorted(row for row, _ in found) == list(range(len(prompts)))
    return [ids for _, ids in sorted(found)]


def test_every_plain_family_is_compared_here():
    assert set(CONFIGS) == set(greedy.PLAIN_FAMILIES)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("starts", [[], [3, 9, 4, 1, 5]], ids=["no opening", "opening"])
@pytest.mark.parametrize("slots", [1, 3, 8, 64])
def test_the_tokens_are_those_of_one_prompt_at_a_time(family, starts, slots):
    model = build(family)
    assert greedy.decodes(model)
    prompts = some_prompts(seed=slots)
    expected = [alone(model, starts + prompt) for prompt in prompts]
    assert together(model, starts, prompts, slots) == expected
    assert len({len(ids) for ids in expected}) > 3  # they end at different places, else nothing is tested
    assert any(len(ids) == MOST for ids in expected)


def test_an_opening_serves_many_calls():
    model = build("llama")
    starts, first, second = [5, 5, 8, 2], some_prompts(1), some_prompts(2)
    expected = [alone(model, starts + prompt) for prompt in (*first, *second)]
    model.set_attn_implementation(greedy.ATTENTION)
    with torch.inference_mode():
        opening = greedy.read_opening(model, starts)
        found = []
        for prompts in (first, second):
            found += [ids for _, ids in sorted(greedy.decode(model, opening, prompts, ENDS, MOST, 4))]
    assert found == expected


def fed(model):
    """Collects the shapes that the model is fed."""
    shapes = []
    model.get_input_embeddings().register_forward_hook(
        lambda module, given, output: shapes.append(tuple(given[0].shape))
    )
    return shapes


def test_what_ended_leaves_its_place(monkeypatch):
    """Without, a batch would take as many steps as its longest answer."""
    model = build("llama")
    prompts = sorted(some_prompts(3, count=64), key=len)
    expected = [alone(model, prompt) for prompt in prompts]
    steps, step = [], greedy._Pool.step
    monkeypatch.setattr(greedy._Pool, "step", lambda pool: (steps.append(len(pool.rows)), step(pool)))
    monkeypatch.setattr(greedy, "MAX_AHEAD", 0)
    assert together(model, [], prompts, 8) == expected
    batches = [expected[start : start + 8] for start in range(0, 64, 8)]
    assert len(set(map(len, expected))) > 3
    assert len(steps) < 0.95 * sum(max(map(len, batch)) - 1 for batch in batches)
    assert max(steps) == 8


def test_a_step_reads_no_more_tokens_than_there_are_slots():
    model = build("llama")
    shapes = fed(model)
    prompts = [[1 + number] for number in range(20)]  # of one token: what is wider is a guess
    together(model, [], prompts, 8)
    assert max(rows * width for rows, width in shapes) <= 8
    assert any(width > 1 for _, width in shapes)


def test_right_guesses_save_steps():
    """A model that loops is guessed: with one prompt and many slots it takes fewer steps than tokens."""
    model = build("llama")
    looping = next(prompt for prompt in some_prompts(4, count=200) if loops(alone(model, prompt)))
    expected = alone(model, looping)
    shapes = fed(model)
    assert together(model, [], [looping], 16) == [expected]
    assert len(shapes) < 0.7 * MOST
    shapes.clear()
    assert together(model, [], [looping], 1) == [expected]
    assert len(shapes) == MOST


def loops(ids):
    return len(ids) == MOST and ids[-12:-8] == ids[-8:-4] == ids[-4:]


@pytest.mark.parametrize(
    ("tokens", "most", "expected"),
    [
        ([1, 2, 3, 9, 1, 2], 3, [3, 9, 1]),
        ([5, 6, 7, 8, 1, 6, 7], 2, [8, 1]),  # two that match count more than one later
        ([1, 2, 3], 4, []),
        ([4, 4], 3, [4, 4, 4]),
        ([1, 2, 1, 2, 1], 5, [2, 1, 2, 1, 2]),
        ([1, 2, 1], 0, []),
        ([1], 3, []),
    ],
)
def test_a_guess_is_what_stood_there_before(tokens, most, expected):
    assert greedy.guess(tokens, most) == expected


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SIZES, sliding_window=4),
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1),
        Gemma2Config(**SIZES),
    ],
    ids=["a window", "a window in some layers", "caps"],
)
def test_other_attention_is_left_to_transformers(config):
    assert not greedy.decodes(AutoModelForCausalLM.from_config(config))
