"""Lets threads share one call of a model: what several people wait for is done as one batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cache
from typing import Generic, Protocol, TypeVar

from PIL import Image

from feedback.history import History, NextQuery
from feedback.strategies import STRATEGIES
from interactive.session import SearchContext

Item = TypeVar("Item")
Result = TypeVar("Result")


class Captions(Protocol):
    """Captions of the collection's pictures, and of others."""

    def captions_of(self, image_ids: Sequence[str]) -> list[str]:
        """Returns one caption an id, in order."""
        ...

    def describe(self, picture: Image.Image) -> str:
        """Captions a picture that is not of the collection."""
        ...


class Together(Generic[Item, Result]):
    """Calls a function with what all threads have asked since its last call.

    Args:
        function: From n items to n results, in order; what it raises, all who shared the call get.
        turn: Held during a call; functions of one lock are never called at the same time.
    """

    def __init__(self, function: Callable[[list[Item]], Sequence[Result]], turn: threading.Lock) -> None:
        self._function = function
        self._turn = turn
        self._waiting: list[tuple[list[Item], Future[Sequence[Result]]]] = []
        self._list = threading.Lock()

    def __call__(self, items: Sequence[Item]) -> list[Result]:
        """Returns the results of these items."""
        if not items:
            return []
        asked = (list(items), Future[Sequence[Result]]())
        with self._list:
            self._waiting.append(asked)
        with self._turn:  # whoever gets the turn works for all who wait
            if not asked[1].done():
                self._answer()
        return list(asked[1].result())

    def _answer(self) -> None:
        with self._list:
            batch, self._waiting = self._waiting, []
        try:
            results = self._function([item for items, _ in batch for item in items])
        except BaseException as error:
            for _, future in batch:
                future.set_exception(error)
            return
        start = 0
        for items, future in batch:
            future.set_result(results[start : start + len(items)])
            start += len(items)


@dataclass(frozen=True)
class SharedStrategy:
    """A strategy that many threads ask.

    Attributes:
        needs_captions: As the strategy.
        next: As the strategy's, of all threads together where a captioner or language model is asked.
    """

    needs_captions: bool
    next: Callable[[Sequence[History]], list[NextQuery]]


class SharedCaptions:
    """Captions that many threads ask for."""

    def __init__(self, captions: Captions, turn: threading.Lock) -> None:
        self._known: dict[str, str] = {}
        self._made = Together(captions.captions_of, turn)
        self._describe: Together[Image.Image, str] = Together(
            lambda pictures: [captions.describe(one) for one in pictures], turn
        )

    def captions_of(self, image_ids: Sequence[str]) -> list[str]:
        """Returns one caption an id, in order; for those asked for before, nobody waits."""
        missing = [image_id for image_id in image_ids if image_id not in self._known]
        if missing:
            self._known.update(zip(missing, self._made(missing), strict=True))
        return [self._known[image_id] for image_id in image_ids]

    def describe(self, picture: Image.Image) -> str:
        """Captions a picture that is not of the collection."""
        return self._describe([picture])[0]


def shared(context: SearchContext) -> SearchContext:
    """Has captions made and queries moved for all sessions that wait, as one batch; one kind at a time."""
    turn = threading.Lock()

    @cache
    def strategy(name: str) -> SharedStrategy:
        alone, entry = context.strategy(name), STRATEGIES[name]
        together = Together(alone.next, turn)

        def move(histories: Sequence[History]) -> list[NextQuery]:
            # as `Session.needs_models`: what asks no model must not wait for one that loads
            asks = entry.needs_captioner or entry.needs_rewriter
            return (together if asks and any(each.liked for each in histories) else alone.next)(histories)

        return SharedStrategy(alone.needs_captions, move)

    return replace(context, captions=SharedCaptions(context.captions, turn), strategy=strategy)
