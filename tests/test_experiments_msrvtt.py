"""Queries without one target, as MSR-VTT's are, through the whole experiment."""

import importlib
import json
import sys

import numpy as np
import pytest

from evaluation.runs import read_rounds
from settings import run_script
from tests.small_runs import draw_noise, model_folder

VIDEOS, FRAMES = 12, 5


@pytest.fixture
def arguments(tmp_path):
    """Of a small run: frames on disk, one sentence a video, tiny models."""
    root = tmp_path / "msrvtt"
    rows = ["key,vid_key,video_id,sentence"]
    for video in range(VIDEOS):
        draw_noise([root / "frames" / f"video{video}" / f"{frame:02}.jpg" for frame in range(FRAMES)])
        rows.append(f"ret{video},msr{video},video{video},a person shows thing {video}")
    (root / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(rows))
    return {
        "--root": root,
        "--blip": model_folder(tmp_path / "blip", "itm.pth"),
        "--caption-model": model_folder(tmp_path / "captioner", "captioner.pth"),
        "--quantization": "fp32",
        "--caption-cache": tmp_path / "captions.sqlite",
        "--output": tmp_path / "run",
    }


def run(monkeypatch, name, arguments, *more):
    command = [name, *(str(part) for pair in arguments.items() for part in pair), *more]
    monkeypatch.setattr(sys, "argv", command)
    return run_script(importlib.import_module(name).main)


def embed(monkeypatch, arguments):
    paths = {name: arguments[name] for name in ("--root", "--blip")}
    assert run(monkeypatch, "embed_image_as_faiss", {"--dataset": "msrvtt"} | paths) == 0


def brute_force_recall(records, round_count):
    """Of everything shown up to each round, the share of a query's relevant images; mean over queries."""
    sessions = {}
    for record in sorted(records, key=lambda record: record.number):
        sessions.setdefault(record.query_id, []).append(record)
    recalls = np.zeros((round_count, len(sessions)))
    for column, session in enumerate(sessions.values()):
        for number in range(round_count):
            shown = {i for record in session[: number + 1] for i in record.image_ids[: record.shown]}
            recalls[number, column] = len(shown & set(session[0].relevant)) / len(session[0].relevant)
    return recalls.mean(axis=1)


@pytest.mark.parametrize(
    ("protocol", "user"),
    [("paper", "ground-truth"), ("honest", "reference")],
)
def test_the_msrvtt_script_plays_and_measures(arguments, tmp_path, monkeypatch, protocol, user):
    options = ("--strategy", "append", "--protocol", protocol, "--user", user)
    embed(monkeypatch, arguments)
    assert run(monkeypatch, "multi_modal_query_expansion_msrvtt", arguments, *options) == 0
    records = read_rounds(tmp_path / "run" / "rounds.jsonl")
    assert {record.target for record in records} == {None}
    assert len({record.query_id for record in records}) == VIDEOS
    for record in records:
        video = record.query_id.partition("#")[0]
        assert all(image_id.startswith(f"{video}/") for image_id in record.relevant)
    measures = json.loads((tmp_path / "run" / "measures.json").read_text())
    assert measures["queries_with_a_target"] == 0
    assert measures["queries_with_relevant_images"] == VIDEOS
    means = measures["means_per_round"]
    assert not {"Recall@10", "Mean rank", "BRI"} & set(means)  # there is no target to rank
    np.testing.assert_allclose(means["Session recall"], brute_force_recall(records, 4))
    assert means["Session recall"] == sorted(means["Session recall"])
    if protocol == "paper":  # ten unseen images a round
        for query_id in {record.query_id for record in records}:
            shown = [i for r in records if r.query_id == query_id for i in r.image_ids[: r.shown]]
            assert len(shown) == len(set(shown))
    assert (tmp_path / "run" / "report.html").stat().st_size > 0


def test_strategies_are_compared_by_what_such_queries_can_be_measured_by(arguments, monkeypatch, capsys):
    arguments = {"--dataset": "msrvtt", "--protocol": "honest", "--rounds": 2} | arguments
    embed(monkeypatch, arguments)
    options = ("--strategies", "append", "--users", "reference", "first")
    assert run(monkeypatch, "compare", arguments, *options) == 0
    table = capsys.readouterr().out
    assert "Session recall" in table and "Recall@10" not in table
    assert len(table.splitlines()) == 2 + 3
