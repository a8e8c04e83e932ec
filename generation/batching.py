"""Batches that halve themselves when memory runs out, and lose nothing."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

Item = TypeVar("Item")


class ShrinkingBatches:
    """Works through items a batch at a time.

    Attributes:
        size: Items in a batch; once memory ran out, what fitted.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"batch size: got {size}, expected at least 1")
        self.size = size

    def map(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], list[Any]], doing: str
    ) -> list[Any]:
        """Applies ``work`` to all items, a batch at a time.

        Args:
            items: What there is to do.
            work: A batch to as many results.
            doing: What the progress bar says.

        Returns:
            The results, in order.

        Raises:
            ValueError: If memory does not even suffice for one item.
        """

        def batches(left: Sequence[Item], size: int) -> Iterator[tuple[int, Any]]:
            for start in range(0, len(left), size):
                yield from enumerate(work(left[start : start + size]), start)

        return self.stream(items, batches, doing)

    def stream(
        self,
        items: Sequence[Item],
        work: Callable[[Sequence[Item], int], Iterator[tuple[int, Any]]],
        doing: str,
    ) -> list[Any]:
        """Collects what ``work`` makes of all items, in whatever order it does.

        Out of memory, the batch is halved, for later calls too, and what is left is tried again; what was
        done before stays done.

        Args:
            items: What there is to do.
            work: Items, and how many to do at a time, to results with their places among those items.
            doing: What the progress bar says.

        Returns:
            The results, in order.

        Raises:
            ValueError: If memory does not even suffice for one item.
        """
        import torch

        done: dict[int, Any] = {}
        with tqdm(total=len(items), desc=doing, disable=len(items) <= self.size, leave=False) as bar:
            while len(done) < len(items):
                left = [place for place in range(len(items)) if place not in done]
                error = None
                try:
                    for place, result in work([items[place] for place in left], self.size):
                        done[left[place]] = result
                        bar.update()
                except torch.OutOfMemoryError as caught:
                    error = str(caught)  # not the exception: its frames hold the tensors that fill the memory
                if error is not None:
                    self._halve(min(self.size, len(left)), doing, error)
        return [done[place] for place in range(len(items))]

    def _halve(self, tried: int, doing: str, error: str) -> None:
        if tried == 1:
            raise ValueError(
                f"{doing}: the GPU's memory does not suffice for a batch of 1; use int4 or a smaller model,"
                f" what fits says: python -m generation.memory_plan ({' '.join(error.split())})"
            )
        self.size = tried // 2
        free_memory()
        log.warning("%s: out of memory with a batch of %d, going on with %d", doing, tried, self.size)


def free_memory() -> None:
    """Gives the memory of dropped tensors back to the GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
