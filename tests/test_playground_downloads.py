"""The download scripts, with a `kaggle` that serves small archives and a server on this machine."""

import functools
import hashlib
import http.server
import io
import os
import shutil
import stat
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest
from PIL import Image

PLAYGROUND = Path(__file__).parent.parent / "playground"
SCRIPTS = sorted(PLAYGROUND.glob("*.sh"))
CAPTIONS = "image_name| comment_number| comment\n1.jpg| 0| A cat\n2.jpg| 0| A dog\n"
ANNOTATIONS = (
    '{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "A cat"}]}'
)

pytestmark = pytest.mark.skipif(
    not (shutil.which("unzip") and shutil.which("curl")), reason="needs unzip, curl"
)


def picture():
    file = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(file, "JPEG")
    return file.getvalue()


def archive(path, names, links=()):
    """Writes a zip; contents are pictures, or a text given with the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            name, content = name if isinstance(name, tuple) else (name, picture())
            file.writestr(name, content)
        for name, goal in links:
            info = zipfile.ZipInfo(name)
            info.create_system = 3  # Unix, where a link is a file mode
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(info, goal)
    return path


EESHAWN = ["flickr30k_images/1.jpg", "flickr30k_images/2.jpg", ("captions.txt", CAPTIONS)]
HSANKESARA = [
    "flickr30k_images/flickr30k_images/1.jpg",
    "flickr30k_images/flickr30k_images/2.jpg",
    ("flickr30k_images/results.csv", CAPTIONS),
    "flickr30k_images/cover.jpg",
]


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """A `kaggle` on the PATH that copies an archive and notes how it was called; with credentials."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "kaggle").write_text(
        "#!/bin/bash\n"
        f'echo "$@" >> {tmp_path}/calls\n'
        '[ "$1 $2 $3 $5" = "datasets download -d -p" ] || exit 64\n'
        f"source=$(ls {tmp_path}/served*.zip | sed -n 1p)\n"
        '[ -z "$BREAK_OFF" ] || { head -c 100 "$source" > "$6/${4##*/}.zip"; exit 1; }\n'
        '[ -n "$7" ] || [ -z "$STALE" ] || exit 0\n'
        'cp "$source" "$6/${4##*/}.zip"\n'
    )
    (tools / "kaggle").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home" / ".kaggle").mkdir(parents=True)
    (tmp_path / "home" / ".kaggle" / "kaggle.json").write_text("{}")
    monkeypatch.setenv("FLICKR30K_FOLDER", str(tmp_path / "flickr30k"))
    monkeypatch.setenv("FLICKR30K_PICTURES", "2")
    return tmp_path


