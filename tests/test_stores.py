"""Pictures in tars, Parquet files and object stores: the vectors of the same files in a folder."""

import functools
import http.server
import importlib.util
import io
import json
import re
import subprocess
import sys
import tarfile
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from evaluation.report import Thumbnails
from generation.caption_cache import CaptionCache
from generation.image_captions import ImageCaptions
from index.build import build_index
from index.decode import BrokenImage, open_image
from playground import open_dataset
from scale import places
from scale.places import Unreadable, address_of, is_remote
from scale.tar_members import learn_places, member_bytes, read_members, stored_places
from settings import IndexSettings

PROJECT = Path(__file__).parent.parent
INSTALL = "pip install -r requirements/stores.txt"
with_pyarrow = pytest.mark.skipif(
    importlib.util.find_spec("pyarrow") is None, reason=f"needs pyarrow: {INSTALL}"
)
with_http = pytest.mark.skipif(
    importlib.util.find_spec("aiohttp") is None, reason=f"needs aiohttp: {INSTALL}"
)
KEYS = [f"{number:06}" for number in range(12)]


class Colours:
    """The mean colour of a picture as a direction."""

    dimension = 4
    fingerprint = "colours-1"

    def encode_images(self, images):
        rows = np.array([[*np.asarray(image).reshape(-1, 3).mean(axis=0), 99] for image in images])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def picture(number):
    pixels = np.random.default_rng(number).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    stream = io.BytesIO()
    PILImage.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


PICTURES = {key: picture(number) for number, key in enumerate(KEYS)}


