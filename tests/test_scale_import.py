"""Importing tars, Parquet files and folders: bytes and captions as they are, what is skipped, a kill."""

import csv
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from playground import open_dataset
from scale import import_dataset as importing

PROJECT = Path(__file__).parent.parent
with_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None,
    reason="needs datasets: pip install -r requirements/scale.txt",
)


def picture(number, kind="PNG"):
    pixels = np.random.default_rng(number).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    stream = io.BytesIO()
    PILImage.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def tar_of(**members):
    """A tar; `_` in a member's name stands for the dot before the suffix."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(f"./{name.replace('_', '.')}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def write_parquet(path, row_group_size=20, **columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)


def imported(source, root, **options):
    """Imports; returns the counts, and each picture's captions by its bytes, as image_folder reads them."""
    counts = importing.import_dataset(str(source), root, **options)
    dataset = open_dataset("image_folder", root, "all")
    assert not dataset.skipped
    return counts, {image.path.read_bytes(): image.captions for image in dataset.images}


@with_datasets
@pytest.mark.parametrize("source", ["{}", "{}/*.tar", "memory://import-test/*.tar"])
def test_tars_give_their_pictures_byte_for_byte_and_their_captions(tmp_path, source):
    import fsspec

    source = source.format(tmp_path / "shards")
    store, folder = fsspec.url_to_fs(source.removesuffix("/*.tar"))
    first = tar_of(a_png=picture(0), a_txt=b"\xef\xbb\xbf a  cat\n", b_jpg=picture(1, "JPEG"), b_cls=b"7")
    second = tar_of(a_webp=picture(2, "WEBP"), a_json=json.dumps({"Caption": ["one", "two"]}).encode())
    store.makedirs(folder)
    store.pipe({f"{folder}/00000.tar": first, f"{folder}/00001.tar": second})
    counts, got = imported(source, tmp_path / "out")
    assert got == {
        picture(0): ("a cat",),
        picture(1, "JPEG"): (),
        picture(2, "WEBP"): ("one", "two"),
    }
    assert (counts.pictures, counts.captions, counts.uncaptioned, counts.skipped) == (3, 3, 1, [])
    names = sorted(path.name for path in (tmp_path / "out" / "pictures").rglob("*.*"))
    assert names == ["0000000-a.png", "0000000-a.webp", "0000001-b.jpg"]


@with_datasets
def test_what_a_tar_holds_that_cannot_be_used_is_counted_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "MAX_PICTURE_BYTES", 5000)
    members = {
        "good_png": picture(0), "good_txt": b"A cat",
        "large_png": picture(1) + bytes(5000),
        "junk_png": b"junk",
        "lonely_txt": b"no picture",
        "badtext_png": picture(2), "badtext_json": b"{",
        "long_png": picture(3), "long_json": json.dumps({"captions": ["x" * 10_001, "\0", "kept"]}).encode(),
        "notutf8_png": picture(4), "notutf8_txt": b"\xff",
    }  # fmt: skip
    (tmp_path / "x.tar").write_bytes(tar_of(**members))
    counts, got = imported(tmp_path / "x.tar", tmp_path / "out")
    assert got == {picture(0): ("A cat",), picture(2): (), picture(3): ("kept",), picture(4): ()}
    reasons = [(what.split()[-1], why.split(":")[0]) for what, why in counts.skipped]
    assert reasons == [
        ("(large)", "the picture is larger than 0 MiB"),
        ("(junk)", "not a picture in one of the formats JPEG, PNG, WEBP, GIF, BMP, TIFF"),
        ("(lonely)", "holds no picture"),
        ("(badtext)", "the caption in .json cannot be read"),
        ("(long)", "2 captions are empty, too long or not text"),
        ("(notutf8)", "the caption in .txt cannot be read"),
    ]


@with_datasets
def test_names_in_a_tar_lead_nowhere(tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for number, name in enumerate(["../../out.png", "/etc/out.png", "a\x1b[2J\n.png", "..png"]):
            member = tarfile.TarInfo(name)
            member.size = len(picture(number))
            tar.addfile(member, io.BytesIO(picture(number)))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (tmp_path / "x.tar").write_bytes(stream.getvalue())
    before = set(tmp_path.parent.rglob("*"))
    _, got = imported(tmp_path / "x.tar", tmp_path / "out")
    assert set(got) == {picture(0), picture(1), picture(2)}
    new = set(tmp_path.parent.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "out") for path in new)
    assert all(not path.is_symlink() and path.name.isprintable() for path in new)


