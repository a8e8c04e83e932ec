"""The download scripts, with a `kaggle` that serves a small archive and a server on this machine."""

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
CAPTIONS = "image_name| comment_number| comment\n1.jpg| 0| A cat\n2.jpg| 0| A dog\n"
ANNOTATIONS = (
    '{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "A cat"}]}'
)
FLICKR30K = [  # as Kaggle packs it: one folder deeper
    "flickr30k_images/flickr30k_images/1.jpg",
    "flickr30k_images/flickr30k_images/2.jpg",
    ("flickr30k_images/results.csv", CAPTIONS),
]

pytestmark = pytest.mark.skipif(
    not (shutil.which("unzip") and shutil.which("curl")), reason="needs unzip, curl"
)


def archive(path, names, links=()):
    """Writes a zip; contents are pictures, or a text given with the name."""
    picture = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(picture, "JPEG")
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            name, content = name if isinstance(name, tuple) else (name, picture.getvalue())
            file.writestr(name, content)
        for name, goal in links:
            info = zipfile.ZipInfo(name)
            info.create_system = 3  # Unix, where a link is a file mode
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(info, goal)
    return path


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """A `kaggle` on the PATH that copies an archive, or a part of it, and notes that it was called."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "kaggle").write_text(
        "#!/bin/bash\n"
        f"echo called >> {tmp_path}/calls\n"
        f'[ -z "$BREAK_OFF" ] || {{ head -c 100 {tmp_path}/served.zip > "$6/${{4##*/}}.zip"; exit 1; }}\n'
        f'cp {tmp_path}/served.zip "$6/${{4##*/}}.zip"\n'
    )
    (tools / "kaggle").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    monkeypatch.setenv("KAGGLE_KEY", "x")
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


def test_flickr30k_is_fetched_counted_put_in_place_and_checked(kaggle):
    archive(kaggle / "served.zip", FLICKR30K)
    assert run("download_flickr30k.sh", BREAK_OFF="1").returncode != 0
    other = run("download_flickr30k.sh", FLICKR30K_PICTURES="3")
    assert other.returncode == 1 and "holds 2 pictures, expected 3" in other.stderr
    assert not (kaggle / "flickr30k" / "flickr30k_images").exists()
    done = run("download_flickr30k.sh")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in (kaggle / "flickr30k").iterdir()) == [
        "flickr30k_images",
        "results.csv",
    ]
    assert "usable: 2 images (0 without a caption), 2 queries, 0 left out" in done.stdout
    calls = (kaggle / "calls").read_text()
    again = run("download_flickr30k.sh")
    assert again.returncode == 0 and "2 pictures are there already" in again.stdout
    assert (kaggle / "calls").read_text() == calls


HOSTILE = {
    "a way up": (["flickr30k_images/../../outside.jpg"], []),
    "an absolute path": (["/tmp/outside.jpg"], []),
    "a link to write through": (["way/outside.jpg"], [("way", "..")]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_that_leads_out_of_its_folder_is_not_unpacked(kaggle, name):
    names, links = HOSTILE[name]
    archive(kaggle / "served.zip", [*FLICKR30K, *names], links)
    before = set(kaggle.rglob("*"))
    done = run("download_flickr30k.sh")
    assert done.returncode == 1
    assert "nothing was unpacked" in done.stderr
    new = {path.name for path in set(kaggle.rglob("*")) - before}
    assert new == {"calls", "flickr30k", "flickr30k.zip"}
    assert not Path("/tmp/outside.jpg").exists()


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; knows ranges, as the real server does."""

    asked = ()

    def do_GET(self):
        wanted = self.headers.get("Range")
        type(self).asked += ((self.path, wanted),)
        data = Path(self.translate_path(self.path)).read_bytes()
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
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


def test_mscoco_is_gone_on_with_compared_with_its_checksums_and_put_in_place(coco):
    folder, handler = coco
    published = run("download_mscoco.sh", MSCOCO_CHECKSUMS="")  # those of the real archives
    assert published.returncode == 1 and "has another checksum than the one known" in published.stderr
    assert not (folder / "mscoco" / "val2017").exists()
    whole = (folder / "served" / "zips" / "val2017.zip").read_bytes()
    shutil.rmtree(folder / "mscoco")
    (folder / "mscoco").mkdir()
    (folder / "mscoco" / "val2017.zip").write_bytes(whole[:100])
    handler.asked = ()
    done = run("download_mscoco.sh")
    assert done.returncode == 0, done.stderr
    assert handler.asked[0] == ("/zips/val2017.zip", "bytes=100-") and len(handler.asked) == 2
    assert "usable: 2 images (1 without a caption), 1 queries, 0 left out" in done.stdout
    assert sorted(path.name for path in (folder / "mscoco").iterdir()) == ["annotations", "val2017"]
    again = run("download_mscoco.sh")
    assert again.returncode == 0 and "2 pictures are there already" in again.stdout
