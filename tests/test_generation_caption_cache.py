"""The file of captions: shared by processes, whole after a kill, refused by name when it is damaged."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import generation.captions
from files import file_sha256
from generation.captions import FORMAT, CaptionCache

PROJECT = Path(__file__).parent.parent

WRITER = """
import sys
from pathlib import Path
from generation.captions import CaptionCache
cache, name, count = CaptionCache(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
for number in range(count):
    picture = f"picture {number}"
    cache.keep("shared", {picture: f"by {name}"})
    cache.keep(name, {picture: f"by {name}"})
    print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "captions.sqlite"


def writer(path, name, count):
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)


def test_captions_are_found_by_captioner_and_picture(path):
    cache = CaptionCache(path)
    assert cache.keep("one", {"a": "a réd dog", "b": "it's 'so'"}) == {"a": "a réd dog", "b": "it's 'so'"}
    assert cache.keep("two", {"a": "a cat"}) == {"a": "a cat"}
    assert cache.keep("one", {}) == {}
    assert cache.keep("two", {"a": "second", "b": "new"}) == {"a": "a cat", "b": "new"}  # the first stays
    again = CaptionCache(path)
    assert again.find("one", ["b", "a", "c"]) == {"a": "a réd dog", "b": "it's 'so'"}
    assert again.find("two", ["a", "b"]) == {"a": "a cat", "b": "new"}
    assert again.find("three", ["a"]) == again.find("one", []) == {}


def test_two_processes_share_the_file(path):
    processes = [writer(path, name, 40) for name in ("first", "second")]
    assert [process.communicate(timeout=60)[0].split()[-1] for process in processes] == ["39", "39"]
    assert [process.returncode for process in processes] == [0, 0]
    pictures = [f"picture {number}" for number in range(40)]
    cache = CaptionCache(path)
    for name in ("first", "second"):
        assert cache.find(name, pictures) == dict.fromkeys(pictures, f"by {name}")
    assert set(cache.find("shared", pictures)) == set(pictures)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is of POSIX")
def test_a_kill_loses_nothing_that_was_kept(path):
    process = writer(path, "killed", 1_000_000)
    kept = [int(process.stdout.readline()) for _ in range(10)]
    os.kill(process.pid, signal.SIGKILL)
    kept += [int(line) for line in process.communicate()[0].split()]
    cache = CaptionCache(path)
    pictures = [f"picture {number}" for number in kept]
    assert len(cache.find("killed", pictures)) == len(kept) >= 10
    assert cache.keep("after", {"a": "it goes on"}) == {"a": "it goes on"}


def test_a_file_that_lost_its_end_or_middle_is_refused(path):
    CaptionCache(path).keep("one", {f"{n:064}": f"caption {n}" for n in range(2000)})
    whole = path.read_bytes()
    hole = whole[:8192] + bytes(8192) + whole[16384:]
    for broken in (whole[: len(whole) // 2], hole, b"image,caption\n" * 100):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"captions.sqlite: damaged .*move it away"):
            CaptionCache(path)
        assert path.read_bytes() == broken
    path.write_bytes(whole)
    everything = {f"{n:064}": f"caption {n}" for n in range(2000)}
    assert CaptionCache(path).find("one", list(everything)) == everything


def test_a_row_that_has_changed_is_made_again_and_no_other(path, caplog):
    cache = CaptionCache(path)
    for captioner in ("one", "two"):
        cache.keep(captioner, {"a": "a dog", "b": "a cat"})
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE captions SET caption = 'a hog' WHERE picture = 'a' AND captioner = 1")
    assert cache.find("one", ["a", "b"]) == {"b": "a cat"}
    assert "1 captions are damaged, and made again" in caplog.text
    assert cache.keep("one", {"a": "a dog"}) == {"a": "a dog"}
    assert cache.find("two", ["a", "b"]) == {"a": "a dog", "b": "a cat"}


def test_a_file_of_the_first_format_is_brought_up_to_date(path):
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as database, database:
        for table in generation.captions._TABLES:
            database.execute(table.replace(" crc32 INTEGER,", "").replace(", crc32 INTEGER", ""))
        database.execute("INSERT INTO captioners VALUES (1, 'one')")
        database.execute("INSERT INTO captions VALUES (1, 'a', 'a réd dog')")
        database.execute(f"PRAGMA application_id = {generation.captions.APPLICATION_ID}")
        database.execute("PRAGMA user_version = 1")
    assert (
        CaptionCache(path).find("one", ["a"]) == CaptionCache(path).find("one", ["a"]) == {"a": "a réd dog"}
    )


def test_other_databases_and_newer_formats_are_refused(path):
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE mine (a)")
    with pytest.raises(ValueError, match="a database, but not one of captions; give another --caption-cache"):
        CaptionCache(path)
    path.unlink()
    CaptionCache(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {FORMAT + 1}")
    with pytest.raises(ValueError, match=rf"got captions in format {FORMAT + 1}, expected {FORMAT}"):
        CaptionCache(path)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"unable to open database file; check that the file may be written"):
        CaptionCache(tmp_path)


def aged(path, content, seconds=60):
    path.write_bytes(content)
    old = time.time_ns() - seconds * 1_000_000_000
    os.utime(path, ns=(old, old))


def test_a_file_is_read_once(path, tmp_path, monkeypatch):
    read = []

    def counting(file):
        read.append(file.name)
        return file_sha256(file)

    monkeypatch.setattr(generation.captions, "file_sha256", counting)
    first, second = tmp_path / "first", tmp_path / "second"
    aged(first, b"one")
    aged(second, b"two")
    hashes = CaptionCache(path).hashes_of([first, second])
    assert hashes == {first: file_sha256(first), second: file_sha256(second)}
    assert sorted(read) == ["first", "second"]
    assert CaptionCache(path).hashes_of([first, second, tmp_path / "gone"]) == hashes
    assert len(read) == 2
    aged(first, b"ONE", seconds=30)  # as large as before
    assert CaptionCache(path).hashes_of([first, second])[first] == file_sha256(first) != hashes[first]
    assert read[2:] == ["first"]


def test_a_file_that_may_still_change_is_not_remembered(path, tmp_path):
    file = tmp_path / "file"
    cache = CaptionCache(path)
    now = time.time_ns()
    hashes = []
    for content in (b"one", b"two"):  # twice within one tick of a coarse clock
        file.write_bytes(content)
        os.utime(file, ns=(now, now))
        hashes.append(cache.hashes_of([file])[file])
    assert hashes[0] != hashes[1] == file_sha256(file)
