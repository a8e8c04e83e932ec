"""What a kill leaves beside finished work: it is taken up or removed, and never mixed into it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import IMAGE_IDS, KnownCaptions, one_target, rounds_of
from interactive_world import context, options, picture_folder, study  # noqa: F401
from PIL import Image as PILImage

from evaluation.runs import read_rounds
from feedback.protocols import PROTOCOLS
from feedback.strategies import make_strategy
from feedback.users import FirstUser
from files import locked_folder
from index.build import build_index
from interactive.session import Session
from playground.image_folder import list_images

PROJECT = Path(__file__).parent.parent
QUERIES = [one_target(f"q{number}", "a dog", target) for number, target in enumerate(IMAGE_IDS[3:150:15])]


class MeanColour:
    dimension, fingerprint = 4, "mean-1"

    def encode_images(self, images):
        rows = np.array([[*np.asarray(image).reshape(-1, 3).mean(axis=0), 99] for image in images])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def build(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        PILImage.new("RGB", (2, 2), (number, 9, 9)).save(tmp_path / "pictures" / f"{number}.png")

    def build():
        return build_index(
            list_images(tmp_path / "pictures", "")[0], MeanColour(), tmp_path / "index", model_name="m",
            dataset="d", image_folder=tmp_path / "pictures", batch_size=2, workers=1,
        )  # fmt: skip

    return build


def test_parts_left_beside_a_whole_index_are_removed_unless_somebody_builds(build, tmp_path):
    build()
    parts = tmp_path / "index" / ".partial"
    parts.mkdir()
    (parts / "0.npy").write_bytes(b"left by a kill between manifest and removal")
    with locked_folder(tmp_path / "index"):
        assert len(build()) == 3  # a reader is not refused
        assert parts.exists()
    assert len(build()) == 3
    assert not parts.exists()


@pytest.mark.parametrize("cut", [4, 23])
def test_a_resumed_run_asks_the_models_in_the_batches_of_one_that_was_not_stopped(retriever, cut):
    """Last bits, and what a language model writes, depend on what is computed together."""

    class Noting:
        dimension, fingerprint = retriever.encoder.dimension, retriever.encoder.fingerprint

        def __init__(self):
            self.batches = []

        def encode_texts(self, texts):
            self.batches.append(tuple(texts))
            return retriever.encoder.encode_texts(texts)

    def play(played=()):
        encoder, kept = Noting(), []
        rounds = rounds_of(
            QUERIES, retriever=type(retriever)(encoder, retriever.index), user=FirstUser(),
            strategy=make_strategy("append"), protocol=PROTOCOLS["chatir"], captions=KnownCaptions(),
            round_count=3, played=played, batch_size=4, keep=kept.extend,
        )  # fmt: skip
        return rounds, encoder.batches, kept

    whole, batches, _ = play()
    resumed, again, kept = play(whole[:cut])
    assert resumed == whole and kept == whole[cut:]
    assert again == batches[-len(again) :]
    assert len(again) < len(batches)


def test_a_study_goes_on_after_a_kill_in_the_midst_of_a_line(context, study, options):  # noqa: F811
    session = Session(context, options)
    session.search("a dog")
    study.end(study.begin("P1"), session, found=False)
    lost = study.begin("P1").search  # its end is not on record, and its records are torn
    with (study.folder / "rounds.jsonl").open("a") as file:
        file.write('{"query_id": "study-P1-1')
    study.end(study.begin("P2"), session, found=False)
    records = read_rounds(study.folder / "rounds.jsonl")
    assert [record.query_id for record in records] == ["study-P1-0", "study-P2-0"]
    assert [each.outcome for each in study.searches()] == ["abandoned", "unfinished", "abandoned"]
    assert study.searches()[1] == lost and study.begin("P1").search.number == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.demo
def test_drawing_the_demo_refuses_a_second_process_and_leaves_no_workers(tmp_path):
    command = [sys.executable, "-m", "playground.demo", "--root", str(tmp_path)]
    first = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.DEVNULL)
    try:
        drawn = tmp_path / "test.unfinished" / "images"
        wait_for(lambda: drawn.is_dir() and any(drawn.iterdir()))
        workers = children_of(first.pid)
        os.kill(first.pid, signal.SIGSTOP)
        second = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert "another process is drawing demo scenes here; wait until it has ended, or" in second.stderr
    finally:
        first.kill()
        first.wait()
    assert workers
    wait_for(lambda: not any(is_running(worker) for worker in workers))
    with locked_folder(tmp_path):  # with the workers the lock is gone
        pass


def wait_for(happened):
    until = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.01)


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    try:
        return (
            ") Z " not in Path(f"/proc/{pid}/stat").read_text()
        )  # dead, and nobody has asked for its status
    except (FileNotFoundError, ProcessLookupError):
        return False
