"""Same seed, same machine, same bytes; and what may differ where batches do. See docs/determinism.md."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.runs import read_rounds
from files import read_json
from index.faiss_index import FaissIndex
from tests.small_runs import model_folder, picture_folder

PROJECT = Path(__file__).parent.parent
SEED = 7
IMAGE_BATCHES = ("--image-batch", "7", "--workers", "1")
BATCHES = ("--caption-batch", "3", "--rewrite-batch", "5", "--query-batch", "8")
RUN_BOTH = """
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as done:
        assert not done.code
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, language_model):
    """One experiment, embedded and run in three processes that share nothing but pictures."""
    home = tmp_path_factory.mktemp("world")
    blip = model_folder(home / "blip", "itm.pth")
    captioner = model_folder(home / "captioner", "captioner.pth")
    pictures = picture_folder(home / "pictures")
    world = ["--dataset", "image_folder", "--root", pictures, "--encoder", blip]
    experiment = [
        "multi_modal_query_expansion.py", *world, "--caption-model", captioner, "--caption-numbers", "0",
        "--rewrite-model", language_model, "--quantization", "fp32", "--strategy", "rewrite-anchored",
        "--user", "reference", "--user-noise", "0.3", "--user-dislikes", "1", "--rounds", "3",
        "--queries", "12", "--seed", SEED,
    ]  # fmt: skip
    places = {"first": (1, [], []), "second": (2, [], []), "batches": (1, IMAGE_BATCHES, BATCHES)}
    processes = []
    for name, (hash_seed, image_batches, batches) in places.items():
        made = [
            "--index", home / name / "index", "--caption-cache", home / name / "captions.sqlite",
            "--output", home / name / "run",
        ]  # fmt: skip
        embedding = ["embed_image_as_faiss.py", *world, *made[:2], *image_batches]
        commands = [list(map(str, command)) for command in (embedding, [*experiment, *made, *batches])]
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", RUN_BOTH, json.dumps(commands)], cwd=PROJECT, text=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                # The order of sets of texts, and whatever else hangs on their hashes, differs.
                env=os.environ | {"PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"},
            )
        )  # fmt: skip
    for process in processes:
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said
    return [home / name for name in places]


def test_the_same_command_in_a_fresh_process_gives_the_same_bytes(folders):
    first, second, _ = folders
    for name in (
        "run/rounds.jsonl", "run/scrolling.rounds.jsonl", "run/measures.json", "index/vectors.faiss",
        "index/ids.json",
    ):  # fmt: skip
        assert (second / name).read_bytes() == (first / name).read_bytes(), name
    records = read_rounds(first / "run" / "rounds.jsonl")
    assert {record.number for record in records} == {0, 1, 2}
    assert read_json(first / "run" / "settings.json")["seed"] == SEED
    assert any(record.captions for record in records) and any(record.disliked for record in records)
    assert any(record.text != records[0].text and not record.fallback for record in records if record.number)


def test_other_batches_move_no_rank_in_fp32(folders):
    first, _, other = folders
    mine, theirs = (FaissIndex.open(folder / "index").vectors for folder in (first, other))
    assert np.abs(mine - theirs).max() < 1e-5
    one, two = (
        sorted(read_rounds(folder / "run" / "rounds.jsonl"), key=lambda r: (r.query_id, r.number))
        for folder in (first, other)
    )
    assert [replace(r, scores=()) for r in two] == [replace(r, scores=()) for r in one]
    for mine, theirs in zip(one, two, strict=True):
        assert theirs.scores == pytest.approx(mine.scores, abs=1e-5)