def add(tar, name, data=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def write_tars(folder):
    """Two tars of six pictures; the first has texts, the second JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        with tarfile.open(folder / f"{number:05}.tar", "w") as tar:
            for key in KEYS[number * 6 : number * 6 + 6]:
                add(tar, f"./{key}.png", PICTURES[key])
                if number:
                    add(tar, f"./{key}.json", json.dumps({"caption": f"picture {key}", "width": 7}).encode())
                else:
                    add(tar, f"./{key}.txt", f"picture {key}\n".encode())


def vectors_of(dataset, folder):
    index = build_index(
        dataset.images, Colours(), folder, model_name="m", dataset="d", image_folder=dataset.folder,
        batch_size=5, workers=3, max_failed_share=0.5,
    )  # fmt: skip
    return dict(zip(index.ids, index.vectors_of(index.ids).tolist(), strict=True))


@pytest.fixture
def plain(tmp_path):
    """Vectors by key, of plain files."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for key, data in PICTURES.items():
        (folder / f"{key}.png").write_bytes(data)
    vectors = vectors_of(open_dataset("image_folder", folder, "all"), tmp_path / "plain-index")
    return {Path(image_id).stem: vector for image_id, vector in vectors.items()}


def by_key(vectors):
    return {Path(image_id).stem: vector for image_id, vector in vectors.items()}


class Counting:
    """Describes pictures by their size and first pixel; counts them."""

    model_id = name = "server counting"

    def __init__(self):
        self.described = 0

    def caption(self, images):
        self.described += len(images)
        return [f"a picture {image.size} {image.getpixel((0, 0))}" for image in images]


def assert_everything_opens(dataset, folder):
    """What opens pictures besides the index: captions, the report's thumbnails, the page's pictures."""
    from interactive.pictures import PictureCache

    image = dataset.images[3]
    cache, captioner = CaptionCache(folder / "captions.sqlite"), Counting()
    captions = ImageCaptions(captioner, dataset.images, cache, 4)
    said = captions.captions_of([image.id for image in dataset.images])
    assert len(set(said)) == len(said) == captioner.described
    ImageCaptions(captioner, dataset.images, cache, 4).captions_of([image.id])
    assert captioner.described == len(said)
    thumbnails = Thumbnails(dataset.folder)
    assert thumbnails.css_class(image.id) == "i0" and not thumbnails.missing()
    assert PictureCache().jpeg(image.path, 50)[:2] == b"\xff\xd8"


@pytest.mark.parametrize("root", ["", "{00000..00001}.tar"])
def test_tars_give_the_vectors_captions_and_pictures_of_a_folder(tmp_path, plain, root):
    write_tars(tmp_path / "shards")
    dataset = open_dataset("image_tars", tmp_path / "shards" / root, "all")
    assert [image.id for image in dataset.images] == [
        f"{n // 6:05}.tar/{key}.png" for n, key in enumerate(KEYS)
    ]
    assert dataset.folder == tmp_path / "shards" and dataset.skipped == ()
    assert [query.text for query in dataset.queries] == [f"picture {key}" for key in KEYS]
    assert dataset.queries[7].target == "00001.tar/000007.png"
    assert by_key(vectors_of(dataset, tmp_path / "index")) == plain
    assert_everything_opens(dataset, tmp_path)


def test_a_single_tar_and_ranges_in_folders(tmp_path):
    for name in ("a3", "a4"):
        write_tars(tmp_path / name)
    one = open_dataset("image_tars", tmp_path / "a3" / "00001.tar", "all")
    assert one.images[0].id == "00001.tar/000006.png" and len(one.images) == 6
    ranges = open_dataset("image_tars", tmp_path / "a{3..4}" / "{00000..00001}.tar", "all")
    assert ranges.folder == tmp_path and len(ranges.images) == 24
    assert ranges.images[-1].id == "a4/00001.tar/000011.png"
    with pytest.raises(FileNotFoundError, match=r"00002\.tar: no such file, one of 1 that are missing"):
        open_dataset("image_tars", tmp_path / "a3" / "{00000..00002}.tar", "all")


def test_what_a_tar_must_not_bring_is_left_out_and_named(tmp_path):
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "good.png", PICTURES[KEYS[0]])
        for name in ("../up.png", "/root.png", "a/../../up.png", "a\\..\\..\\up.png", "C:/x.png"):
            add(tar, name, PICTURES[KEYS[1]])
        add(tar, "link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "hard.png", type=tarfile.LNKTYPE, linkname="good.png")
        add(tar, "good.png", PICTURES[KEYS[2]])
        add(tar, "bad.png", b"no picture")
        add(tar, "bad.json", b'{"caption": 7}')
        add(tar, "good.txt", "good".encode("utf-16"))
    members = read_members(path)
    assert list(members.places) == ["good.png", "bad.png", "bad.json", "good.txt"]
    whys = [skip.why for skip in members.skipped]
    assert whys == [
        "the name leads out of the tar", "the name is an absolute path", "the name leads out of the tar",
        "the name leads out of the tar", "the name is an absolute path", "a link", "a link",
        "a second member of this name",
    ]  # fmt: skip
    for name in ("../up.png", "/etc/passwd", "link.png", "nothing.png"):
        with pytest.raises(FileNotFoundError):
            member_bytes(path, name)
    assert np.asarray(open_image(path / "good.png")).tolist() == (
        np.asarray(PILImage.open(io.BytesIO(PICTURES[KEYS[0]]))).tolist()
    )
    with pytest.raises(BrokenImage, match="not a picture in one of the formats"):
        open_image(path / "bad.png")
    with pytest.raises(
        ValueError, match=r"got no usable caption for the 2 images.*the caption cannot be read"
    ):
        open_dataset("image_tars", tmp_path, "all")


def header(size, kind, name="x"):
    """A header as tarfile would not write it."""
    member = tarfile.TarInfo(name)
    member.type = kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:]))
    return bytes(block)


def pax(record):
    return header(len(record), tarfile.XHDTYPE) + record.ljust(512, b"\0")


@pytest.mark.parametrize(
    "odd",
    [
        header(1 << 30, tarfile.GNUTYPE_LONGNAME),
        header(1 << 30, tarfile.XHDTYPE),
        header(-2048, tarfile.REGTYPE),
        header(-2048, tarfile.XHDTYPE),
        pax(b"14 size=-1024\n") + header(0, tarfile.REGTYPE),
        pax(b"22 GNU.sparse.map=a,b\n") + header(0, tarfile.REGTYPE),
        header(0, tarfile.XHDTYPE) * 3000,
    ],
)
def test_hostile_headers_end_a_tar_where_they_are(tmp_path, odd):
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        add(tar, "good.png", PICTURES[KEYS[0]])
        good = tar.offset
    whole = (tmp_path / "odd.tar").read_bytes()
    with (tmp_path / "odd.tar").open("wb") as file:
        file.write(whole[:good] + odd + whole[good:])
        file.truncate(2 << 30)  # zeros that take no room on the disk
    members = read_members(tmp_path / "odd.tar")
    assert list(members.places) == ["good.png"]
    (skip,) = members.skipped
    assert skip.what == "odd.tar" and f"damaged or cut off at byte {good} " in skip.why


