"""Greedy decoding of many prompts: what all begin with is kept once, and rows that end make room for others.

`generate` of transformers keeps a copy of the common opening for every row, and a batch goes on until its
longest answer ends. Here

- the rows attend to one copy of the opening in one matrix product (Hydragen, Juravsky et al. 2024, arXiv
  2402.05099);
- a row that ends leaves its place to the next prompt (continuous batching: Orca, Yu et al., OSDI 2022);
- places that stay empty are used to guess ahead: a rewrite mostly copies its prompt, so what followed the
  last tokens there is read along with them and kept as far as the model would have written it (speculative
  decoding, Leviathan et al. 2023, arXiv 2211.17192, with the prompt as the draft model).

The tokens are those of greedy decoding, but for the rounding that other shapes of a product bring.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

ATTENTION = "common_opening"

# Families whose attention is softmax(q k / sqrt(d)) v and nothing else; each is compared with `generate` in
# tests/test_generation_greedy.py. Others may add caps, sinks or biases that `attend` does not know.
PLAIN_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

MAX_AHEAD = 10  # tokens guessed at a time

_GROWTH = 16  # columns by which the rows' buffers grow


def decodes(model: Any) -> bool:
    """Returns whether a causal language model of transformers can be decoded here.

    Args:
        model: The model, or a skeleton of it.
    """
    config = model.config
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    return (
        config.model_type in PLAIN_FAMILIES
        and set(kinds) == {"full_attention"}
        and getattr(config, "sliding_window", None) is None
    )


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    opening: _Rows | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of rows to the opening that all share, and to their own tokens; one softmax over both.

    Args:
        module: The model's attention, whose ``layer_idx`` counts.
        query: (rows, query heads, new tokens, d).
        key: (rows, heads, own tokens, d); as many query heads share each.
        value: Likewise.
        attention_mask: (rows, 1, new tokens, own tokens) bool: true where a token may look.
        scaling: Of the dot products.
        opening: Keys and values of (1, heads, opening tokens, d) a layer.

    Returns:
        (rows, new tokens, query heads, d), and no weights.
    """
    rows, query_heads, new, d = query.shape
    heads, own = key.shape[1:3]
    asked = query.reshape(rows, heads, -1, d)  # (rows, heads, query heads a head x new, d)
    mask = attention_mask.expand(rows, query_heads, new, own).reshape(rows, heads, -1, own)
    scores = (asked @ key.transpose(2, 3)).mul_(scaling).masked_fill_(~mask, float("-inf"))
    if opening is None:
        seen = scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    else:
        kept = opening.layers[module.layer_idx]
        length = kept.keys.shape[2]
        together = asked.transpose(0, 1).reshape(heads, -1, d)  # all rows as one matrix
        shared = (together @ kept.keys[0].transpose(1, 2)).mul_(scaling)
        shared = shared.view(heads, rows, -1, length).transpose(0, 1)
        weights = torch.cat([shared, scores], -1).softmax(-1, dtype=torch.float32).to(value.dtype)
        of_opening = weights[..., :length].transpose(0, 1).reshape(heads, -1, length) @ kept.values[0]
        seen = weights[..., length:] @ value
        seen += of_opening.view(heads, rows, -1, d).transpose(0, 1)
    return seen.reshape(rows, -1, new, d).transpose(1, 2), None


AttentionInterface.register(ATTENTION, attend)


class _Columns(CacheLayerMixin):
    """One layer's keys and values of the rows' own tokens; buffers of (rows, heads, columns, d)."""

    filled = 0
    keys: Any
    values: Any

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends new tokens; returns all, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.filled + key_states.shape[2]
        if end > self.keys.shape[2]:
            self.keys, self.values = _roomier(self.keys, end), _roomier(self.values, end)
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.filled

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def joined(self, rows: Tensor, columns: Tensor, width: int, new: _Columns | None) -> _Columns:
        """Returns some rows, and new ones below them, right-aligned.

        Args:
            rows: (kept,) int64: the rows to keep.
            columns: (kept, at most width) int64: the columns to keep of each.
            width: Columns of the result; what is missing is zero.
            new: Whose filled columns are at most as many.
        """
        layer = _Columns()
        keys, values = (part[rows[:, None], :, columns].transpose(1, 2) for part in (self.keys, self.values))
        layer.keys, layer.values = _padded(keys, width), _padded(values, width)
        if new is not None:
            keys, values = (part[:, :, : new.filled] for part in (new.keys, new.values))
            layer.keys = torch.cat([layer.keys, _padded(keys, width)])
            layer.values = torch.cat([layer.values, _padded(values, width)])
        layer.filled, layer.is_initialized = width, True
        return layer


