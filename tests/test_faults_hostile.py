"""What a downloaded data set may bring: links to other files, folders of others, pictures made to do harm."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from index_world import ColourEncoder, build, failures, make_images, random_rows, save_index
from PIL import Image as PILImage

from experiments.dialogues import _read_list
from files import WriteFailed, append_lines, make_folder, read_lines, write_json
from generation.loading import model_type
from index import decode
from index.decode import BrokenImage, open_hashed, open_image
from index.faiss_index import FaissIndex
from index.folder import finish_swap
from index.limited import LimitedProcesses
from playground.captions import table_lines
from settings import PROJECT
from tests.flips import KINDS
from tests.flips import run as run_flips

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs links")
SECRET = "what the person wrote"


@pytest.fixture
def precious(tmp_path):
    """A file of the person, outside the data set."""
    path = tmp_path / "precious"
    path.write_text(SECRET)
    yield path
    assert path.read_text() == SECRET and sorted(p.name for p in tmp_path.iterdir()) == ["precious", "set"]


def test_no_file_of_an_index_is_written_through_a_link(tmp_path, precious):
    images, folder = make_images(tmp_path / "set", 12, broken={1}), tmp_path / "set" / "index-all"
    folder.mkdir()
    names = ("failed_images.csv", "vectors.faiss.new", "ids.json.new", "sizes.json.new", "manifest.json.new")
    for name in names:
        (folder / f"{name}.building").symlink_to(precious)
    (folder / "failed_images.csv").symlink_to(precious)
    assert len(build(images, ColourEncoder(), folder)) == 11
    assert not any(path.is_symlink() for path in folder.iterdir())


@pytest.mark.parametrize("link", ["index-all", "index-all/.partial"])
def test_a_folder_that_is_a_link_is_not_written_in(tmp_path, precious, link):
    images = make_images(tmp_path / "set", 12)
    elsewhere = tmp_path / "set" / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "set" / link).parent.mkdir(exist_ok=True)
    (tmp_path / "set" / link).symlink_to(elsewhere)
    with pytest.raises(WriteFailed, match="got a link, expected a folder; remove it, or name another"):
        build(images, ColourEncoder(), tmp_path / "set" / "index-all")
    assert not any(elsewhere.iterdir())


def test_records_are_not_appended_through_a_link(tmp_path, precious):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "rounds.jsonl").symlink_to(precious)
    with pytest.raises(WriteFailed, match="cannot be written"):
        append_lines(tmp_path / "set" / "rounds.jsonl", [{}])


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root gives folders away")
def test_a_folder_of_another_account_is_not_written_in(tmp_path, monkeypatch):
    os.chown(tmp_path, 12345, 12345)
    make_folder(tmp_path)  # root mounts folders of others in containers
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(WriteFailed, match=r"another account \(user id 12345\), expected your own"):
        make_folder(tmp_path)


def test_a_manifest_that_names_files_elsewhere_moves_none(tmp_path, precious):
    images, folder = make_images(tmp_path / "set", 3), tmp_path / "set" / "index-all"
    (tmp_path / "set" / "mine.new").write_text("theirs")
    (tmp_path / "set" / "mine").write_text("mine")
    folder.mkdir()
    write_json(folder / "manifest.json.new", {"sha256": {"../mine": ""}})
    assert len(build(images, ColourEncoder(), folder)) == 3
    assert (tmp_path / "set" / "mine").read_text() == "mine"


def test_another_models_index_is_replaced_only_when_told(tmp_path):
    images = make_images(tmp_path / "set", 3)
    build(images, ColourEncoder("colours-1"), tmp_path / "index")
    other = ColourEncoder("colours-2")
    with pytest.raises(ValueError, match=r"of another model: got colours-1 .*--index, or .* --rebuild"):
        build(images, other, tmp_path / "index")
    assert other.encoded == 0
    FaissIndex.open(tmp_path / "index", "colours-1")
    assert len(build(images, other, tmp_path / "index", rebuild=True)) == 3


def test_a_reader_waits_while_a_new_index_takes_the_old_ones_place(tmp_path):
    save_index(tmp_path, ["a", "b"], random_rows(0, 2))
    (tmp_path / "manifest.json").rename(tmp_path / "manifest.json.new")
    moved = threading.Timer(0.2, finish_swap, [tmp_path])
    moved.start()
    assert FaissIndex.open(tmp_path).ids == ("a", "b")
    moved.join()


@pytest.mark.parametrize("name", KINDS)
def test_a_changed_byte_is_refused_by_name_or_made_again(name):
    """The long campaign is ``python -m tests.flips``."""
    outcomes = run_flips(name, 60)
    assert set(outcomes) <= {"refused by name", "made again", "the same"}, outcomes


# Pictures


def without_an_end(scans=12_000):
    """A progressive JPEG whose last scan, which holds nothing, comes again and again."""
    file = io.BytesIO()
    PILImage.new("L", (6000, 6000)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * scans + data[-2:]


def large(kind):
    """A picture within the limit of pixels, whose file is small."""
    side, file = 13_377, io.BytesIO()
    if kind == "float.tiff":
        made, form = PILImage.fromarray(np.zeros((side, side), np.float32)), {"compression": "tiff_deflate"}
    elif kind == "grey16.png":
        made, form = PILImage.fromarray(np.zeros((side, side), np.uint16)), {}
    else:
        made, form = PILImage.new({"rgba.png": "RGBA", "palette.gif": "P"}[kind], (side, side)), {}
    made.save(file, {"png": "PNG", "gif": "GIF", "tiff": "TIFF"}[kind.split(".")[1]], **form)
    return file.getvalue()


def peak_mb(pid):
    with open(f"/proc/{pid}/status") as file:  # noqa: PTH123
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells it")
@pytest.mark.parametrize("kind", ["float.tiff", "grey16.png", "rgba.png", "palette.gif"])
def test_no_picture_takes_more_than_a_gigabyte(monkeypatch, kind):
    processes = LimitedProcesses("index.decode:answer", cpu_seconds=60)
    monkeypatch.setattr(decode, "_processes", processes)
    assert open_image(large(kind)).size == (1029, 1029)
    (process,) = processes._idle
    assert peak_mb(process.pid) < 1000


def test_more_bytes_than_the_limit_are_refused_before_they_are_decoded():
    file = io.BytesIO()
    PILImage.new("RGB", (7300, 7300)).save(file, "WEBP")
    begun = time.monotonic()
    with pytest.raises(BrokenImage, match="7300 x 7300 pixels take 813 MB to decode, expected at most 768"):
        open_image(file.getvalue())
    assert time.monotonic() - begun < 5


def test_a_picture_without_an_end_is_counted_and_the_others_are_embedded(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "_processes", LimitedProcesses("index.decode:answer", cpu_seconds=1))
    images = make_images(tmp_path / "set", 12)
    images[3].path.write_bytes(without_an_end())
    assert len(build(images, ColourEncoder(), tmp_path / "index")) == 11
    assert failures(tmp_path / "index") == {
        "003.png": "cannot be decoded: takes more than 1 s of computing, or 60 s by the clock"
    }


def test_what_never_comes_is_waited_for_by_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "_processes", LimitedProcesses("index.decode:answer", seconds=0.5))
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(BrokenImage, match=r"or 0.5 s by the clock"):
        open_image(tmp_path / "pipe.jpg")


def test_a_process_stopped_just_after_it_had_answered_is_not_asked_again(tmp_path, monkeypatch):
    processes = LimitedProcesses("index.decode:answer")
    monkeypatch.setattr(decode, "_processes", processes)
    (image,) = make_images(tmp_path, 1)
    replies = processes._reply

    def stopped_at_once(process, request):
        reply = replies(process, request)
        processes.stop()
        return reply

    for _ in range(3):
        monkeypatch.setattr(processes, "_reply", stopped_at_once)
        open_image(image.path)
        monkeypatch.setattr(processes, "_reply", replies)
        open_image(image.path)


def test_a_process_that_was_killed_costs_nobody_a_picture(tmp_path, monkeypatch):
    processes = LimitedProcesses("index.decode:answer")
    monkeypatch.setattr(decode, "_processes", processes)
    (image,) = make_images(tmp_path, 1)
    open_image(image.path)
    (process,) = processes._idle
    process.kill()
    process.wait()
    assert open_hashed(image.path)[0].size == (10, 8)


STOPPED = """
import sys, threading
sys.path[:0] = ["tests"]
from pathlib import Path
from index_world import ColourEncoder, build
from playground.image_folder import list_images
from settings import run_script
folder = Path(sys.argv[1])
print("begins", flush=True)
raise SystemExit(run_script(lambda: build(list_images(folder, "")[0], ColourEncoder(), folder / "index")))
"""


def test_who_stops_the_embedding_does_not_wait_for_a_picture_without_an_end(tmp_path):
    (tmp_path / "endless.jpg").write_bytes(without_an_end())
    command = [sys.executable, "-c", STOPPED, str(tmp_path)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"begins\n"
        time.sleep(1.5)
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert process.wait(30) == 143 and time.monotonic() - begun < 4


# Texts


def test_nesting_without_an_end_is_one_line_or_a_skip(tmp_path):
    deep = "[" * 100_000
    images = make_images(tmp_path / "set", 3)
    (tmp_path / "index" / ".partial").mkdir(parents=True)
    for name in ("manifest.json", ".partial/0.json"):
        (tmp_path / "index" / name).write_text(deep)
    assert len(build(images, ColourEncoder(), tmp_path / "index")) == 3
    (tmp_path / "config.json").write_text(deep)
    with pytest.raises(ValueError, match=r"config.json: not JSON"):
        model_type(str(tmp_path))
    with pytest.raises(ValueError, match=r"deep.json: not JSON"):
        (tmp_path / "deep.json").write_text(deep)
        list(_read_list(tmp_path / "deep.json", "dialogues"))


@pytest.mark.parametrize("letters", [200_000, 2**23])
def test_a_field_and_a_line_without_an_end_are_one_line(tmp_path, letters):
    path = tmp_path / "images_captions.csv"
    path.write_text(f"image_name,comment\na.jpg,{'x' * letters}\n")
    with pytest.raises(ValueError, match=r"images_captions.csv: .*(larger than|more than)"):
        list(table_lines(path, "try again"))


def test_a_line_of_records_without_an_end_is_refused_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("files.MAX_LINE_BYTES", 2**20)
    (tmp_path / "rounds.jsonl").write_bytes(b"{" * 2**22)
    with pytest.raises(ValueError, match=r"rounds.jsonl, line 1: got more than 1 MB in one line"):
        list(read_lines(tmp_path / "rounds.jsonl"))


# Connections


def test_silent_connections_are_closed_and_one_address_cannot_take_all(monkeypatch):
    uvicorn = pytest.importorskip("uvicorn", reason="needs requirements/page.txt")
    from interactive import connections

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    config = uvicorn.Config(
        app, port=0, http=connections.Connection, limit_concurrency=8, log_config=None, lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(10)]
    silent[0].sendall(b"GET / HTTP/1.1\r\n")  # and no more of it
    until = time.monotonic() + 10
    status = 503
    while status != 200 and time.monotonic() < until:
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", port)) as asking:
            asking.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            status = int(asking.recv(100).split()[1])
    assert status == 200
    assert all(one.recv(100) == b"" for one in silent)  # closed by the server
    server.should_exit = True
    thread.join(10)
