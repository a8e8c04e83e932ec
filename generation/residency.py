"""Whose model is in memory: both where they fit, else one at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from generation.memory_plan import MemoryPlan, ModelChoice, free_gpu_bytes, plan_memory

log = logging.getLogger(__name__)


class Resident(Protocol):
    """Has a model that can leave memory, and comes back on next use."""

    @property
    def role(self) -> str:
        """What it is called in the plan."""
        ...

    def release(self) -> None:
        """Lets go of the model."""
        ...


class Residency:
    """Makes room before a model is used.

    A model enters the plan when it is first about to load: by then the search model is on the GPU, and a
    model that a run does not need is neither looked up nor in the way.
    """

    def __init__(
        self, choices: Mapping[str, ModelChoice], free_bytes: Callable[[], int | None] = free_gpu_bytes
    ) -> None:
        """Takes turns where not all chosen models fit.

        Args:
            choices: The models by role.
            free_bytes: Asked once; None where there is no GPU to run out of.
        """
        self._choices = choices
        self._free_bytes = free_bytes
        self._plan: MemoryPlan | None = None
        self._free: int | None = None
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
        if self._present is None:
            self._free = self._free_bytes()
        if self._free is not None:
            self._plan = self._extended(resident.role, self._free)
            self._plan.check(resident.role)
            if self._present is not None and not self._plan.fits_together:
                self._present.release()
        self._present = resident

    def _extended(self, role: str, free: int) -> MemoryPlan:
        planned = {} if self._plan is None else self._plan.footprints
        if self._plan is not None and role in planned:
            return self._plan
        plan = plan_memory({name: self._choices[name] for name in (*planned, role)}, free)
        log.info("%s", plan.verdict)
        return plan