@with_datasets
def test_parquet_rows_and_what_is_wrong_with_some(tmp_path):
    secret = tmp_path / "secret.png"  # no row may name a file of this machine
    secret.write_bytes(picture(5))
    pictures = [picture(0), b"junk", None, picture(1, "JPEG")]
    rows = [{"bytes": data, "path": str(secret)} for data in pictures]
    write_parquet(tmp_path / "train.parquet", image=rows, caption=[["a", "b"], ["c"], ["d"], [" "]])
    counts, got = imported(tmp_path, tmp_path / "out")
    assert got == {picture(0): ("a", "b"), picture(1, "JPEG"): ()}
    assert [why.split(" in ")[0] for _, why in counts.skipped] == [
        "not a picture", "holds no picture", "1 captions are empty, too long or not text",
    ]  # fmt: skip
    assert all("train.parquet row" in what for what, _ in counts.skipped)


@with_datasets
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")
@pytest.mark.parametrize(("rows", "captions"), [(1, 7000), (7000, 1)])
def test_a_parquet_file_that_unpacks_to_more_than_memory_should_hold_is_refused(tmp_path, rows, captions):
    import pyarrow as pa

    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(7000, np.int32)), pa.array(["x" * 2**20]))
    ends = pa.array(np.arange(0, 7001, captions, dtype=np.int32))
    path = tmp_path / "bomb.parquet"
    columns = {"image": [picture(0)] * rows, "caption": pa.ListArray.from_arrays(ends, words)}
    write_parquet(path, row_group_size=7000, **columns)
    assert path.stat().st_size < 3_000_000
    with pytest.raises(ValueError, match=r"bomb.parquet: cannot be read on after 0 rows: ArrowMemoryError"):
        imported(path, tmp_path / "out")


@with_datasets
@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        ({"a": b"x", "b": b"y"}, {}, "got the columns a, b, expected one that clearly holds"),
        ({"a": b"x", "text": "t"}, {"image_column": "text"}, "'text' to hold pictures.*--image-column"),
        ({"a": b"x"}, {"caption_column": "c"}, "expected 'c' among them; see --caption-column"),
    ],
)
def test_columns_that_cannot_be_told_are_refused(tmp_path, columns, given, message):
    write_parquet(tmp_path / "x.parquet", **{name: [value] for name, value in columns.items()})
    with pytest.raises(ValueError, match=message) as caught:
        importing.import_dataset(str(tmp_path / "x.parquet"), tmp_path / "out", **given)
    assert "\n" not in str(caught.value)


@with_datasets
def test_columns_can_be_named(tmp_path):
    source = tmp_path / "x.parquet"
    write_parquet(source, image=[picture(1)], other=[picture(0)], caption=["no"], alt=["yes"])
    _, got = imported(source, tmp_path / "out", image_column="other", caption_column="alt")
    assert got == {picture(0): ("yes",)}


@with_datasets
def test_an_image_folder_with_its_metadata(tmp_path):
    (tmp_path / "in" / "train").mkdir(parents=True)
    for number in range(2):
        (tmp_path / "in" / "train" / f"{number}.png").write_bytes(picture(number))
    lines = [{"file_name": f"{number}.png", "text": f"number {number}"} for number in range(3)]
    (tmp_path / "in" / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    counts, got = imported(tmp_path / "in", tmp_path / "out")
    assert got == {picture(0): ("number 0",), picture(1): ("number 1",)}
    assert [why for _, why in counts.skipped] == ["the file is missing"]


@with_datasets
@pytest.mark.parametrize("is_mended", [True, False], ids=["mended", "taken-out"])
def test_a_damaged_file_stops_the_import_which_then_goes_on(tmp_path, monkeypatch, is_mended):
    monkeypatch.setattr(importing, "PART_ROWS", 2)
    whole = tar_of(**{f"{number}_png": picture(number) for number in range(8)})
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "0.tar").write_bytes(whole[: whole.index(b"./5.png") + 600])
    (shards / "1.tar").write_bytes(tar_of(a_png=picture(100)))
    with pytest.raises(ValueError, match=r"0\.tar: cannot be read on after 5 rows: .*take it out") as caught:
        imported(shards, tmp_path / "out")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="got no pictures"):  # half an import is not taken for a dataset
        open_dataset("image_folder", tmp_path / "out", "all")
    if is_mended:
        (shards / "0.tar").write_bytes(whole)
    else:
        (shards / "0.tar").unlink()
    counts, got = imported(shards, tmp_path / "out")
    expected = {picture(number) for number in (*range(8 if is_mended else 5), 100)}
    assert set(got) == expected and counts.pictures == len(expected)