def run(name, *arguments, **environment):
    return subprocess.run(
        ["bash", str(PLAYGROUND / name), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(folder):
    return (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_finds_nothing():
    done = subprocess.run(
        ["shellcheck", "--external-sources", "--source-path", str(PLAYGROUND), *map(str, SCRIPTS)],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "" and done.returncode == 0


@pytest.mark.parametrize(
    ("dataset", "names", "captions"),
    [
        ("eeshawn/flickr30k", EESHAWN, "captions.txt"),
        ("hsankesara/flickr-image-dataset", HSANKESARA, "results.csv"),
    ],
)
def test_flickr30k_is_fetched_unpacked_put_in_place_and_checked(kaggle, dataset, names, captions):
    archive(kaggle / "served.zip", names)
    done = run("download_flickr30k.sh", FLICKR30K_DATASET=dataset)
    assert done.returncode == 0, done.stdout + done.stderr
    assert calls(kaggle) == [f"datasets download -d {dataset} -p {kaggle}/flickr30k"]
    assert sorted(path.name for path in (kaggle / "flickr30k").iterdir()) == sorted(
        [captions, "flickr30k_images"]
    )
    assert "usable: 2 images (0 without a caption), 2 queries, 0 left out" in done.stdout
    again = run("download_flickr30k.sh", FLICKR30K_DATASET=dataset)
    assert again.returncode == 0 and "2 pictures are there already" in again.stdout
    assert len(calls(kaggle)) == 1


def test_a_broken_off_download_goes_on(kaggle):
    archive(kaggle / "served.zip", EESHAWN)
    broken = run("download_flickr30k.sh", BREAK_OFF="1")
    assert broken.returncode != 0
    assert not (kaggle / "flickr30k" / "flickr30k_images").exists()
    assert run("download_flickr30k.sh").returncode == 0
    assert len(calls(kaggle)) == 2


def test_a_damaged_archive_is_fetched_again_once(kaggle):
    archive(kaggle / "served.zip", EESHAWN)
    (kaggle / "flickr30k").mkdir()
    (kaggle / "flickr30k" / "flickr30k.zip").write_bytes(b"an archive of yesterday")
    done = run("download_flickr30k.sh", STALE="1")
    assert done.returncode == 0, done.stderr
    assert [call.endswith("--force") for call in calls(kaggle)] == [False, True]
    shutil.rmtree(kaggle / "flickr30k")
    (kaggle / "served.zip").write_bytes(b"never an archive")
    done = run("download_flickr30k.sh")
    assert done.returncode == 1 and "is damaged or missing after a second download" in done.stderr


def test_a_whole_archive_needs_neither_kaggle_nor_credentials(kaggle):
    archive(kaggle / "flickr30k" / "flickr30k.zip", EESHAWN)
    (kaggle / "home" / ".kaggle" / "kaggle.json").unlink()
    assert run("download_flickr30k.sh").returncode == 0
    assert calls(kaggle) == []


def test_what_is_missing_is_one_line_with_the_next_step(kaggle, tmp_path):
    archive(kaggle / "served.zip", EESHAWN)
    (kaggle / "home" / ".kaggle" / "kaggle.json").unlink()
    done = run("download_flickr30k.sh")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "error: no Kaggle credentials: make a token at https://www.kaggle.com/settings" in done.stderr
    assert run("download_flickr30k.sh", KAGGLE_USERNAME="me").returncode == 1
    few = tmp_path / "few"
    few.mkdir()
    for tool in ("bash", "dirname", "mkdir", "find", "wc", "tr", "df", "awk", "unzip", "curl", "md5sum"):
        (few / tool).symlink_to(shutil.which(tool))
    done = run("download_flickr30k.sh", PATH=str(few))
    assert (done.returncode, done.stderr) == (1, "error: kaggle is not installed: pip install kaggle\n")
    (few / "unzip").unlink()
    done = run("download_flickr30k.sh", PATH=str(few))
    assert (done.returncode, done.stderr) == (1, "error: unzip is not installed: apt install unzip\n")
    (few / "curl").unlink()
    done = run("download_mscoco.sh", PATH=str(few), MSCOCO_FOLDER=str(tmp_path / "mscoco"))
    assert (done.returncode, done.stderr) == (1, "error: curl is not installed: apt install curl\n")
    assert run("download_flickr30k.sh", KAGGLE_USERNAME="me", KAGGLE_KEY="x").returncode == 0


def test_a_full_disk_is_noticed_before_anything_is_fetched(kaggle):
    archive(kaggle / "served.zip", EESHAWN)
    (kaggle / "tools" / "df").write_text("#!/bin/bash\necho header\necho /dev/x 9 9 37 1% /\n")
    (kaggle / "tools" / "df").chmod(0o755)
    done = run("download_flickr30k.sh")
    assert done.returncode == 1 and "has 37 MB free, needed 5000 MB" in done.stderr
    assert calls(kaggle) == []
    archive(kaggle / "flickr30k" / "flickr30k.zip", EESHAWN)  # fetched before: checked again to unpack it
    done = run("download_flickr30k.sh")
    assert done.returncode == 1 and "has 37 MB free, needed 100 MB" in done.stderr


def test_another_count_of_pictures_is_refused(kaggle):
    archive(kaggle / "served.zip", EESHAWN)
    done = run("download_flickr30k.sh", FLICKR30K_PICTURES="3")
    assert done.returncode == 1 and "holds 2 pictures, expected 3" in done.stderr
    assert not (kaggle / "flickr30k" / "flickr30k_images").exists()
    (kaggle / "flickr30k" / "flickr30k_images").mkdir()
    done = run("download_flickr30k.sh")
    assert done.returncode == 1 and "holds 0 pictures, expected 2; move it away" in done.stderr
    shutil.rmtree(kaggle / "flickr30k")
    archive(kaggle / "served.zip", [("readme.txt", "empty")])
    assert "holds no pictures, expected 2" in run("download_flickr30k.sh").stderr


HOSTILE = {
    "a way up": (["../outside.jpg"], []),
    "a way up further in": (["flickr30k_images/../../outside.jpg"], []),
    "a way up the other way": (["flickr30k_images\\..\\..\\outside.jpg"], []),
    "an absolute path": (["/tmp/outside.jpg"], []),
    "a drive": (["C:/outside.jpg"], []),
    "a link": ([], [("flickr30k_images/3.jpg", "/etc/passwd")]),
    "a link to write through": (["way/outside.jpg"], [("way", "..")]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_that_leads_out_of_its_folder_is_not_unpacked(kaggle, name):
    names, links = HOSTILE[name]
    archive(kaggle / "served.zip", [*EESHAWN, *names], links)
    before = {path for path in kaggle.rglob("*") if path.name != "calls"}
    done = run("download_flickr30k.sh")
    assert done.returncode == 1
    assert "nothing was unpacked" in done.stderr
    new = {path.name for path in kaggle.rglob("*") if path.name != "calls"} - {path.name for path in before}
    assert new == {"flickr30k", "flickr30k.zip"}
    assert not Path("/tmp/outside.jpg").exists()


# MSCOCO


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; knows ranges, as the real server does."""

    asked = ()

    def do_GET(self):
        type(self).asked += ((self.path, self.headers.get("Range")),)
        content = Path(self.translate_path(self.path))
        if not content.is_file():
            self.send_error(404)
            return
        data, wanted = content.read_bytes(), self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def coco(tmp_path, monkeypatch):
    served = tmp_path / "served"
    archives = [
        archive(served / "zips" / "val2017.zip", ["val2017/1.jpg", "val2017/2.jpg"]),
        archive(served / "zips" / "val2014.zip", ["val2014/COCO_val2014_000000000001.jpg"]),
        archive(
            served / "annotations" / "annotations_trainval2017.zip",
            [("annotations/captions_val2017.json", ANNOTATIONS), ("annotations/other.json", "{}")],
        ),
    ]
    lines = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.name}\n" for path in archives]
    (tmp_path / "checksums").write_text("".join(lines))
    handler = type("Handler", (Server,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=served))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MSCOCO_FOLDER", str(tmp_path / "mscoco"))
    monkeypatch.setenv("MSCOCO_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("MSCOCO_CHECKSUMS", str(tmp_path / "checksums"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield tmp_path, handler
    server.shutdown()
    server.server_close()


def test_mscoco_is_fetched_unpacked_put_in_place_and_checked(coco):
    folder, handler = coco
    done = run("download_mscoco.sh")
    assert done.returncode == 0, done.stderr
    assert "usable: 2 images (1 without a caption), 1 queries, 0 left out" in done.stdout
    assert sorted(path.name for path in (folder / "mscoco").iterdir()) == ["annotations", "val2017"]
    assert len(handler.asked) == 2
    again = run("download_mscoco.sh", "val2017", "val2014")
    assert again.returncode == 0 and "2 pictures are there already" in again.stdout
    assert (folder / "mscoco" / "val2014" / "COCO_val2014_000000000001.jpg").is_file()
    assert [path for path, _ in handler.asked[2:]] == ["/zips/val2014.zip"]
    assert run("download_mscoco.sh", "val2099").returncode == 1


def test_a_part_of_an_archive_is_gone_on_with(coco):
    folder, handler = coco
    whole = (folder / "served" / "zips" / "val2017.zip").read_bytes()
    (folder / "mscoco").mkdir()
    (folder / "mscoco" / "val2017.zip").write_bytes(whole[:100])
    assert run("download_mscoco.sh").returncode == 0
    assert handler.asked[0] == ("/zips/val2017.zip", "bytes=100-")
    assert len(handler.asked) == 2


@pytest.mark.parametrize("there", ["wrong beginning", "wrong and as long"])
def test_a_damaged_part_is_thrown_away(coco, there):
    folder, handler = coco
    size = (folder / "served" / "zips" / "val2017.zip").stat().st_size
    (folder / "mscoco").mkdir()
    (folder / "mscoco" / "val2017.zip").write_bytes(b"x" * (size if there == "wrong and as long" else 10))
    done = run("download_mscoco.sh")
    assert done.returncode == 0, done.stderr
    assert "is damaged; getting it again" in done.stdout
    assert [ranged for path, ranged in handler.asked if path == "/zips/val2017.zip" and not ranged] == [None]


def test_another_checksum_and_a_missing_file_are_refused(coco):
    folder, _ = coco
    archive(folder / "served" / "zips" / "val2017.zip", ["val2017/evil.jpg"])
    done = run("download_mscoco.sh")
    assert done.returncode == 1 and "has another checksum than the one known" in done.stderr
    assert not (folder / "mscoco" / "val2017").exists()
    done = run("download_mscoco.sh", "train2014")
    assert done.returncode == 1 and "/zips/train2014.zip cannot be had" in done.stderr


def test_without_an_override_the_published_checksums_count(coco):
    folder, _ = coco
    done = run("download_mscoco.sh", MSCOCO_CHECKSUMS="")
    assert done.returncode == 1 and "has another checksum than the one known" in done.stderr
    assert not (folder / "mscoco" / "val2017").exists()
