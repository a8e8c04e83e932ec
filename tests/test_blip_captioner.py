"""Captions as the reference decodes them; the beam search against a plain one and against all sentences."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from BLIP.beam_search import beam_search
from BLIP.captioner import BlipCaptioner

FIXTURES = Path(__file__).parent / "fixtures" / "blip"
CONFIG = {"num_attention_heads": 2, "vision": {"heads": 3}}
RECORDED = json.loads((FIXTURES / "captioner.json").read_text())["generation"]
PIXELS = load_file(FIXTURES / "captioner_outputs.safetensors")["pixel_values"]
END, PAD = 0, 1


@pytest.fixture(scope="module")
def captioner():
    return BlipCaptioner.open(FIXTURES / "captioner.pth", config=CONFIG, batch_size=2)


def until_end(row, end):
    return row[: row.index(end) + 1] if end in row else row


@pytest.mark.parametrize("name", list(RECORDED))
def test_recorded_captions(captioner, name):
    settings = {key: value for key, value in RECORDED[name].items() if key not in ("ids", "captions")}
    ids = captioner.generate(PIXELS, **settings)
    assert [until_end(row, 3) for row in ids.tolist()] == [until_end(row, 3) for row in RECORDED[name]["ids"]]
    assert captioner.read(ids) == RECORDED[name]["captions"]


def test_captions_keep_their_order_over_batches(captioner):
    random = np.random.default_rng(1)
    images = [Image.fromarray(random.integers(0, 256, (50, 50, 3), dtype=np.uint8)) for _ in range(5)]
    together = captioner.caption(images, num_beams=3)
    assert together == [captioner.caption([image], num_beams=3)[0] for image in images]
    assert captioner.caption([]) == []


def test_prompts(captioner, tmp_path):
    assert captioner.prompt == "a picture of " and captioner.prompt_ids().tolist() == [[209, 18, 46, 48]]
    assert captioner.prompt_ids("").tolist() == [[209]]
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG | {"prompt": ""}))
    unprompted = BlipCaptioner.open(FIXTURES / "captioner.pth", config=config)
    assert unprompted.prompt == ""
    image = Image.new("RGB", (48, 48), "green")
    assert unprompted.caption([image], num_beams=1) == captioner.caption([image], "", num_beams=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_length": 4}, "max_length 4 is out of range.*5 to 208"),
        ({"max_length": 209}, "max_length 209 is out of range"),
        ({"num_beams": 0}, "num_beams=0"),
        ({"min_length": 21}, "min_length=21"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
    ],
)
def test_settings_out_of_range(captioner, settings, words):
    with pytest.raises(ValueError, match=words):
        captioner.caption([Image.new("RGB", (48, 48))], **settings)


def toy(seed, vocabulary):
    """A language model whose next-token logits depend on the whole sentence."""

    def logits(sentence):
        generator = torch.Generator().manual_seed(hash((seed, *sentence)) % 2**31)
        return torch.randn(vocabulary, generator=generator) * 1.5

    return logits


def search(logits, prompt, **settings):
    def next_logits(tokens, parents):
        return torch.stack([logits(tuple(row)) for row in tokens.tolist()])

    found = beam_search(next_logits, torch.tensor(prompt), end_id=END, pad_id=PAD, **settings)
    return [until_end(row, END) for row in found.tolist()]


def plain_search(
    logits, prompt, num_beams, max_length, min_length, repetition_penalty=1.0, length_penalty=1.0
):
    """The same rules for one prompt, over lists of sentences."""
    beams, finished = [(0.0, tuple(prompt))], []
    for length in range(len(prompt), max_length):
        candidates = []
        for total, sentence in beams:
            log_p = logits(sentence).log_softmax(-1).tolist()
            for token, value in enumerate(log_p):
                value *= repetition_penalty if token in sentence else 1.0
                if token != END or length >= min_length:
                    candidates.append((total + value, sentence, token))
        candidates = sorted(candidates, key=lambda one: -one[0])[: 2 * num_beams]
        for total, sentence, token in candidates[:num_beams]:
            if token == END:
                finished.append((total / length**length_penalty, sentence))
        finished = sorted(finished, reverse=True)[:num_beams]
        beams = [(total, (*sentence, token)) for total, sentence, token in candidates if token != END][
            :num_beams
        ]
        if len(finished) == num_beams and finished[-1][0] >= candidates[0][0] / length**length_penalty:
            break
    else:
        finished += [(total / max_length**length_penalty, sentence) for total, sentence in beams]
    best = list(max(finished)[1])
    return best if len(best) == max_length else [*best, END]


@pytest.mark.parametrize("seed", range(40))
def test_beam_search_agrees_with_a_plain_one(seed):
    settings = {
        "num_beams": 2 + seed % 3,
        "max_length": 6 + seed % 4,
        "min_length": seed % 5,
        "repetition_penalty": (1.0, 1.3)[seed % 2],
        "length_penalty": (1.0, 0.0, 2.0)[seed % 3],
    }
    logits = toy(seed, vocabulary=7)
    prompts = [[1, 2], [3, 4], [5, 6]]
    expected = [plain_search(logits, prompt, **settings) for prompt in prompts]
    assert search(logits, prompts, **settings) == expected


@pytest.mark.parametrize(("seed", "longest"), [(29, 10), (49, 10), (73, 9)])
def test_a_sentence_is_done_by_its_length_before_the_step(seed, longest):
    # Searches that would go on, and find another sentence, were the new token counted.
    settings = {"num_beams": 2, "max_length": longest, "min_length": 0}
    logits = toy(seed, vocabulary=5)
    assert search(logits, [[1]], **settings) == [plain_search(logits, [1], **settings)]


@pytest.mark.parametrize("seed", range(5))
def test_beams_enough_for_all_sentences_find_the_best(seed):
    vocabulary, longest, prompt = 3, 5, (1,)
    logits = toy(seed, vocabulary)

    def total(tokens):
        sentence, value = prompt, 0.0
        for token in tokens:
            value += logits(sentence).log_softmax(-1)[token].item()
            sentence = (*sentence, token)
        return value

    scored = []
    for count in range(longest):
        for words in itertools.product(range(1, vocabulary), repeat=count):
            whole = (*prompt, *words)
            ended = words if len(whole) == longest else (*words, END)
            scored.append((total(ended) / len(whole), [*prompt, *ended]))
    assert search(logits, [list(prompt)], num_beams=64, max_length=longest, min_length=0) == [max(scored)[1]]


def test_the_length_rule_prefers_the_short_sentence():
    # After the prompt: end at once with probability 0.3, or four sure words after one of probability 0.25.
    def logits(sentence):
        if len(sentence) == 2:
            return torch.tensor([0.3, 0.25, 0.45 / 2, 0.45 / 2]).log()
        row = torch.full((4,), 1e-9)
        row[1 if len(sentence) < 6 and sentence[2] == 1 else END] = 1
        return row.log()

    found = search(logits, [[2, 3]], num_beams=2, max_length=12, min_length=0, length_penalty=0.0)
    assert found == [[2, 3, END]]
    found = search(logits, [[2, 3]], num_beams=2, max_length=12, min_length=0, length_penalty=1.0)
    assert found == [[2, 3, 1, 1, 1, 1, END]]
    assert math.log(0.3) / 2 < math.log(0.25) / 6
