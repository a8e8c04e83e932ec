"""The feedback loop as research code runs it, for `benchmarks.rounds` to compare with.

Written from the description of the published protocol, on the same models as `feedback.rounds`, one query at
a time with nothing kept: encode the query, sort the whole collection, look the target's rank up in the list,
encode the target again to find the nearest of the 50 shown, caption that picture again although it was
captioned before, and rewrite one query with the whole prompt read anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
import torch

from benchmarks.timing import Watch
from captioning import Captioning
from feedback.protocols import Protocol
from feedback.strategies.rewrite import fault_of
from generation.parsing import one_line
from generation.prompts import FEW_SHOT_OPEN, FEW_SHOT_PREFIX
from generation.text_model import source_of
from index.decode import open_image
from query_editing import MAX_TOKENS, MAX_WORDS
from records import Dataset, Query
from retriever import Retriever


class SequentialLoop:
    """Runs single queries, in float32 throughout.

    Attributes:
        seconds: Wall-clock seconds of each stage, over all queries so far.
    """

    def __init__(
        self, dataset: Dataset, retriever: Retriever, caption_model: str, rewrite_model: str
    ) -> None:
        """Opens a BLIP captioner and a packaged language model; uses the retriever's encoder and vectors."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._encoder = retriever.encoder
        self._paths = {image.id: image.path for image in dataset.images}
        self._ids = list(retriever.index.ids)
        vectors = retriever.vectors_of(self._ids)
        self._vectors = dict(zip(self._ids, vectors, strict=True))
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(vectors)  # type: ignore[call-arg]  # faiss types its own wrapper wrongly
        self._captioner = Captioning(caption_model, "fp32", batch_size=1)
        self._tokenizer, self._writer = open_plain(rewrite_model)
        self._ends = [self._tokenizer.eos_token_id, *line_ends(self._tokenizer)]

    def run(self, query: Query, protocol: Protocol, round_count: int) -> list[int]:
        """Runs a query with a target by the published steps; returns the target's rank in each round."""
        assert query.target is not None
        text, said, taken, ranks = query.text, [query.text], set(), []
        for number in range(round_count):
            with self._timed("encode"):
                vector = self._encoder.encode_texts([text])
            with self._timed("search"):
                _, places = self._index.search(vector, len(self._ids))  # type: ignore[call-arg]
                ranking = [self._ids[place] for place in places[0]]
                ranks.append(1 + ranking.index(query.target))
            worse = number > 0 and ranks[-1] > ranks[-2]
            if ranks[-1] <= protocol.hit_rank or worse or number + 1 == round_count:
                break
            with self._timed("user"):
                goal = self._encoder.encode_images([open_image(self._paths[query.target])])[0]
                left = [image_id for image_id in ranking[: protocol.shown] if image_id not in taken]
                picked = left[int(np.argmax([self._vectors[image_id] @ goal for image_id in left]))]
                taken.add(picked)
            with self._timed("caption"):
                caption = self._captioner.caption([open_image(self._paths[picked])])[0]
            with self._timed("rewrite"):
                rewrite = self._rewrite(text, caption)
            said.append(caption)
            faulty = fault_of(rewrite, query.text, text, caption)
            text = ", ".join(dict.fromkeys(said)) if faulty else rewrite
        return ranks

    def _rewrite(self, query: str, caption: str) -> str:
        prompt = FEW_SHOT_PREFIX + FEW_SHOT_OPEN.format(query=query, caption=caption)
        tokens = self._tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            output = self._writer.generate(
                **tokens,
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
                eos_token_id=self._ends,
                pad_token_id=self._tokenizer.eos_token_id,
            )
        answer = self._tokenizer.decode(output[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
        return one_line(answer, MAX_WORDS)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        watch = Watch()
        yield
        self.seconds[stage] += watch.wall()


def open_plain(model_id: str) -> tuple[Any, Any]:
    """Opens a packaged model by transformers alone: a tokenizer that pads left, and a float32 model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, options = source_of(model_id)
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **options)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **options
    )
    return tokenizer, model.eval()


def line_ends(tokenizer: Any) -> list[int]:
    """Returns the tokens that hold a line feed, which end a rewrite."""
    pieces = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return [token for token, text in enumerate(pieces) if "\n" in text]