def test_links_hidden_files_and_hostile_captions_of_tars(tmp_path):
    write_tars(tmp_path / "elsewhere")
    write_tars(tmp_path / "tars")
    (tmp_path / "tars" / "linked.tar").symlink_to(tmp_path / "elsewhere" / "00000.tar")
    (tmp_path / "tars" / "._00000.tar").write_bytes(b"of a Mac")
    (tmp_path / "tars" / "more.tar.gz").write_bytes(b"compressed")
    with tarfile.open(tmp_path / "tars" / "deep.tar", "w") as tar:
        for key, caption in (("deep", b"[" * 100_000), ("long", b" " * (1 << 20) + b"a")):
            add(tar, f"{key}.png", PICTURES[KEYS[0]])
            add(tar, f"{key}.json", caption)
    dataset = open_dataset("image_tars", tmp_path / "tars", "all")
    assert len(dataset.images) == 14 and len(dataset.queries) == 12
    whys = {skip.what: skip.why for skip in dataset.skipped}
    assert "leads out of the folder" in whys.pop("linked.tar")
    assert whys.pop("more.tar.gz") == "compressed: unpack it to a plain tar"
    assert sorted(why.split(":")[0] for why in whys.values()) == [
        "the caption cannot be read", "the caption's file is larger than 1,048,576 bytes",
    ]  # fmt: skip


@pytest.mark.parametrize("cut", [1000, 3000, 5632])
def test_a_tar_that_is_cut_off_keeps_its_whole_pictures(tmp_path, cut):
    write_tars(tmp_path)
    path = tmp_path / "00000.tar"
    whole = read_members(path).places
    path.write_bytes(path.read_bytes()[:cut])
    dataset = open_dataset("image_tars", tmp_path, "all")
    there = [name for name, (start, size) in whole.items() if start + size <= cut]
    ids = [image.id for image in dataset.images]
    assert [i for i in ids if i.startswith("00000")] == [f"00000.tar/{n}" for n in there if n.endswith("png")]
    assert any("cut off" in skip.why and skip.what.startswith("00000.tar") for skip in dataset.skipped)


def test_a_picture_lost_after_the_listing_is_a_counted_failure(tmp_path):
    write_tars(tmp_path / "shards")
    dataset = open_dataset("image_tars", tmp_path / "shards", "all")
    path = tmp_path / "shards" / "00001.tar"
    path.write_bytes(path.read_bytes()[:2500])
    assert len(vectors_of(dataset, tmp_path / "index")) < 12
    failed = (tmp_path / "index" / "failed_images.csv").read_text()
    assert "00001.tar/000011.png,no such file" in failed


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tar", b"x" * 3000, "a.tar: no tar .*a compressed one gives no single pictures"),
        ("a.tar.gz", b"x", r"got no files ending in \.tar, expected at least one"),
    ],
)
def test_what_is_no_tar_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_dataset("image_tars", tmp_path, "all")


def write_parquet(folder, columns, name="train-00000-of-00001.parquet", **options):
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / name, row_group_size=5, **options)


def hugging_face(keys):
    return {
        "image": [{"bytes": PICTURES[key], "path": f"{key}.png"} for key in keys],
        "caption": [[f"picture {key}", f"{key} again"] for key in keys],
        "width": [7] * len(keys),
    }


@with_pyarrow
def test_parquet_gives_the_vectors_captions_and_pictures_of_a_folder(tmp_path, plain):
    write_parquet(tmp_path / "data", hugging_face(KEYS))
    write_parquet(tmp_path / "data", hugging_face(KEYS[:2]), "test-00000-of-00001.parquet")
    dataset = open_dataset("image_parquet", tmp_path / "data", "train")
    assert dataset.images[11].id == "train-00000-of-00001.parquet/11"
    assert dataset.images[11].captions == ("picture 000011", "000011 again") and len(dataset.queries) == 24
    vectors = vectors_of(dataset, tmp_path / "index")
    assert {KEYS[int(Path(image_id).name)]: vector for image_id, vector in vectors.items()} == plain
    assert_everything_opens(dataset, tmp_path)
    assert len(open_dataset("image_parquet", tmp_path / "data", "all").images) == 14
    with pytest.raises(ValueError, match="got split 'dev', expected all or one of test, train"):
        open_dataset("image_parquet", tmp_path / "data", "dev")