DRIVER = """
import sys
from pathlib import Path
from scale import import_dataset as importing
importing.PART_ROWS = 10
add = importing.Journal.add
def noted(journal, **line):
    add(journal, **line)
    print(line["rows"], flush=True)
importing.Journal.add = noted
importing.import_dataset(sys.argv[1], Path(sys.argv[2]))
"""


@with_datasets
def test_an_import_that_was_killed_goes_on_and_does_nothing_twice(tmp_path):
    rows = [picture(number) for number in range(60)]
    captions = [f"number {number}" for number in range(60)]
    write_parquet(tmp_path / "x.parquet", image=rows, caption=captions)
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "x.parquet"), str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=PROJECT, text=True, stdout=subprocess.PIPE) as first:
        for line in first.stdout:
            if int(line) >= 20:
                os.kill(first.pid, signal.SIGKILL)
                break
    lines = (tmp_path / "out" / ".import" / "journal.jsonl").read_text().splitlines()
    done = json.loads(lines[-1])["rows"]
    assert 20 <= done < 60
    again = subprocess.run(command, cwd=PROJECT, text=True, capture_output=True, timeout=120, check=True)
    assert [int(line) for line in again.stdout.split()] == [*range(done + 10, 61, 10), 60]
    counts, got = imported(tmp_path / "x.parquet", tmp_path / "out")
    assert got == {data: (f"number {number}",) for number, data in enumerate(rows)}
    assert (counts.pictures, counts.captions, counts.skipped) == (60, 60, [])
    with (tmp_path / "out" / "images_captions.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 61


@with_datasets
def test_nonsense_is_refused_in_one_line(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    (tmp_path / "empty.tar").write_bytes(tar_of(a_txt=b"no picture"))
    (tmp_path / "other.tar").write_bytes(tar_of(a_png=picture(0)))
    out = tmp_path / "out"
    for source, root, message in [
        (tmp_path / "nothing", out, "no such file or folder, or nothing in it"),
        (tmp_path / "*.parquet", out, "no such file or folder, or nothing in it"),
        ("nowhere://bucket/x.tar", out, "Protocol not known: nowhere"),
        (tmp_path / "empty.tar", tmp_path / "empty.tar", "there is something else already"),
        (tmp_path / "empty.tar", tmp_path / "full", "there is something else already"),
        (tmp_path / "empty.tar", out, r"got no picture in 1 files, expected some; .*holds no picture"),
        (tmp_path / "other.tar", out, "holds an import with another source"),
    ]:
        with pytest.raises((ValueError, OSError, ModuleNotFoundError), match=message) as caught:
            importing.import_dataset(str(source), root)
        assert "\n" not in str(caught.value)


def test_without_datasets_the_command_that_installs_it_is_named(tmp_path):
    code = "import sys; sys.modules['datasets'] = None; from scale.import_dataset import main; "
    code += "from settings import run_script; raise SystemExit(run_script(main))"
    command = [sys.executable, "-c", code, "x.tar", "--root", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: importing needs the package datasets; run: pip install -r requirements/scale.txt"
    )


def test_an_address_as_a_dataset_names_the_import():
    with pytest.raises(ValueError, match=r"got the address s3:/bucket/x, .*scale\.import_dataset"):
        open_dataset("image_folder", Path("s3://bucket/x"), "all")
