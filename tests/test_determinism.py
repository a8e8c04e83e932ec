"""Same seed, same machine, same bytes; and what may differ where batches do. See docs/determinism.md."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.runs import read_rounds
from files import read_json
from index.faiss_index import FaissIndex

PROJECT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures" / "blip"
SEED = 7
BATCHES = ("--caption-batch", "3", "--rewrite-batch", "5", "--query-batch", "8")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, language_model):
    """One experiment, embedded and run in three sequences of processes that share nothing but pictures."""
    home = tmp_path_factory.mktemp("world")
    for name, weights in (("blip", "itm.pth"), ("captioner", "captioner.pth")):
        (home / name).mkdir()
        shutil.copy(FIXTURES / weights, home / name)
        shutil.copy(FIXTURES / "vocab.txt", home / name)
        heads = {"model_type": "blip", "num_attention_heads": 2, "vision": {"heads": 3}}
        (home / name / "config.json").write_text(json.dumps(heads))
    (home / "pictures").mkdir()
    random = np.random.default_rng(0)
    rows = [("image_name", "comment_number", "comment")]
    for number in range(30):
        noise = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        noise.resize((40, 30), Image.Resampling.NEAREST).save(home / "pictures" / f"{number}.png")
        rows.append((f"{number}.png", "0", f"picture {number} of a dog"))
    with (home / "pictures" / "images_captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)

    world = ["--dataset", "image_folder", "--root", home / "pictures", "--blip", home / "blip"]
    embedding = ["embed_image_as_faiss.py", *world]
    experiment = [
        "multi_modal_query_expansion.py", *world, "--caption-model", home / "captioner",
        "--rewrite-model", language_model, "--quantization", "fp32", "--strategy", "rewrite-anchored",
        "--user", "reference", "--user-noise", "0.3", "--user-dislikes", "1", "--rounds", "3",
        "--queries", "12", "--seed", str(SEED),
    ]  # fmt: skip

    def start(hash_seed, *command):
        # The order of sets of texts, and whatever else hangs on their hashes, differs between processes.
        return subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=PROJECT, text=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def finish(processes):
        for process in processes:
            _, said = process.communicate(timeout=600)
            assert process.returncode == 0, said

    places = [(home / name, seed) for name, seed in (("first", 1), ("second", 2), ("batches", 1))]
    image_batches = ((), (), ("--image-batch", "7", "--workers", "1"))
    finish(
        [
            start(seed, *embedding, "--index", folder / "index", *batches)
            for (folder, seed), batches in zip(places, image_batches, strict=True)
        ]
    )
    finish(
        [
            start(
                seed, *experiment, "--index", folder / "index",
                "--caption-cache", folder / "captions.sqlite", "--output", folder / "run", *batches,
            )
            for (folder, seed), batches in zip(places, ((), (), BATCHES), strict=True)
        ]
    )  # fmt: skip
    return [folder for folder, _ in places]


def test_the_same_command_in_a_fresh_process_gives_the_same_bytes(folders):
    first, second, _ = folders
    for name in (
        "run/rounds.jsonl", "run/scrolling.rounds.jsonl", "run/measures.json", "index/vectors.faiss",
        "index/ids.json",
    ):  # fmt: skip
        assert (second / name).read_bytes() == (first / name).read_bytes(), name
    records = read_rounds(first / "run" / "rounds.jsonl")
    assert {record.number for record in records} == {0, 1, 2}
    assert any(record.captions for record in records) and any(record.disliked for record in records)
    assert any(record.text != records[0].text and not record.fallback for record in records if record.number)


def test_the_seed_is_saved_with_the_run(folders):
    assert read_json(folders[0] / "run" / "settings.json")["seed"] == SEED


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