@with_pyarrow
def test_columns_of_other_names_are_named_in_a_file(tmp_path):
    columns = {"left": list(PICTURES.values()), "right": list(PICTURES.values())[::-1], "alt": KEYS}
    write_parquet(tmp_path / "unclear", columns)
    with pytest.raises(ValueError, match="got the columns left, right, alt, expected one that clearly holds"):
        open_dataset("image_parquet", tmp_path / "unclear", "all")
    write_parquet(tmp_path / "named", columns)
    (tmp_path / "named" / "columns.json").write_text('{"image": "right", "caption": "alt"}')
    dataset = open_dataset("image_parquet", tmp_path / "named", "all")
    assert dataset.images[0].captions == (KEYS[0],)
    assert (
        open_image(dataset.images[0].path).tobytes()
        == PILImage.open(io.BytesIO(PICTURES[KEYS[11]])).tobytes()
    )
    write_parquet(tmp_path / "wrong", columns)
    (tmp_path / "wrong" / "columns.json").write_text('{"image": "middle"}')
    with pytest.raises(ValueError, match=r"expected 'middle' among them, as columns\.json says"):
        open_dataset("image_parquet", tmp_path / "wrong", "all")


@with_pyarrow
def test_rows_without_a_picture_and_damaged_files_are_said(tmp_path):
    columns = hugging_face(KEYS)
    columns["image"][4] = {"bytes": None, "path": "/etc/passwd"}
    columns["image"][6] = {"bytes": b"no picture", "path": None}
    write_parquet(tmp_path / "data", columns, compression="none")
    dataset = open_dataset("image_parquet", tmp_path / "data", "all")
    assert len(vectors_of(dataset, tmp_path / "index")) == 10
    failed = (tmp_path / "index" / "failed_images.csv").read_text()
    assert "parquet/4,the row holds no bytes of a picture" in failed and 'parquet/6,"not a picture' in failed
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    with pytest.raises(BrokenImage, match="no such file"):
        open_image(path / "12")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="no whole Parquet file"):
        open_dataset("image_parquet", tmp_path / "data", "all")


@with_pyarrow
@pytest.mark.parametrize(
    ("columns", "named", "message"),
    [
        ({"image": [{"bytes": [1, 2]}]}, None, "got the columns image, caption, expected one that clearly"),
        ({"image": [[{"bytes": b"x"}]]}, None, "got the columns image, caption, expected one that clearly"),
        ({"image": [None]}, None, "got the columns image, caption, expected one that clearly"),
        ({"image": [b"x"]}, '{"caption": "image"}', "got binary in the column 'image', expected texts"),
        ({"image": [b"x"]}, "[" * 100_000, r"columns\.json: got no JSON"),
    ],
)
def test_columns_of_no_use_are_refused(tmp_path, columns, named, message):
    write_parquet(tmp_path / "data", columns | {"caption": ["a"]})
    if named:
        (tmp_path / "data" / "columns.json").write_text(named)
    with pytest.raises(ValueError, match=message):
        open_dataset("image_parquet", tmp_path / "data", "all")


@with_pyarrow
def test_captions_are_texts_and_damaged_ones_are_said(tmp_path):
    columns = {"image": list(PICTURES.values()), "caption": list(range(12)), "text": KEYS}
    write_parquet(tmp_path / "data", columns, "a.parquet", compression="none", use_dictionary=False)
    dataset = open_dataset("image_parquet", tmp_path / "data", "all")
    assert [image.captions for image in dataset.images] == [(key,) for key in KEYS]
    import pyarrow.parquet

    path = tmp_path / "data" / "a.parquet"
    place = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(2).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 20] = b"\xff" * 20
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.parquet: row group 1 cannot be read"):
        open_dataset("image_parquet", tmp_path / "data", "all")


