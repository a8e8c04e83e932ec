"""Which models are in the GPU's memory: all of them while they fit, else one at a time."""

from __future__ import annotations

import logging
from typing import Protocol

from generation.batching import free_memory

log = logging.getLogger(__name__)


class Model(Protocol):
    """Has weights that can leave memory, and come back."""

    model_id: str

    def load(self) -> None:
        """Loads the weights, if they are not there."""
        ...

    def release(self) -> None:
        """Lets go of the weights."""
        ...


class GpuMemory:
    """Shares the memory among models that are used in turn.

    What fits is found out by loading: nothing is estimated. Without a GPU a model leaves only if they take
    turns from the start: a system ends the process that takes too much.
    """

    def __init__(self, takes_turns: bool = False) -> None:
        self._present: list[Model] = []
        self._takes_turns = takes_turns

    def acquire(self, model: Model) -> None:
        """Has a model loaded before it is used.

        A model that cannot be loaded beside the others takes their place, and from then on only one is there
        at a time. ValueError if it does not fit even alone, or cannot be opened.
        """
        if self._takes_turns:
            self.release_others(model)
        while not self._loaded(model):
            if not self.release_others(model):
                raise ValueError(
                    f"the model {model.model_id} does not fit into the GPU's memory; use --quantization int4,"
                    " a smaller model, or a preset for this card, see docs/hardware.md"
                )
        if model not in self._present:
            self._present.append(model)

    def release_others(self, model: Model) -> bool:
        """Releases all models but this one, which take turns from then on; returns whether there were any."""
        others = [other for other in self._present if other is not model]
        if not others:
            return False
        if not self._takes_turns:
            names = ", ".join(each.model_id for each in (model, *others))
            log.info("these models do not fit into the GPU's memory together, and take turns: %s", names)
        self._takes_turns = True
        for other in others:
            other.release()
        self._present = [each for each in self._present if each is model]
        return True

    def _loaded(self, model: Model) -> bool:
        """Loads a model; returns False, with nothing of it in memory, where it does not fit."""
        import torch

        try:
            model.load()
            return True
        except torch.OutOfMemoryError as error:
            log.debug("%s: %s", model.model_id, error)
        model.release()  # outside of the handler: the exception's frames hold what was loaded
        free_memory()
        return False
