"""A simulation of machines that take parts of a long job: stragglers, failures, and idle time at the end."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Finished:
    """How a job went.

    Attributes:
        hours: Until the last part was done.
        machine_hours: Paid: each machine is given back when there is nothing left for it.
        failures: Of machines; each loses the part that it was at.
    """

    hours: float
    machine_hours: float
    failures: int


def simulate_workers(
    parts: int,
    part_hours: float,
    machines: int,
    *,
    slowness: float,
    failures_per_hour: float,
    restart_hours: float,
    seed: int = 0,
) -> Finished:
    """Plays a job out.

    Whoever is free takes the next part. A machine that fails loses its part, which goes back to the others,
    and is there again after a while.

    Args:
        parts: Of the job, alike.
        part_hours: What a part takes on a machine of mean speed.
        machines: How many.
        slowness: Standard deviation of the logarithm of a machine's slowness, and of a part's.
        failures_per_hour: Of one machine.
        restart_hours: Until a machine that failed is there again.
        seed: Of everything random.

    Raises:
        ValueError: If there are no parts or no machines, or a part takes no time.
    """
    if parts < 1 or machines < 1 or part_hours <= 0:
        raise ValueError(
            f"got {parts} parts of {part_hours} h for {machines} machines, expected at least one"
        )
    draw = random.Random(seed)
    slow = [draw.lognormvariate(0, slowness) for _ in range(machines)]
    fails_at = [draw.expovariate(failures_per_hour) for _ in range(machines)]
    free = [(0.0, machine) for machine in range(machines)]
    returned: list[float] = []  # when lost parts come back
    left, failures, done, paid = parts, 0, 0.0, 0.0
    while free:
        start, machine = heapq.heappop(free)
        if left:
            left -= 1
        elif returned:
            start = max(start, heapq.heappop(returned))
        else:
            paid += start
            continue
        end = start + part_hours * slow[machine] * draw.lognormvariate(0, slowness)
        if fails_at[machine] < end:
            failed = max(start, fails_at[machine])
            heapq.heappush(returned, failed)
            end, failures = failed + restart_hours, failures + 1
            fails_at[machine] = end + draw.expovariate(failures_per_hour)
        else:
            done = max(done, end)
        heapq.heappush(free, (end, machine))
    return Finished(done, paid, failures)
