"""A full disk and a read-only one: one line says which file and what to do; afterwards nothing is missing.

The disks are real ones, small and in memory; mounting them needs root.
"""

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from files import WriteFailed, replace_file
from index.approximate import build_approximate
from index.scores import unit_rows
from tests.faults_world import World, make_pictures, run
from tests.test_faults_stops import said

pytest.importorskip("resvg_py", reason="needs requirements/demo.txt")
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="root mounts a small disk"
)
ROOM = "8m"
PLACES = {  # option, the file or folder on the small disk, its size in kilobytes
    "--index": ("index", 68),
    "--caption-cache": ("captions.sqlite", 28),
    "--output": ("run", 48),
}


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)


@contextmanager
def small_disk(folder):
    folder.mkdir(exist_ok=True)
    if mount("-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", folder).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(disk, options):
    done = mount("-o", f"remount,{options}", disk)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("disks"))
    make_pictures(world.pictures, 40, side=112)
    return world


def contents(world):
    """All that was made, aside from what lists the settings, which name the places."""
    listing = ("--output settings.json", "--output report.html")
    return {name: value for name, value in world.result().items() if name not in listing}


@pytest.fixture(scope="module")
def reference(world):
    world.clear()
    assert commands(world) == []
    return contents(world)


def commands(world):
    """Plays everything; returns the lines of errors, of the first command that fails."""
    for name in ("embed", "caption", "play"):
        log = world.home / "log"
        log.unlink(missing_ok=True)
        status = run(world.arguments(name), log)
        assert "Traceback" not in log.read_text()
        errors = [line for line in said(log) if line.startswith("error: ")]
        assert (status, len(errors)) in ((0, 0), (2, 1)), log.read_text()
        if status:
            assert said(log)[-1] == errors[0]  # the last word, and on one line
            return errors
    return []


@pytest.mark.parametrize("option", PLACES)
def test_a_full_and_a_read_only_disk_are_named_and_cost_nothing_that_was_finished(world, reference, option):
    name, size = PLACES[option]
    with small_disk(world.home / "disk") as disk:
        placed = replace(world, places={option: disk / name})
        placed.clear()
        remount(disk, f"size={size}k")
        (error,) = commands(placed)
        assert str(disk) in error
        assert re.search("No space left on device|disk is full|is the disk full", error)
        assert "make room" in error or "the disk has room" in error
        remount(disk, f"ro,size={ROOM}")
        (error,) = commands(placed)
        assert str(disk) in error and re.search("cannot be written|may be written", error)
        remount(disk, "rw")
        assert commands(placed) == []
        assert contents(placed) == reference


def test_an_index_on_a_read_only_disk_is_searched(world):
    with small_disk(world.home / "disk") as disk:
        placed = replace(world, places={"--index": disk / "index"})
        placed.clear()
        assert run(placed.arguments("embed"), world.home / "log") == 0
        (disk / "index" / ".partial").mkdir()  # as a kill leaves it
        remount(disk, "ro")
        assert commands(placed) == []


def test_an_approximate_index_on_a_full_disk_is_named(tmp_path):
    """FAISS writes it, and calls a full disk no error of the system."""
    rows = np.random.default_rng(0).normal(size=(3000, 32))
    rows = unit_rows((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), 32, "rows")
    approximate = build_approximate(rows, "hnsw")
    with small_disk(tmp_path / "disk") as disk:
        remount(disk, "size=16k")
        with pytest.raises(
            WriteFailed, match=r"approximate\.faiss: cannot be written .*; make room"
        ) as caught:
            replace_file(disk / "approximate.faiss", approximate.write)
        assert "\n" not in str(caught.value)
        assert list(disk.iterdir()) == []
