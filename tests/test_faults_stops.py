"""Kills, Ctrl-C, SIGTERM, vanished pictures, a second process: the same bytes come of it."""

import os
import re
import signal
import sys

import pytest

from tests.faults_world import World, make_pictures, run, start, stop_when
from tests.soak import Campaign

pytest.importorskip("resvg_py", reason="needs requirements/demo.txt")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
MAX_SECONDS = 30  # of a stop; a second as a rule


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("faults"))
    make_pictures(world.pictures, 40, side=112)
    return Campaign(world, minutes=0.3)  # a slow machine tries less


@pytest.fixture
def world(campaign):
    campaign.world.clear()
    return campaign.world


def finish(world, *names):
    for name in names:
        log = world.home / "finish.log"
        log.unlink(missing_ok=True)
        assert run(world.arguments(name), log) == 0, log.read_text()
    return world.result()


def size(path):
    return path.stat().st_size if path.exists() else 0


def said(log):
    """What a person reads, bars aside."""
    lines = re.split(r"[\r\n]+", log.read_text(encoding="utf-8"))
    return [line for line in lines if "%|" not in line and line.strip()]


def halted(world, name, tmp_path):
    """Starts a command and halts it in the midst of its work."""
    begun = {
        "embed": lambda: (world.place("--index") / ".partial" / "0.json").exists(),
        "play": lambda: size(world.place("--output") / "rounds.jsonl") > 0,
    }
    process = start(world.arguments(name), tmp_path / "halted.log")
    stop_when(process, begun[name])
    return process


def go_on(process):
    os.kill(process.pid, signal.SIGCONT)
    process.join(MAX_SECONDS)
    return process.exitcode


def test_a_short_campaign_of_kills_ends_in_the_same_bytes(campaign):
    """The long one is ``make soak``."""
    campaign.kill_at_random(4)
    campaign.kill_at_changes(3)
    assert campaign.killed.total() >= 3
    assert campaign.laps and not campaign.failed, campaign.laps


@pytest.mark.parametrize(
    ("name", "number", "status"),
    [("embed", signal.SIGTERM, 143), ("play", signal.SIGINT, 130)],
    ids=["embed", "play"],
)
def test_a_stopped_command_says_how_to_go_on_and_does(world, campaign, tmp_path, name, number, status):
    if name != "embed":
        finish(world, "embed")
    process = halted(world, name, tmp_path)
    os.kill(process.pid, number)
    assert go_on(process) == status
    assert said(tmp_path / "halted.log")[-1] == "stopped; the same command goes on from here"
    assert "Traceback" not in (tmp_path / "halted.log").read_text()
    assert finish(world, "embed", "play", "caption") == campaign.reference


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


def test_pictures_that_vanish_all_together_stop_a_command_and_spoil_nothing(world, campaign, tmp_path):
    finish(world, "embed")
    process = halted(world, "play", tmp_path)
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
    assert finish(world, "play", "caption") == campaign.reference


def test_processes_share_index_and_captions_and_one_alone_plays_a_run(world, campaign, tmp_path):
    finish(world, "embed")
    first = halted(world, "play", tmp_path)
    assert run(world.arguments("play"), tmp_path / "second.log") == 2
    (error,) = [line for line in said(tmp_path / "second.log") if line.startswith("error: ")]
    assert "another process is playing this run; wait until it has ended, or " in error
    captioning = [start(world.arguments("caption"), tmp_path / f"{number}.log") for number in range(2)]
    assert go_on(first) == 0
    for process in captioning:
        process.join()
        assert process.exitcode == 0
    assert world.result() == campaign.reference
