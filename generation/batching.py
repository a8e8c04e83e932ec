"""Batches that halve themselves when memory runs out, and lose nothing."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

Item = TypeVar("Item")


class ShrinkingBatches:
    """Works through items, `size` at a time: once memory ran out, what fitted.

    `make_room` is asked when not even one item fits; it returns whether something left the memory.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"batch size: got {size}, expected at least 1")
        self.size = size
        self.make_room: Callable[[], bool] = lambda: False

    def map(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], list[Any]], doing: str
    ) -> list[Any]:
        """Applies ``work`` to all items, a batch at a time; returns the results in order.

        Out of memory, the batch is halved, for later calls too, and tried again; what was done before stays
        done. ValueError if memory does not even suffice for one item. ``doing`` names the progress bar.
        """
        import torch

        done: list[Any] = []
        with tqdm(total=len(items), desc=doing, disable=len(items) <= self.size, leave=False) as bar:
            while len(done) < len(items):
                batch, error = items[len(done) : len(done) + self.size], None
                try:
                    done += work(batch)
                    bar.update(len(batch))
                except torch.OutOfMemoryError as caught:
                    error = str(caught)  # not the exception: its frames hold the tensors that fill the memory
                if error is not None:
                    self._halve(len(batch), doing, error)
        return done

    def _halve(self, tried: int, doing: str, error: str) -> None:
        free_memory()
        if tried > 1:
            self.size = tried // 2
            log.warning("%s: out of memory with a batch of %d, going on with %d", doing, tried, self.size)
        elif not self.make_room():
            raise ValueError(
                f"{doing}: the GPU's memory does not suffice for a batch of 1; use --quantization int4 or a"
                f" smaller model, see docs/hardware.md ({' '.join(error.split())})"
            )


def free_memory() -> None:
    """Gives the memory of dropped tensors back to the GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
