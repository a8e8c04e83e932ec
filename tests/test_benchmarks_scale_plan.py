"""The plan for very many images: the simulated workers, its arithmetic, and the tables in docs/scale.md."""

import dataclasses
import math
from pathlib import Path

import pytest

from benchmarks.constants import read_constants
from benchmarks.full_run import WAYS, hours
from benchmarks.scale_plan import ScaleSettings, limit_table, limits, plan, plan_table
from benchmarks.workers import simulate_workers

PROJECT = Path(__file__).parents[1]
STEADY = {"slowness": 0.0, "failures_per_hour": 1e-12, "restart_hours": 0.1}
ONE = ScaleSettings(images=(3_000_000,), hours=(6.0,))


@pytest.fixture(scope="module")
def constants():
    return read_constants()


def rows_of(constants, settings=ONE):
    return {row.stage: row for row in plan(settings, constants)}


# Workers


def test_steady_workers_share_the_parts_evenly():
    assert simulate_workers(12, 0.5, 4, **STEADY).hours == pytest.approx(1.5)
    done = simulate_workers(13, 0.5, 4, **STEADY)  # one part is left for one machine
    assert done.hours == pytest.approx(2.0)
    assert done.machine_hours == pytest.approx(13 * 0.5)  # the others were given back
    assert done.failures == 0


def test_a_failing_machine_loses_its_part_and_all_parts_are_done():
    done = simulate_workers(200, 1.0, 5, slowness=0.0, failures_per_hour=0.05, restart_hours=0.5)
    assert done.failures > 3
    assert done.hours > 200 / 5
    assert done.machine_hours >= 200 + done.failures * 0.5


def test_stragglers_are_waited_for():
    even, uneven = (
        simulate_workers(64, 1.0, 16, **(STEADY | {"slowness": slowness}), seed=3).hours
        for slowness in (0.0, 0.3)
    )
    assert uneven > even == pytest.approx(4.0)


def test_the_same_seed_plays_out_the_same():
    noisy = {"slowness": 0.2, "failures_per_hour": 0.1, "restart_hours": 0.2}
    first, again, other = (simulate_workers(50, 0.7, 6, **noisy, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_nothing_to_do_is_refused():
    with pytest.raises(ValueError, match="got 0 parts"):
        simulate_workers(0, 1.0, 1, **STEADY)


# The plan


def test_embedding_is_done_in_time_by_the_fewest_machines(constants):
    row = rows_of(constants)["embed, A10G"]
    assert row.hours <= 6
    steady = rows_of(constants | {"slowness": 1e-9, "failures_per_hour": 1e-9})["embed, A10G"]
    assert steady.machines <= row.machines
    ideal = steady.machines * steady.hours
    assert row.once == pytest.approx(ideal * constants["gpu_price"], rel=0.15)


def test_twice_the_price_costs_twice(constants):
    dear = rows_of(constants | {"gpu_price": 2 * constants["gpu_price"], "request_price": 1e-30})
    cheap = rows_of(constants | {"request_price": 1e-30})
    for stage in ("embed, A10G", "caption every picture, A10G"):
        assert dear[stage].once == pytest.approx(2 * cheap[stage].once)


def test_more_searches_need_more_machines_and_their_memory(constants):
    few, many = rows_of(constants), rows_of(constants | {"searches_per_second": 20_000.0})
    (stage,) = {name for name in few if name.startswith("search")}
    (busy,) = {name for name in many if name.startswith("search")}
    assert many[busy].machines > few[stage].machines
    assert many[busy].memory_gb == pytest.approx(few[stage].memory_gb * many[busy].machines)


def test_hours_too_few_for_one_part_are_refused(constants):
    with pytest.raises(ValueError, match=r"cannot be done in 0\.01 h"):
        plan(dataclasses.replace(ONE, hours=(0.01,)), constants)


def test_every_constant_counts(constants):
    sizes = (500_000, 2_000_000, 20_000_000, 200_000_000)
    settings = ScaleSettings(images=sizes, hours=(12, 12, 24, 240))
    constants = constants | {"searches_per_second": 50_000.0}  # so that the cores decide

    def everything(constants):
        return plan(settings, constants), limits(constants), [hours(way, constants) for way in WAYS]

    usual = everything(constants)
    idle = [name for name in constants if everything(constants | {name: 1.7 * constants[name]}) == usual]
    assert idle == ["gpu_cores"]  # the GPU decides


def test_slow_decoding_decides(constants):
    slow = constants | {"decode_ms": 500.0}
    few, many = (rows_of(slow | {"gpu_cores": cores})["embed, A10G"] for cores in (4.0, 8.0))
    assert few.machines == pytest.approx(2 * many.machines, abs=2)
    assert many.machines > rows_of(constants)["embed, A10G"].machines


def test_sizes_without_hours_are_refused():
    with pytest.raises(ValueError, match="expected as many"):
        ScaleSettings(images=(1, 2), hours=(1.0,))


def test_an_engine_stops_at_the_first_of_its_limits(constants):
    flat, hnsw, *_ = limits(constants)
    assert flat.images == pytest.approx(1e6 * constants["answer_ms"] / constants["flat_query_ms"], rel=1e-2)
    assert flat.reason == "time of a search"
    assert hnsw.images == 32e9 / constants["hnsw_memory"] and hnsw.reason == "memory"
    small = limits(constants | {"search_memory": 4e9})[1]
    assert small.images == pytest.approx(hnsw.images / 16)
    assert all(math.isinf(limit.answer) for limit in limits(constants) if "Milvus" in limit.engine)


def test_the_document_holds_the_tables_that_the_command_prints(constants):
    document = (PROJECT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert plan_table(plan(ScaleSettings(), constants)) in document
    assert limit_table(limits(constants)) in document
