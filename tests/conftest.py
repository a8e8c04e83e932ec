"""A small world for the tests: pictures named by their words, an encoder, captions, a rewriter."""

import itertools
import random

import numpy as np
import pytest

from feedback.rounds import run_rounds
from index.faiss_index import FaissIndex
from index.scores import unit_rows
from records import Query
from retriever import Retriever

COLOURS = ("red", "green", "blue", "white", "black")
ANIMALS = ("dog", "cat", "horse", "bird", "fish", "mouse")
PLACES = ("beach", "field", "street", "forest", "room")
WORDS = COLOURS + ANIMALS + PLACES
IMAGE_IDS = ["-".join(words) for words in itertools.product(COLOURS, ANIMALS, PLACES)]
random.Random(0).shuffle(IMAGE_IDS)


class WordEncoder:
    """A text to the words it holds, one dimension a word (animals weigh more) and one for no known word."""

    dimension = len(WORDS) + 1
    fingerprint = "words-1"

    def __init__(self):
        self.images_encoded = 0

    def encode_texts(self, texts):
        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.replace(",", " ").replace("-", " ").split():
                row[WORDS.index(word) if word in WORDS else -1] += 2 if word in ANIMALS else 1
            row[-1] = min(row[-1], 0.5)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def encode_images(self, images):
        self.images_encoded += len(images)
        raise AssertionError("the loop needs no picture encoded")


class KnownCaptions:
    """Describes an image by its id's words; keeps what it was asked for."""

    def __init__(self):
        self.asked = []

    def captions_of(self, image_ids):
        self.asked.append(list(image_ids))
        return [caption_of(image_id) for image_id in image_ids]


def caption_of(image_id):
    colour, animal, place = image_id.split("-")
    return f"a {colour} {animal} in the {place}"


class Merger:
    """Rewrites by joining the words of both, each once; keeps the pairs it was given."""

    def __init__(self):
        self.pairs = []

    def rewrite(self, queries, captions):
        self.pairs += zip(queries, captions, strict=True)
        return [
            " ".join(dict.fromkeys(f"{query} {caption}".replace(",", "").split()))
            for query, caption in zip(queries, captions, strict=True)
        ]


def one_target(query_id, text, target):
    return Query(query_id, text, target, frozenset([target]))


def rounds_of(queries, played=(), keep=None, **options):
    """Runs the feedback loop; returns all records, those of the earlier run first."""
    records = list(played)

    def take(fresh):
        records.extend(fresh)
        if keep is not None:
            keep(fresh)

    run_rounds(queries, played=tuple(played), keep=take, **options)
    return records


def world_caption_vectors():
    """The world's captions as a sentence encoder might see them: colours tell most."""
    rows = WordEncoder().encode_texts([caption_of(image_id) for image_id in IMAGE_IDS])
    rows[:, : len(COLOURS)] *= 3
    return unit_rows(rows / np.linalg.norm(rows, axis=1, keepdims=True), rows.shape[1], "caption vectors")


@pytest.fixture(scope="session")
def retriever():
    """The whole world, 150 images, in a real index."""
    encoder = WordEncoder()
    return Retriever(encoder, FaissIndex.build(IMAGE_IDS, encoder.encode_texts(IMAGE_IDS)))


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(extra_tokens):
    """Bytes and a handful of merges, none learned: the same tokenizer on every machine."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<pad>", *extra_tokens]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("d", "o"), ("do", "g"), ("c", "a"), ("ca", "t"), ("Ġ", "a"), ("Ċ", "Ċ")]
    entries = [*special, *alphabet, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({entry: number for number, entry in enumerate(entries)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="session")
def language_model(tmp_path_factory):
    """A folder with a random Llama of two layers and a byte-level tokenizer with a chat template."""
    return make_language_model(tmp_path_factory.mktemp("language-model"))


def make_language_model(folder, width=32):
    """Writes the model of `language_model`; returns the folder's name. bitsandbytes wants a width of 64."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    fast = tiny_tokenizer(["<|im_start|>", "<|im_end|>", "<|tool|>"])
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4 * 32 / width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    ends = fast.convert_tokens_to_ids(["</s>", "Ċ", "ĊĊ"])
    model.lm_head.weight.data[ends] *= 1.5  # so that some answers end, and some lines
    model.save_pretrained(folder)
    return str(folder)
