"""The estimate of a full run: its arithmetic, its constants, and the table in the documents."""

from pathlib import Path

import pytest
import yaml

from benchmarks.constants import CONSTANTS, read_constants
from benchmarks.full_run import WAYS, counts, hours, table

PROJECT = Path(__file__).parents[1]
PROJECT_INT8 = WAYS[2]


def test_every_constant_says_where_it_comes_from():
    for name, entry in yaml.safe_load(CONSTANTS.read_text()).items():
        kind = entry["source"].split(":")[0]
        assert kind.split(",")[0] in ("measured", "published", "computed", "assumed"), name


def test_constants_are_changed_by_name(tmp_path):
    assert read_constants([("rewrite_tokens", 60.0)])["rewrite_tokens"] == 60
    with pytest.raises(ValueError, match="'nosuch', expected one of flickr30k_images"):
        read_constants([("nosuch", 1.0)])
    with pytest.raises(ValueError, match="above zero"):
        read_constants([("gpu_price", 0.0)])
    broken = tmp_path / "constants.yaml"
    broken.write_text("speed: {value: 3, unit: m/s}")
    with pytest.raises(ValueError, match=r"speed: got .*expected source, unit, value"):
        read_constants(path=broken)


def test_a_query_that_is_no_hit_goes_on():
    constants = read_constants() | {"flickr30k_queries": 1000.0}
    constants |= {"hits_round_1": 0.5, "hits_round_2": 0.6, "hits_round_3": 0.9}
    assert counts(constants) == (pytest.approx(2000), pytest.approx(1000))  # 500, 400 and 100 rewrites


def test_captions_are_made_once_an_image_or_once_a_pick():
    constants = read_constants()
    _, rewrites = counts(constants)
    once, each = (hours(way, constants)["caption"] for way in (WAYS[2], WAYS[0]))
    assert rewrites / constants["flickr30k_images"] == pytest.approx(4.7, abs=0.1)
    assert each > once * 4.7


def test_nothing_is_faster_than_its_floor():
    constants = read_constants()
    floor, *others = (hours(way, constants) for way in reversed(WAYS))
    for stage in floor:
        assert all(floor[stage] <= other[stage] for other in others), stage
    assert floor["all"] == pytest.approx(sum(floor[s] for s in ("embed", "caption", "rewrite", "search")))


def test_a_faster_gpu_is_faster_where_the_gpu_decides():
    slow = read_constants()
    fast = slow | {name: 2 * slow[name] for name in slow if name.startswith("rtx3090")}
    assert hours(PROJECT_INT8, fast)["rewrite"] == pytest.approx(hours(PROJECT_INT8, slow)["rewrite"] / 2)


def test_the_document_holds_the_table():
    assert table(read_constants()) in (PROJECT / "docs" / "performance.md").read_text(encoding="utf-8")
