"""A query and a caption to a new query: `QueryEditing(model_id, quantization).rewrite(queries, captions)`.

The model is a chat model of the hub, such as ``meta-llama/Llama-3.1-8B-Instruct``, or one that a package
brings along (``smollm2-135m-instruct``), or one behind `generation.servers.ChatServers`. Chat models of some
billion parameters get an instruction, the small one gets examples; all prompts are in
`generation/prompts.py`. Rewriting as published, every model gets the same instruction and samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from generation.gpu_memory import GpuMemory
from generation.loading import Quantization
from generation.parsing import one_line, plain_text
from generation.prompts import FEW_SHOT_OPEN, FEW_SHOT_PREFIX, REWRITE_CHAT, REWRITE_PUBLISHED
from generation.servers import SERVED, ChatServers
from generation.text_model import PACKAGED, TextModel

MAX_WORDS = 60
MAX_TOKENS = 100
TEMPERATURE = 0.1  # of rewriting as published
MAX_WORDS_READ = 200  # of a query or caption that goes into the prompt
# Names the prompts, and what an answer is cut to: rewrites differ when one does.
PROMPTS = hashlib.sha256(
    repr((FEW_SHOT_PREFIX, FEW_SHOT_OPEN, REWRITE_CHAT, MAX_WORDS, MAX_TOKENS, MAX_WORDS_READ)).encode()
).hexdigest()[:8]


class QueryEditing:
    """Rewrites queries; the model is loaded on first use.

    Attributes:
        model_id: Hub id, folder, or a name of `generation.text_model.PACKAGED`; of a model behind servers,
            what they call it, with "server " before it.
        name: What makes rewrites differ: model, and precision or engine.
    """

    def __init__(
        self,
        model_id: str,
        quantization: Quantization = "fp16",
        batch_size: int = 32,
        memory: GpuMemory | None = None,
        servers: ChatServers | None = None,
        *,
        published: bool = False,
        seed: int = 0,
    ) -> None:
        """Opens nothing yet.

        Args:
            model_id: As the attribute.
            quantization: Precision of a model that is loaded here.
            batch_size: Queries rewritten at a time.
            memory: Shared with other models.
            servers: That offer the model.
            published: Whether to rewrite as the published code does: its demands in the prompt, sampled at
                temperature 0.1, and all that was said is the new query, not its first line.
            seed: Of sampling.
        """
        self.model_id = f"{SERVED}{model_id}" if servers else model_id
        self._servers = servers
        self._published = published
        self._seed = seed
        self._memory = memory or GpuMemory()
        self._model: Any = servers
        self.name = self.model_id
        if servers is None:
            self._model = TextModel(model_id, quantization, batch_size)
            self._model.batches.make_room = lambda: self._memory.release_others(self)
            self.name = self._model.name

    @property
    def tokens_written(self) -> int:
        """How many tokens the model has written so far."""
        return self._model.tokens_written

    @property
    def money(self) -> float:
        """What a model behind servers has cost so far, at the prices given for it."""
        return self._servers.money if self._servers else 0.0

    def rewrite(self, queries: Sequence[str], captions: Sequence[str]) -> list[str]:
        """Rewrites each query with the caption beside it, as one line each.

        As published, line ends become spaces and nothing is cut off. A line is empty where the model said
        nothing usable: the caller knows what to do. ValueError if there are not as many captions as queries,
        or a server gives no answer.
        """
        if len(queries) != len(captions):
            raise ValueError(f"got {len(queries)} queries and {len(captions)} captions, expected as many")
        if not queries:
            return []
        self._memory.acquire(self)
        special = self._model.special_tokens
        filled = [
            [plain_text(text, special, MAX_WORDS_READ) for text in pair]
            for pair in zip(queries, captions, strict=True)
        ]
        if self._published:
            told = [REWRITE_PUBLISHED.format(query=query, caption=caption) for query, caption in filled]
            prompts = [self._model.chat_prompt(message) for message in told]
            answers = self._model.complete(
                prompts, max_tokens=MAX_TOKENS, temperature=TEMPERATURE, seed=self._seed
            )
            return [plain_text(answer, special) for answer in answers]
        if self._servers is None and self.model_id in PACKAGED:
            told = [FEW_SHOT_OPEN.format(query=query, caption=caption) for query, caption in filled]
            prompts = [FEW_SHOT_PREFIX + open_line for open_line in told]
            answers = self._model.complete(prompts, max_tokens=MAX_TOKENS, stops_at_line_end=True)
        else:
            told = [REWRITE_CHAT.format(query=query, caption=caption) for query, caption in filled]
            prompts = [self._model.chat_prompt(message) for message in told]
            answers = self._model.complete(prompts, max_tokens=MAX_TOKENS)
        return [
            one_line(answer, MAX_WORDS, special, prompt) for answer, prompt in zip(answers, told, strict=True)
        ]

    def load(self) -> None:
        """Loads the model, if it is not there or behind servers; errors are those of `open_model`."""
        if self._servers is None:
            self._model.load()

    def release(self) -> None:
        """Lets go of the model; the next use loads it again."""
        self._model.release()