def test_without_pyarrow_the_command_that_installs_it_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"x")
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\nfrom playground import open_dataset\n"
        "open_dataset('image_parquet', Path(sys.argv[1]), 'all')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: Parquet needs pyarrow; run: {INSTALL}"


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("s3://bucket/a/b.jpg", "s3://bucket/a/b.jpg"),
        ("https://host:8000/a/0.tar/b.jpg", "https://host:8000/a/0.tar/b.jpg"),
        ("memory://a/b", "memory://a/b"),
        ("file:///a/b", "file:///a/b"),
    ],
)
def test_an_address_survives_as_a_path(written, address):
    assert is_remote(Path(written)) and address_of(Path(written)) == address
    assert address_of(Path(written) / "c.png") == f"{address}/c.png"


@pytest.mark.parametrize("path", ["a/b.jpg", "/a/b.jpg", "c:/a.jpg", "a:b/c", ""])
def test_a_plain_path_is_no_address(path):
    assert not is_remote(Path(path))


@pytest.fixture
def memory(tmp_path):
    """An object store with a folder of pictures, tars and, where pyarrow is there, Parquet."""
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    store.store.clear()
    write_tars(tmp_path / "shards")
    for path in (tmp_path / "shards").iterdir():
        store.pipe(f"/bucket/shards/{path.name}", path.read_bytes())
    for key, data in PICTURES.items():
        store.pipe(f"/bucket/pictures/deep/{key}.png", data)
    lines = [f"deep/{key}.png,0,picture {key}" for key in KEYS]
    table = "\n".join(["image_name,comment_number,comment", *lines])
    store.pipe("/bucket/pictures/images_captions.csv", table.encode())
    return store


def test_an_object_store_gives_the_same(tmp_path, plain, memory):
    read_members.__globals__["_read_members"].cache_clear()
    for name, folder in (("image_folder", "pictures"), ("image_tars", "shards")):
        dataset = open_dataset(name, Path(f"memory://bucket/{folder}"), "all")
        assert [query.text for query in dataset.queries] == [f"picture {key}" for key in KEYS]
        assert by_key(vectors_of(dataset, tmp_path / name)) == plain
        (tmp_path / f"{name}-more").mkdir()
        assert_everything_opens(dataset, tmp_path / f"{name}-more")
    assert not list(Path.cwd().glob("memory*"))


@with_pyarrow
def test_parquet_in_an_object_store_gives_the_same(tmp_path, plain, memory):
    write_parquet(tmp_path / "data", hugging_face(KEYS))
    for path in (tmp_path / "data").iterdir():
        memory.pipe(f"/bucket/data/{path.name}", path.read_bytes())
    dataset = open_dataset("image_parquet", Path("memory://bucket/data"), "all")
    vectors = vectors_of(dataset, tmp_path / "index")
    assert {KEYS[int(Path(image_id).name)]: vector for image_id, vector in vectors.items()} == plain


@with_pyarrow
def test_a_folder_of_a_store_may_be_called_as_a_file_is(tmp_path, memory):
    write_parquet(tmp_path / "data", hugging_face(KEYS), "part-0.parquet")
    path = tmp_path / "data" / "part-0.parquet"
    memory.pipe("/bucket/train.parquet/part-0.parquet", path.read_bytes())
    dataset = open_dataset("image_parquet", Path("memory://bucket/train.parquet/part-{0..0}.parquet"), "all")
    assert open_image(dataset.images[2].path).size == (7, 9)


def test_another_process_reads_a_stores_tar_without_its_headers(memory):
    read = read_members.__globals__["_read_members"]
    path = Path("memory://bucket/shards/00000.tar")
    told = stored_places([path / "000002.png", Path("plain.png")])
    assert list(told) == [path] and list(told[path]) == ["000002.png"]
    read.cache_clear()
    learn_places(told)
    assert member_bytes(path, "000002.png") == PICTURES["000002"]
    assert read.cache_info().currsize == 0
    learn_places({})