class _Rows(Cache):
    """All layers of `_Columns`."""

    layers: Any

    def __init__(self, layers: list[_Columns] | None = None) -> None:
        if layers is None:
            super().__init__(layer_class_to_replicate=_Columns)
        else:
            super().__init__(layers=[*layers])


def _roomier(columns: Tensor, least: int) -> Tensor:
    """Returns a copy with room for more columns; what stands in them is never read before it is written."""
    rows, heads, width, d = columns.shape
    larger = columns.new_empty(rows, heads, max(least, width + _GROWTH), d)
    larger[:, :, :width] = columns
    return larger


def _padded(columns: Tensor, width: int) -> Tensor:
    """Returns columns with zeros to their left, which are masked but must be finite."""
    return torch.nn.functional.pad(columns, (0, 0, width - columns.shape[2], 0))


def read_opening(model: Any, ids: Sequence[int]) -> _Rows | None:
    """Reads what all prompts begin with.

    Args:
        model: One that `decodes`, loaded with `ATTENTION`.
        ids: Its tokens.

    Returns:
        Keys and values for `decode`; None for no tokens.
    """
    if not ids:
        return None
    cache = _Rows()
    model(
        torch.tensor([list(ids)], device=model.device),
        attention_mask=_causal(len(ids), model.device)[None, None],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    for layer in cache.layers:  # to what is filled: `attend` looks at all of it
        layer.keys, layer.values = layer.keys[:, :, : layer.filled], layer.values[:, :, : layer.filled]
    return cache


def decode(
    model: Any,
    opening: _Rows | None,
    prompts: Sequence[Sequence[int]],
    ends: Sequence[int],
    most: int,
    slots: int,
) -> Iterator[tuple[int, list[int]]]:
    """Completes prompts greedily, some at a time.

    Args:
        model: One that `decodes`, loaded with `ATTENTION`.
        opening: Of `read_opening`; stands before every prompt.
        prompts: Tokens of each, at least one.
        ends: Tokens that end an answer.
        most: Most new tokens of each, at least one.
        slots: How many are written at a time; also the most new tokens that the model reads at a time, once
            a row's own prompt is read.

    Yields:
        A prompt's number and its new tokens, an end among them, in the order in which they end.
    """
    waiting = deque(sorted(range(len(prompts)), key=lambda row: len(prompts[row])))  # little padding
    pool = _Pool(model, opening, frozenset(ends), most, slots)
    while waiting or pool.rows:
        going = pool.going()
        wanted = slots if waiting else len(pool.rows)
        # Moving the rows that go on, and reading a prompt alone, cost a good part of a step: not for each.
        if not going or wanted - len(going) >= max(1, wanted // 4):
            new = [waiting.popleft() for _ in range(min(len(waiting), slots - len(going)))]
            yield from pool.ended()
            pool.regroup(going, {row: list(prompts[row]) for row in new})
        else:
            pool.step()


class _Pool:
    """Rows that are being written.

    Attributes:
        rows: Their numbers.
    """

    def __init__(
        self, model: Any, opening: _Rows | None, ends: frozenset[int], most: int, slots: int
    ) -> None:
        self.rows: list[int] = []
        self._prompts: list[list[int]] = []
        self._written: list[list[int]] = []  # new tokens of each row; the last is not in the cache yet
        self._valid = torch.empty(0, 0, dtype=torch.bool, device=model.device)  # (rows, columns)
        self._cache = _Rows()
        self._model = model
        self._opening = opening
        self._before = opening.get_seq_length() if opening is not None else 0
        self._ends = ends
        self._most = most
        self._slots = slots

    def going(self) -> list[int]:
        """Returns the places of rows whose answers go on."""
        return [place for place in range(len(self.rows)) if not self._has_ended(place)]

    def ended(self) -> Iterator[tuple[int, list[int]]]:
        """Yields the number and the tokens of each row that ended."""
        for place, row in enumerate(self.rows):
            if self._has_ended(place):
                yield row, self._written[place]

    def step(self) -> None:
        """Writes at least a token in every row that goes on; the others are carried along."""
        going = self.going()
        ahead = min(MAX_AHEAD, self._slots // len(going) - 1)
        guesses: list[list[int]] = [[] for _ in self.rows]
        for place in going:
            written = self._written[place]
            room = min(ahead, self._most - len(written) - 1)
            guesses[place] = guess(self._prompts[place] + written, room)
        width = 1 + max(map(len, guesses))
        ids = [
            [written[-1], *guessed, *[0] * (width - 1 - len(guessed))]
            for written, guessed in zip(self._written, guesses, strict=True)
        ]
        before, causal = self._valid[:, None].expand(-1, width, -1), _causal(width, self._valid.device)
        mask = torch.cat([before, causal.expand(len(ids), -1, -1)], -1)
        positions = self._valid.sum(1, keepdim=True) + torch.arange(width, device=mask.device)
        tokens = self._next(ids, positions, mask, self._cache, width)
        kept = [1] * len(ids)
        for place in going:
            right = _agreeing(guesses[place], tokens[place])
            kept[place] += right
            self._write(place, tokens[place][: right + 1])
        accepted = torch.arange(width) < torch.tensor(kept)[:, None]
        self._valid = torch.cat([self._valid, accepted.to(self._valid.device)], 1)

    def regroup(self, keep: list[int], new: dict[int, list[int]]) -> None:
        """Keeps some rows, drops the others, and reads new prompts.

        Args:
            keep: Places of rows.
            new: Prompts' tokens by their numbers.
        """
        read, valid, first = self._read(list(new.values()))
        rows = torch.tensor(keep, dtype=torch.int64, device=valid.device)
        self.rows = [self.rows[place] for place in keep] + list(new)
        self._prompts = [self._prompts[place] for place in keep] + list(new.values())
        self._written = [self._written[place] for place in keep] + [[token] for token in first]
        if not keep:
            self._cache, self._valid = read, valid
            return
        lengths = torch.cat([self._valid[rows].sum(1), valid.sum(1)])
        width = int(lengths.max())
        # Stable: the valid columns of a row stay in order, to the right of the others.
        columns = self._valid[rows].to(torch.uint8).argsort(dim=1, stable=True)[:, -width:]
        self._cache = _Rows(
            layers=[
                layer.joined(rows, columns, width, added)
                for layer, added in zip_longest(self._cache.layers, read.layers)
            ]
        )
        self._valid = _right_aligned(lengths, width)

    def _read(self, prompts: list[list[int]]) -> tuple[_Rows, Tensor, list[int]]:
        """Reads prompts, right-aligned.

        Returns:
            Their keys and values, which columns are theirs, and the first new token of each.
        """
        cache, device = _Rows(), self._valid.device
        if not prompts:
            return cache, self._valid[:0], []
        width = max(map(len, prompts))
        valid = _right_aligned(torch.tensor([len(ids) for ids in prompts], device=device), width)
        alone = torch.eye(width, dtype=torch.bool, device=device)  # padding must see something: itself
        mask = valid[:, None] & _causal(width, device) | alone
        ids = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
        positions = (valid.cumsum(1) - 1).clamp(min=0)
        return cache, valid, [token for (token,) in self._next(ids, positions, mask, cache, 1)]

    def _next(
        self, ids: list[list[int]], positions: Tensor, mask: Tensor, cache: _Rows, keep: int
    ) -> list[list[int]]:
        """Returns what the model would write after each of the last tokens."""
        output = self._model(
            torch.tensor(ids, device=mask.device),
            attention_mask=mask[:, None],
            position_ids=self._before + positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
            opening=self._opening,
        )
        return output.logits.max(-1).indices.tolist()  # argmax, which is several times slower on CPUs

    def _write(self, place: int, tokens: list[int]) -> None:
        for token in tokens:
            self._written[place].append(token)
            if self._has_ended(place):
                return

    def _has_ended(self, place: int) -> bool:
        written = self._written[place]
        return len(written) >= self._most or written[-1] in self._ends


def guess(tokens: Sequence[int], most: int) -> list[int]:
    """Guesses what comes next: what followed the last tokens when they stood there before.

    Args:
        tokens: What stands there.
        most: Most tokens to guess.

    Returns:
        The guess; empty if the last token is new. It may repeat itself, as a model that loops does.
    """
    for length in (3, 2, 1):
        for start in range(len(tokens) - length - 1, -1, -1):
            if tokens[start : start + length] == tokens[-length:]:
                known = list(tokens)
                for place in range(start + length, start + length + most):
                    known.append(known[place])
                return known[len(tokens) :]
    return []


def _agreeing(guessed: Sequence[int], written: Sequence[int]) -> int:
    """Returns how many guessed tokens the model would have written itself."""
    for place, token in enumerate(guessed):
        if token != written[place]:
            return place
    return len(guessed)


def _causal(width: int, device: torch.device) -> Tensor:
    return torch.ones(width, width, dtype=torch.bool, device=device).tril()


def _right_aligned(lengths: Tensor, width: int) -> Tensor:
    """Returns (rows, width) bool: true in the last columns of each row, as many as its length."""
    return torch.arange(width, device=lengths.device) >= width - lengths[:, None]
