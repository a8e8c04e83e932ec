"""What a run costs and how a comparison is laid out."""

from pathlib import Path

import pytest
from conftest import Merger

from experiments.compare import plays_of
from experiments.costs import Costs, CountedRewriter, Spent, counts_of
from records import Round
from settings import ComparisonSettings, ExperimentSettings


def test_habits_are_in_the_name_of_the_run_and_in_range():
    plain = ExperimentSettings("demo", split="dev").run_name()
    assert plain == "demo-dev-honest-independent-rewrite"
    settings = ExperimentSettings("demo", split="dev", user_noise=0.3, user_dislikes=2, user_patience=1)
    assert settings.run_name() == "demo-dev-honest-independent-noise0.3-dislikes2-patience1-rewrite"
    for wrong in ({"user_noise": 1.1}, {"user_dislikes": -1}, {"user_patience": 0}):
        with pytest.raises(ValueError, match="expected"):
            ExperimentSettings("demo", **wrong)
    for wrong in ({"noises": (0.0, 2.0)}, {"seeds": 0}, {"users": ()}, {"noises": (0.3, 0.3)}):
        with pytest.raises(ValueError, match="expected"):
            ComparisonSettings("demo", **wrong)


def test_only_what_is_random_is_played_with_several_seeds():
    settings = ComparisonSettings(
        "demo", strategies=("append", "original"), users=("reference", "random", "first"),
        noises=(0.0, 0.3), seeds=3, seed=5,
    )  # fmt: skip
    assert [(play.name, play.seeds) for play in plays_of(settings)] == [
        ("scrolling", (5,)),
        ("append, reference user", (5,)),
        ("append, reference user, 30% wrong", (5, 6, 7)),
        ("append, random user", (5, 6, 7)),
        ("append, first user", (5,)),
    ]
    assert len({play.file(Path(), seed) for play in plays_of(settings) for seed in play.seeds}) == 9
    assert plays_of(ComparisonSettings("demo", protocol="reference"))[0].name == "no feedback"


# Costs


def test_time_inside_belongs_to_the_stage_inside(monkeypatch):
    clock = iter([0.0, 1.0, 5.0, 7.0])  # move begins, rewrite begins, rewrite ends, move ends
    monkeypatch.setattr("experiments.costs.time.perf_counter", lambda: next(clock))
    costs = Costs()
    costs.run = "run"
    with costs.measure("move", 4), costs.measure("rewrite", 2):
        pass
    assert costs.spent["run"] == {"move": Spent(4, 3.0), "rewrite": Spent(2, 4.0)}


def test_a_query_costs_what_its_run_asked_for_at_the_price_of_all_runs(tmp_path):
    costs = Costs()
    costs.keep_in(tmp_path / "costs.json")
    for run, search, captions in (("one", 0.5, 4), ("two", 1.5, 0)):
        costs.run = run
        with costs.measure("search", 10), costs.measure("caption", captions):
            pass
        costs.spent[run]["search"].seconds = search
    costs.spent["one"]["caption"].seconds, costs.spent["one"]["caption"].tokens = 2.0, 40
    costs.spent["two"]["caption"].seconds = 0.0
    costs.save()
    again = Costs()
    again.keep_in(tmp_path / "costs.json")
    for account in (costs, again):
        row = account.per_query("two", {"search": 20, "caption": 8, "move": 0}, query_count=4)
        assert (row["search"], row["caption"], row["rewrite"]) == (5, 2, 0)
        assert row["search seconds"] == pytest.approx(5 * 0.15)
        assert row["caption seconds"] == pytest.approx(2 * 0.5) and row["tokens"] == pytest.approx(2 * 10)
        assert row["seconds"] == pytest.approx(0.75 + 1.0)
    unknown = costs.per_query("two", {"search": 4, "rewrite": 4}, query_count=4)
    assert unknown["rewrite seconds"] is None and unknown["seconds"] is None and unknown["tokens"] is None


def test_rewrites_are_shared_while_there_is_room_for_them(monkeypatch):
    monkeypatch.setattr("experiments.costs.KEPT_REWRITES", 2)
    merger = Merger()
    rewriter = CountedRewriter(merger, Costs())
    for _ in range(2):
        assert rewriter.rewrite(["a", "b", "a"], ["x", "y", "x"]) == ["a x", "b y", "a x"]
    assert merger.pairs == [("a", "x"), ("b", "y")]
    for _ in range(2):
        assert rewriter.rewrite(["c", "a", "c"], ["z", "x", "z"]) == ["c z", "a x", "c z"]
    assert merger.pairs == [("a", "x"), ("b", "y"), ("c", "z"), ("c", "z")]


def test_a_run_asks_for_captions_of_distinct_images_and_a_rewrite_after_each_caption():
    def turn(query, number, liked, captions):
        return Round(query, number, "", None, (), (), (), 0, None, liked=liked, captions=captions)

    rounds = [
        turn("a", 0, ("x", "y"), ("said", "said")), turn("a", 1, ("z",), ("",)), turn("a", 2, (), ()),
        turn("b", 0, ("x",), ("said",)), turn("b", 1, (), ()),
    ]  # fmt: skip
    assert counts_of(rounds, True, True) == {"search": 5, "move": 3, "caption": 3, "rewrite": 2}
    assert counts_of(rounds, False, False, collection=90)["caption"] == 90
    assert counts_of(rounds, False, False) == {"search": 5, "move": 3, "caption": 0, "rewrite": 0}
