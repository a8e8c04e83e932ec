"""How many operations and bytes a model needs at least, from its configuration: the floor of its time.

Counted are matrix products, two operations for a multiplication with its addition; norms, activations and
softmax are left out. Weights are read once for each batch. `Machine.seconds` turns both into the shortest
time: no machine can be faster than its processors, nor than its memory (Williams, Waterman and Patterson
2009, Communications of the ACM 52, the "roofline").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Work:
    """What has to be done.

    Attributes:
        operations: Additions and multiplications.
        read_bytes: Of memory.
    """

    operations: float
    read_bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.read_bytes + other.read_bytes)

    def __mul__(self, times: float) -> Work:
        return Work(self.operations * times, self.read_bytes * times)


@dataclass(frozen=True)
class Machine:
    """What can be done.

    Attributes:
        operations_per_second: Of matrix products, in the precision at hand.
        bytes_per_second: Read from memory.
    """

    operations_per_second: float
    bytes_per_second: float

    def seconds(self, work: Work) -> float:
        """Returns the least time, computing and reading at once."""
        return max(work.operations / self.operations_per_second, work.read_bytes / self.bytes_per_second)


def reads_image(vision: Any) -> Work:
    """Counts one image through a vision transformer; its weights' bytes are left out.

    Args:
        vision: The configuration: of BLIP, CLIP or alike.
    """
    patches = (vision.image_size // vision.patch_size) ** 2
    width, tokens = vision.hidden_size, patches + 1
    embedding = 2.0 * patches * 3 * vision.patch_size**2 * width
    layer = _layer(width, width, width, vision.intermediate_size, 2, tokens, tokens * tokens)
    return Work(embedding + vision.num_hidden_layers * layer)


def reads_text(config: Any, tokens: float, before: float = 0, causal: bool = True) -> Work:
    """Counts tokens through a language model or a text encoder, output layer and weights' bytes left out.

    Args:
        config: Of the language model.
        tokens: How many are read together.
        before: Tokens in the cache, which are attended to only.
        causal: Whether a token attends to itself and those before it, not to all.
    """
    heads, queries = config.num_attention_heads, _query_width(config)
    keys = (getattr(config, "num_key_value_heads", None) or heads) * queries // heads
    pairs = tokens * before + (tokens * (tokens + 1) / 2 if causal else tokens * tokens)
    products = 2 if config.model_type.startswith(("blip", "bert")) else 3  # SwiGLU has a third
    layer = _layer(config.hidden_size, queries, keys, config.intermediate_size, products, tokens, pairs)
    return Work(config.num_hidden_layers * layer)


def looks_at_image(config: Any, tokens: float, image_tokens: int, image_width: int) -> Work:
    """Counts the cross-attention of BLIP's captioner: keys and values of the image once, queries a token.

    Args:
        config: Of the text decoder.
        tokens: Written.
        image_tokens: Of the vision encoder.
        image_width: Of its states.
    """
    width = config.hidden_size
    once = 2.0 * image_tokens * 2 * image_width * width
    each = 2.0 * 2 * width * width + 4.0 * image_tokens * width
    return Work(config.num_hidden_layers * (once + tokens * each))


def writes_tokens(
    config: Any, tokens: float, before: float, batch: int, weight_bytes: float, number_bytes: int
) -> Work:
    """Counts answers written token by token, a batch at a time: for one answer.

    Args:
        config: Of the language model.
        tokens: Of the answer.
        before: Of prompt and picture, in the cache.
        batch: Answers written together; they share the reading of the weights.
        weight_bytes: Of all weights that a step reads, the output layer's included.
        number_bytes: Of a number in the cache.
    """
    from generation.footprint import cache_bytes_per_token

    middle = before + tokens / 2
    output = 2.0 * config.hidden_size * config.vocab_size
    step = reads_text(config, 1, middle) + Work(output)
    cache = middle * cache_bytes_per_token(config, number_bytes)
    return Work(step.operations, weight_bytes / batch + cache) * tokens


def step_bytes(config: Any, number_bytes: float) -> float:
    """Counts the bytes of the weights that writing one token reads: all layers, and the output layer.

    Args:
        config: Of the language model.
        number_bytes: Of a weight.
    """
    one = reads_text(config, 1).operations - 4.0 * config.num_hidden_layers * _query_width(config)
    return number_bytes * (one / 2 + config.hidden_size * config.vocab_size)


def _query_width(config: Any) -> int:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_attention_heads * head


def _layer(
    width: int, queries: int, keys: int, inner: int, products: int, tokens: float, pairs: float
) -> float:
    """Operations of a transformer layer: projections, MLP, attention over pairs of tokens."""
    weights = 2 * width * queries + 2 * width * keys + products * width * inner
    return 2.0 * tokens * weights + 4.0 * pairs * queries
