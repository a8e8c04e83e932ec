"""Whose model is in memory: both where they fit, else one at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from generation.memory_plan import MemoryPlan

log = logging.getLogger(__name__)


class Resident(Protocol):
    """Has a model that can leave memory, and comes back on next use."""

    role: str

    def release(self) -> None:
        """Lets go of the model."""
        ...


class Residency:
    """Makes room before a model is used.

    The plan is made when the first model is about to load: then the search model is on the GPU already, and
    a run that needs no generation never reads a configuration.
    """

    def __init__(self, make_plan: Callable[[], MemoryPlan | None]) -> None:
        """Takes turns as a plan says.

        Args:
            make_plan: Called once; None where there is no GPU to run out of.
        """
        self._make_plan = make_plan
        self._plan: MemoryPlan | None = None
        self._planned = False
        self._present: Resident | None = None

    def make_room(self, resident: Resident) -> None:
        """Releases the other model where both do not fit.

        Args:
            resident: Whoever is about to use its model.

        Raises:
            ValueError: If its model does not fit even alone.
        """
        if self._present is resident:
            return
        if not self._planned:
            self._plan, self._planned = self._make_plan(), True
            if self._plan is not None:
                log.info("%s", self._plan.verdict)
        if self._plan is not None:
            self._plan.check(resident.role)
            if self._present is not None and not self._plan.fits_together:
                self._present.release()
        self._present = resident