def test_a_store_that_fails_is_asked_again_and_then_counted(tmp_path, memory, monkeypatch):
    monkeypatch.setattr(places, "FIRST_WAIT_SECONDS", 0.001)
    asked = []

    def failing(times):
        def question(store):
            asked.append(1)
            if len(asked) <= times:
                raise ConnectionError("gone")
            return store.cat_file("memory://bucket/pictures/deep/000000.png")

        return question

    assert places.asked("memory://bucket", failing(2)) == PICTURES["000000"]
    asked.clear()
    with pytest.raises(Unreadable, match="not given by the store after 3 attempts: ConnectionError: gone"):
        places.asked("memory://bucket", failing(3))
    with pytest.raises(BrokenImage, match="no such file"):
        open_image(Path("memory://bucket/pictures/none.png"))
    with pytest.raises(FileNotFoundError, match="no such f"):
        open_dataset("image_folder", Path("memory://bucket/nothing"), "all")
    with pytest.raises(ValueError, match=r"nosuch://: .*expected such as s3, gs, http or https"):
        open_dataset("image_folder", Path("nosuch://bucket"), "all")


def test_the_index_of_a_store_or_a_tar_lies_here():
    def index(root):
        return IndexSettings(dataset="image_tars", root=Path(root)).resolved().index

    assert index("shards") == Path("shards/index-all")
    assert re.fullmatch(r"shards/index-all-\w{8}", index("shards/{00..09}.tar").as_posix())
    remote = index("s3://bucket/shards")
    assert remote.parent == PROJECT / "playground/data/image_tars"
    assert remote != index("s3://bucket/others")
    for root in ("s3://bucket/shards", "shards/{00..09}.tar"):
        with pytest.raises(ValueError, match=r"got a Milvus collection for .*, which is no folder"):
            IndexSettings(dataset="image_tars", root=Path(root), index="milvus://host:19530/a")


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Python's server, with ranges."""

    def log_message(self, *arguments):
        pass

    fails = 0  # so many answers of up to 100 bytes

    def copyfile(self, source, outputfile):
        with suppress(ConnectionError):  # a reader that has read enough
            super().copyfile(source, outputfile)

    def end_headers(self):
        if self.path.startswith("/lying"):
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def do_GET(self):
        if self.path.startswith(("/plain", "/lying")):
            del self.headers["Range"]
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        path = Path(self.translate_path(self.path))
        if not found or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        first, last = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
        if last - first < 100 and Ranges.fails:
            Ranges.fails -= 1
            self.send_error(503)
            return
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(data[first : last + 1])


@pytest.fixture
def server(tmp_path):
    (tmp_path / "www").mkdir()
    handler = functools.partial(Ranges, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@with_http
def test_a_web_server_gives_the_same(tmp_path, plain, server):
    write_tars(tmp_path / "www" / "shards")
    for key, data in PICTURES.items():
        (tmp_path / "www" / f"{key}.png").write_bytes(data)
    for name, root in (
        ("image_tars", f"{server}/shards/{{00000..00001}}.tar"),
        ("image_tars", f"{server}/shards"),
        ("image_folder", server),
    ):
        dataset = open_dataset(name, Path(root), "all")
        assert by_key(vectors_of(dataset, tmp_path / "index" / name)) == plain
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_dataset("image_tars", Path(f"{server}/shards/{{00000..00002}}.tar"), "all")


@with_http
@pytest.mark.parametrize("how", ["plain", "lying"])
def test_a_web_server_without_ranges_is_said(tmp_path, server, how):
    write_tars(tmp_path / "www" / how)
    with tarfile.open(tmp_path / "www" / how / "00000.tar", "a") as tar:
        add(tar, "large.bin", bytes(6 << 20))  # more than fsspec reads at once
        add(tar, "last.png", PICTURES[KEYS[0]])
    with pytest.raises(ValueError, match=r"00000\.tar: the server gives no parts of a file"):
        open_dataset("image_tars", Path(f"{server}/{how}/00000.tar"), "all")


@with_http
@pytest.mark.parametrize(("fails", "lost"), [(2, False), (10_000, True)])
def test_captions_that_a_web_server_fails_to_give_are_asked_for_again(
    tmp_path, server, monkeypatch, fails, lost
):
    monkeypatch.setattr(places, "FIRST_WAIT_SECONDS", 0.001)
    write_tars(tmp_path / "www" / "shards")
    root = Path(f"{server}/shards/00000.tar")
    read_members(root)
    monkeypatch.setattr(Ranges, "fails", fails)
    if lost:
        with pytest.raises(ValueError, match=r"00000\.tar: not given by the store after 3 attempts: .*503"):
            open_dataset("image_tars", root, "all")
    else:
        assert len(open_dataset("image_tars", root, "all").queries) == 6
