"""Kills, Ctrl-C, SIGTERM, vanished pictures, a second process: the same bytes come of it."""

import os
import re
import signal
import subprocess
import sys

import pytest

from tests.faults_world import PROJECT, World, make_pictures, run, start, stop_when

pytest.importorskip("resvg_py", reason="needs requirements/demo.txt")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
PLAY = ("--strategy", "append", "--protocol", "chatir", "--user", "reference", "--caption-numbers", "4",
    "--queries", "6", "--query-batch", "2", "--rounds", "3")  # fmt: skip
MAX_SECONDS = 30  # of a stop; a second as a rule


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("faults"), play_options=PLAY)
    make_pictures(world.pictures, 48, side=112)
    world.clear()
    return world


def finish(world, *names):
    for name in names:
        log = world.home / "finish.log"
        log.unlink(missing_ok=True)
        assert run(world.arguments(name), log) == 0, log.read_text()
    return world.result()


@pytest.fixture(scope="module")
def reference(world):
    return finish(world, "embed", "play", "caption")


@pytest.fixture(autouse=True)
def empty(world, reference):
    world.clear()


def embedding_has_begun(world):
    return lambda: (world.place("--index") / ".partial" / "0.json").exists()


def captions_are_there(world):
    return lambda: world.place("--caption-cache").exists() and size(world.place("--caption-cache")) > 25_000


def rounds_are_there(world):
    return lambda: size(world.place("--output") / "rounds.jsonl") > 0


def size(path):
    return path.stat().st_size if path.exists() else 0


def said(log):
    """What a person reads, bars aside."""
    lines = re.split(r"[\r\n]+", log.read_text(encoding="utf-8"))
    return [line for line in lines if "%|" not in line and line.strip()]


def halted(world, name, tmp_path):
    """Starts a command and halts it in the midst of its work."""
    happened = {"embed": embedding_has_begun, "caption": captions_are_there, "play": rounds_are_there}[name]
    process = start(world.arguments(name), tmp_path / "halted.log")
    stop_when(process, happened(world))
    return process


def go_on(process):
    os.kill(process.pid, signal.SIGCONT)
    process.join(MAX_SECONDS)
    return process.exitcode


def test_a_short_campaign_of_kills_ends_in_the_same_bytes():
    """The long one is ``make soak``."""
    command = ["tests/soak.py", "--short", "--kills", "3", "--changes", "2", "--pictures", "40"]
    command += ["--minutes", "0.2"]  # of each half; a slow machine tries less
    done = subprocess.run(
        [sys.executable, *command], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"undisturbed: the same bytes"' in done.stdout and "DIFFERENT" not in done.stdout
    assert re.search(r"play: killed before \d of \d\d+ changes", done.stdout)


@pytest.mark.parametrize(
    ("name", "number", "status"),
    [("embed", signal.SIGTERM, 143), ("caption", signal.SIGINT, 130), ("play", signal.SIGINT, 130)],
    ids=["embed", "caption", "play"],
)
def test_a_stopped_command_says_how_to_go_on_and_does(world, reference, tmp_path, name, number, status):
    if name != "embed":
        finish(world, "embed")
    process = halted(world, name, tmp_path)
    os.kill(process.pid, number)
    assert go_on(process) == status
    assert said(tmp_path / "halted.log")[-1] == "stopped; the same command goes on from here"
    assert "Traceback" not in (tmp_path / "halted.log").read_text()
    assert finish(world, "embed", "play", "caption") == reference


def test_a_stopped_page_does_not_offer_to_go_on(world, tmp_path):
    pytest.importorskip("uvicorn", reason="needs requirements/page.txt")
    finish(world, "embed")
    log = tmp_path / "page.log"
    command = [*world.arguments("page"), "--strategy", "append", "--port", "0", "--no-describe"]
    process = start(command, log)
    stop_when(process, lambda: log.exists() and "open http://" in log.read_text())
    os.kill(process.pid, signal.SIGTERM)
    assert go_on(process) == 143
    last = "stopped; searches that were not saved are gone, a study's results are kept"
    assert said(log)[-1] == last
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("name", ["embed", "play"])
def test_pictures_that_vanish_all_together_stop_a_command_and_spoil_nothing(world, reference, tmp_path, name):
    if name != "embed":
        finish(world, "embed")
    process = halted(world, name, tmp_path)
    away = world.home / "away"
    world.pictures.rename(away)
    try:
        world.pictures.mkdir()  # as the mount point of a disk that is gone
        assert go_on(process) == 2
        (error,) = [line for line in said(tmp_path / "halted.log") if line.startswith("error: ")]
        assert "all pictures have vanished" in error and "give the same command again" in error
    finally:
        world.pictures.rmdir()
        away.rename(world.pictures)
    assert finish(world, "embed", "play", "caption") == reference


def test_a_picture_folder_that_is_not_there_is_named(world, tmp_path):
    away = world.home / "away"
    world.pictures.rename(away)
    try:
        assert run(world.arguments("play"), tmp_path / "log") == 2
    finally:
        away.rename(world.pictures)
    assert said(tmp_path / "log") == [
        f"error: {world.pictures}: no such image folder; put pictures there, or name another folder"
    ]


def test_a_second_process_is_refused(world, reference, tmp_path):
    finish(world, "embed")
    first = halted(world, "play", tmp_path)
    assert run(world.arguments("play"), tmp_path / "second.log") == 2
    (error,) = [line for line in said(tmp_path / "second.log") if line.startswith("error: ")]
    assert "another process is playing this run; wait until it has ended, or " in error
    assert go_on(first) == 0
    assert finish(world, "embed", "play", "caption") == reference


def test_processes_share_index_and_captions(world, reference, tmp_path):
    finish(world, "embed")
    commands = [world.arguments("caption"), world.arguments("caption"), world.arguments("play")]
    processes = [start(command, tmp_path / f"{number}.log") for number, command in enumerate(commands)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0], (tmp_path / "2.log").read_text()
    assert world.result() == reference
