"""Machines, hours, memory and money for millions and billions of images: a plan, and where each engine stops.

    python -m benchmarks.scale_plan
    python -m benchmarks.scale_plan --images 20000000 --hours 24 --set gpu_price 0.6 searches_per_second 50

The rates are those measured here and, for GPUs, estimated (`benchmarks.full_run`); all constants with their
sources are in ``benchmarks/constants.yaml``. Embedding is simulated, part by part, with slow and failing
machines (`benchmarks.workers`); the rest is arithmetic. Prints the tables of docs/scale.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.constants import read_constants
from benchmarks.full_run import Way, seconds_each
from benchmarks.workers import Finished, simulate_workers
from evaluation.tables import as_markdown
from settings import run_script

MONTH_HOURS = 730
DAY_SECONDS = 86_400
GB = 1e9
SERVED = Way("behind a server, fp16", 2, 16, 16)  # of the captioner
KINDS = ("flat", "hnsw", "ivf", "ivfpq")


@dataclass(frozen=True)
class ScaleSettings:
    """Plans collections of millions and billions of images.

    Attributes:
        images: Sizes of the collections.
        hours: For each size, when its embedding has to be done.
        seed: Of the simulation.
        set: Constants by name and value, in the place of the file's.
    """

    images: tuple[int, ...] = (1_000_000, 100_000_000, 5_000_000_000)
    hours: tuple[float, ...] = (12, 72, 336)
    seed: int = 0
    set: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if len(self.images) != len(self.hours) or min(self.images + self.hours, default=0) <= 0:
            raise ValueError(
                f"images and hours: got {self.images} and {self.hours}, expected as many, above zero"
            )


@dataclass(frozen=True)
class Row:
    """One stage for one size; what it does not need is None.

    Attributes:
        images: The size.
        stage: Its name.
        machines: Working at a time.
        hours: Until done.
        memory_gb: Of all machines.
        disk_gb: Of all machines, or in the object store.
        once: Dollars.
        monthly: Dollars.
    """

    images: int
    stage: str
    machines: int | None = None
    hours: float | None = None
    memory_gb: float | None = None
    disk_gb: float | None = None
    once: float | None = None
    monthly: float | None = None


@dataclass(frozen=True)
class Limit:
    """Where an engine on one machine stops; infinity: not there.

    Attributes:
        engine: Its name.
        memory: Images that fill the machine's share of memory.
        answer: Images at which a search takes too long.
        build: Images at which building takes more than a day.
    """

    engine: str
    memory: float = math.inf
    answer: float = math.inf
    build: float = math.inf

    @property
    def images(self) -> float:
        """The first of the three."""
        return min(self.memory, self.answer, self.build)

    @property
    def reason(self) -> str:
        """What stops it."""
        return {self.memory: "memory", self.answer: "time of a search", self.build: "time of the build"}[
            self.images
        ]


def main() -> None:
    """Runs from the command line."""
    import tyro

    settings = tyro.cli(ScaleSettings)
    constants = read_constants(settings.set)
    print(plan_table(plan(settings, constants)))
    print()
    print(limit_table(limits(constants)))


def plan(settings: ScaleSettings, constants: Mapping[str, float]) -> list[Row]:
    """Plans every size.

    Args:
        settings: The sizes and their hours.
        constants: From `read_constants`.
    """
    return [
        row
        for images, wanted in zip(settings.images, settings.hours, strict=True)
        for row in _plan_size(images, wanted, settings.seed, constants)
    ]


def _plan_size(images: int, wanted: float, seed: int, constants: Mapping[str, float]) -> Iterator[Row]:
    each = seconds_each(SERVED, constants, "a10g")
    pictures_gb = images * constants["picture_bytes"] / GB
    yield Row(
        images, "pictures, in an object store", disk_gb=pictures_gb,
        monthly=pictures_gb * constants["object_price"],
    )  # fmt: skip
    reads = images * constants["request_price"]
    for stage, seconds, price in (
        ("embed, A10G", max(each["embed"], _decode_seconds(constants)), constants["gpu_price"]),
        ("embed, processors only", _processor_seconds(constants), constants["search_price"]),
    ):
        machines, finished = _fleet(images, seconds, wanted, seed, constants)
        yield Row(images, stage, machines, finished.hours, once=finished.machine_hours * price + reads)
    caption_hours = images * each["caption"] / 3600
    machines = math.ceil(caption_hours / wanted)
    yield Row(
        images, "caption every picture, A10G", machines, caption_hours / machines,
        once=caption_hours * constants["gpu_price"] + reads,
    )  # fmt: skip
    yield from _search_rows(images, constants)


def _decode_seconds(constants: Mapping[str, float]) -> float:
    return constants["decode_ms"] / 1000 / constants["gpu_cores"]


def _processor_seconds(constants: Mapping[str, float]) -> float:
    each = constants["encode_cpu_ms"] + constants["decode_ms"]
    return each / 1000 / constants["search_cores"]


def _fleet(
    images: int, seconds: float, wanted: float, seed: int, constants: Mapping[str, float]
) -> tuple[int, Finished]:
    """Finds the smallest number of machines that is done in time, by simulation."""
    parts = math.ceil(images / constants["part_images"])
    part_hours = images * seconds / 3600 / parts
    machines = max(1, math.ceil(parts * part_hours / wanted))
    while True:
        finished = simulate_workers(
            parts, part_hours, machines, seed=seed,
            **{name: constants[name] for name in ("slowness", "failures_per_hour", "restart_hours")},
        )  # fmt: skip
        if finished.hours <= wanted:
            return machines, finished
        if machines > 2 * parts:
            raise ValueError(
                f"{images:,} images cannot be done in {wanted:g} h, since one part of "
                f"{constants['part_images']:,.0f} takes {part_hours:.1f} h; give more --hours, or smaller "
                "parts: --set part_images"
            )
        machines += max(1, machines // 100)


def _search_rows(images: int, constants: Mapping[str, float]) -> Iterator[Row]:
    from index.approximate import choose_kind

    kind = choose_kind(images, 256, int(constants["search_memory"]))
    limit = next(limit for limit in limits(constants) if limit.engine == kind)
    folders = math.ceil(images / limit.images)
    share = images / folders
    hours = _build_seconds(kind, share, constants) / 3600
    kept, stored = (images * constants[f"{kind}_{what}"] / GB for what in ("memory", "disk"))
    yield Row(
        images, f"build the index: {folders} folder{'s' * (folders > 1)}, `{kind}`", folders, hours, kept,
        stored, once=folders * hours * constants["search_price"],
    )  # fmt: skip
    busy = constants["searches_per_second"] * _query_ms(kind, share, constants) / 1000
    replicas = math.ceil(busy / (constants["search_cores"] * constants["busy_share"]))
    machines = folders * replicas
    yield Row(
        images, f"search, {constants['searches_per_second']:g} a second", machines,
        memory_gb=replicas * kept, disk_gb=replicas * stored,
        monthly=machines * MONTH_HOURS * constants["search_price"]
        + replicas * stored * constants["disk_price"],
    )  # fmt: skip


def limits(constants: Mapping[str, float]) -> list[Limit]:
    """Says for each engine how many images one machine can hold, search and build.

    Args:
        constants: From `read_constants`.
    """
    allowed = constants["search_memory"] * constants["memory_share"]

    def limit(kind: str) -> Limit:
        return Limit(
            kind,
            allowed / constants[f"{kind}_memory"],
            _largest(lambda images: _query_ms(kind, images, constants), constants["answer_ms"]),
            _largest(lambda images: _build_seconds(kind, images, constants), DAY_SECONDS),
        )

    embed = max(seconds_each(SERVED, constants, "a10g")["embed"], _decode_seconds(constants))
    return [
        *map(limit, KINDS),
        Limit("Milvus, `hnsw`, one server", allowed / constants["milvus_memory"]),
        Limit("Milvus, the ids in each client", allowed / constants["milvus_client_memory"]),
        Limit("embedding in one process, A10G", build=DAY_SECONDS / embed),
    ]


def _query_ms(kind: str, images: float, constants: Mapping[str, float]) -> float:
    """Milliseconds of one search; exact search grows with the images."""
    growth = images / 1e6 if kind == "flat" else _visits(kind, images)
    return constants[f"{kind}_query_ms"] * growth


def _build_seconds(kind: str, images: float, constants: Mapping[str, float]) -> float:
    """Seconds of a build: of a graph or lists, every image is put where a search for it would end."""
    growth = images / 1e6 * (1.0 if kind == "flat" else _visits(kind, images))
    return constants[f"{kind}_build_s"] * growth


def _visits(kind: str, images: float) -> float:
    """How much more a search looks at than among a million: a graph's by logarithm, lists' by root."""
    return max(0.0, math.log(images) / math.log(1e6)) if kind == "hnsw" else math.sqrt(images / 1e6)


def _largest(cost: Callable[[float], float], most: float) -> float:
    """Returns the number of images at which a growing cost reaches its most; infinity far out."""
    low, high = 1.0, 1e13
    if cost(high) <= most:
        return math.inf
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) <= most else (low, middle)
    return low


def plan_table(rows: Sequence[Row]) -> str:
    """Lays out a plan as Markdown."""
    head = ("Images", "Stage", "machines", "hours", "memory, GB", "disk, GB", "$ once", "$ a month")
    cells = [
        (
            _count(row.images),
            row.stage,
            *map(_cell, (row.machines, row.hours, row.memory_gb, row.disk_gb, row.once, row.monthly)),
        )
        for row in rows
    ]
    return as_markdown([head, *cells], left=2)


def limit_table(found: Sequence[Limit]) -> str:
    """Lays out where engines stop, as Markdown."""
    head = ("Engine", "memory", "a search", "the build", "stops at", "because of")
    cells = [
        (
            f"`{limit.engine}`" if limit.engine in KINDS else limit.engine,
            *map(_count, (limit.memory, limit.answer, limit.build, limit.images)),
            limit.reason,
        )
        for limit in found
    ]
    return as_markdown([head, *cells])


def _count(images: float) -> str:
    if images >= 1e12:
        return ""
    for unit, name in ((1e9, "B"), (1e6, "M")):
        if images >= unit:
            return f"{images / unit:.3g} {name}"
    return f"{images:,.0f}"


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


if __name__ == "__main__":
    raise SystemExit(run_script(main))
