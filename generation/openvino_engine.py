"""The packaged language model on a CPU, by OpenVINO GenAI.

It reads the GGUF file as it is, and writes several times as many tokens a second as torch does
(docs/performance.md). It computes with the 4-bit numbers in its own way, and splits text otherwise than
transformers' reading of the file: answers differ in words, so a run records its engine and is not resumed
with the other.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAME = "openvino"

_CACHE_GIB = 1  # keys and values of what is written, and of prompts seen before
_SPECIAL_TOKEN = re.compile(r"<\|?[a-z_]+\|?>")


def is_installed() -> bool:
    """Returns whether OpenVINO GenAI is installed; it is not imported."""
    return importlib.util.find_spec("openvino_genai") is not None


class OpenVinoModel:
    """A language model in a GGUF file; `special_tokens` are those with a meaning, as text."""

    def __init__(self, path: Path, batch_size: int) -> None:
        """Opens the file; RuntimeError if the library cannot read it."""
        if "openvino_telemetry" not in sys.modules:
            # Imported, it would report each start to its makers unless the user has opted out.
            sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.cache_size = _CACHE_GIB
        scheduler.max_num_seqs = batch_size
        # float32 throughout: 8-bit activations, the default, take down to half the time, but then what shares
        # a batch, or was asked before, changes answers (docs/determinism.md).
        self._pipeline = openvino_genai.LLMPipeline(
            str(path),
            "CPU",
            scheduler_config=scheduler,
            INFERENCE_PRECISION_HINT="f32",
            KV_CACHE_PRECISION="f32",
            DYNAMIC_QUANTIZATION_GROUP_SIZE="0",
        )
        self._tokenizer = self._pipeline.get_tokenizer()
        vocabulary = (
            token.decode("utf-8", "replace") if isinstance(token, bytes) else token
            for token in self._tokenizer.get_vocab()
        )
        self.special_tokens = sorted(token for token in vocabulary if _SPECIAL_TOKEN.fullmatch(token))

    def chat_prompt(self, message: str) -> str:
        """Wraps a message in the model's chat template, the answer's opening included."""
        return self._tokenizer.apply_chat_template([{"role": "user", "content": message}], True)

    def write(
        self, prompts: Sequence[str], max_tokens: int, stops_at_line_end: bool, temperature: float, seed: int
    ) -> tuple[list[str], int]:
        """Completes prompts as `TextModel.complete`; returns the new texts, and how many tokens they took."""
        config: Any = self._pipeline.get_generation_config()
        config.max_new_tokens = max_tokens
        config.do_sample = temperature > 0
        if temperature > 0:  # each prompt draws by itself, all from this seed
            config.temperature, config.rng_seed = temperature, seed
        config.apply_chat_template = False
        if stops_at_line_end:
            config.stop_strings = {"\n"}
        results = self._pipeline.generate(list(prompts), config)
        return list(results.texts), results.perf_metrics.get_num_generated_tokens()
