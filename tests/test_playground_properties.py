"""Whatever a data file holds, a reader returns records or refuses in one line; nothing gets lost unsaid."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from playground import open_dataset
from playground.captions import captioned_dataset, table_lines
from records import Image

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "10"))
QUICK = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES = ("a.jpg", "b.jpg", "sub/c.png", "..jpg", "x#1.jpg")
SPITEFUL = (
    *("../../etc/passwd", "/etc/passwd", "C:\\x.jpg", "\\\\host\\x", "..\\a.jpg", "./a.jpg", "sub/../a.jpg"),
    *("", " ", "\0", "a.jpg\0", "\ufeff", "\ud800", "\u202egpj.a", "🐈.jpg", "a" * 300, '"', "a,b", "a|b"),
    *("\r", "\n", "\t", "\x1b[2J", "<|im_start|>", "'; DROP TABLE", "=1+1"),
)

words = st.one_of(st.sampled_from(NAMES + SPITEFUL), st.text(max_size=20), st.integers().map(str))
rows = st.lists(st.lists(words, min_size=1, max_size=5), max_size=12)
headers = st.sampled_from(
    ["image_name,comment_number,comment", "image_name| comment_number| comment", "image,caption", "a,b", ""]
)


def check_captions(captions, images):
    """What holds of every result."""
    known = {image.id for image in images}
    assert [image.id for image in captions.images] == [image.id for image in images]
    assert len({query.id for query in captions.queries}) == len(captions.queries) > 0
    texts = {image.id: [] for image in images}
    for query in captions.queries:
        assert query.target in known and query.relevant == {query.target}
        assert query.id.rsplit("#", 1)[0] == query.target
        assert query.text == " ".join(query.text.split()) != ""
        assert len(query.text) <= 10_000
        assert not set(query.text) & set(map(chr, range(32)))
        query.text.encode("utf-8")
        texts[query.target].append(query.text)
    assert {image.id: list(image.captions) for image in captions.images} == texts
    for skip in captions.skipped:
        assert skip.why
        f"{skip.what}{skip.why}".encode()  # can be printed and written


def read_or_refuse(path, images):
    """Reads, or refuses with an error of one line that begins with the file."""
    try:
        captions = captioned_dataset(
            "x", path.parent, images, (), path, table_lines(path, ""), "run: python -m x"
        )
    except ValueError as error:
        assert "\n" not in str(error) and str(error).startswith(str(path))
        return None
    check_captions(captions, images)
    lines = list(table_lines(path, ""))
    assert len(lines) == len(captions.queries) + len(captions.skipped)  # none is lost
    return captions


@pytest.fixture
def images(tmp_path):
    return [Image(name, tmp_path / name) for name in NAMES]


@QUICK
@given(header=headers, rows=rows, mark=st.booleans(), end=st.sampled_from(["\n", "\r\n"]))
def test_any_rows(tmp_path, images, header, rows, mark, end):
    separator = "|" if "|" in header else ","
    text = end.join([header, *(separator.join(row) for row in rows)])
    path = tmp_path / "images_captions.csv"
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.encode("utf-8", "replace"))
    read_or_refuse(path, images)


def folder_of(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root.parent / "secret.jpg").touch()
    return root


def read_or_refuse_dataset(name, root, split):
    """Reads a dataset, or refuses it in one line; what is read lies in its folder."""
    try:
        dataset = open_dataset(name, root, split)
    except ValueError as error:
        assert "\n" not in str(error)
        return None
    known = {image.id for image in dataset.images}
    assert len(known) == len(dataset.images)
    for image in dataset.images:
        assert image.path.resolve().is_relative_to(root.resolve()) and image.path.is_file()
    assert len({query.id for query in dataset.queries}) == len(dataset.queries)
    for query in dataset.queries:
        assert query.relevant and query.relevant <= known
        query.text.encode("utf-8")
    return dataset


@QUICK
@given(content=st.binary(max_size=200))
@pytest.mark.parametrize(
    ("name", "file", "split"),
    [
        ("mscoco", "captions_val2017.json", "all"),
        ("mscoco", "dataset_coco.json", "test"),
        ("msrvtt", "MSRVTT_data.json", "all"),
        ("msrvtt", "MSRVTT_JSFUSION_test.csv", "1k-A"),
        ("flickr30k", "results_20130124.token", "all"),
        ("flickr30k", "images_captions.csv", "all"),
    ],
)
def test_any_bytes_in_any_file(tmp_path, name, file, split, content):
    root = folder_of(tmp_path / name, "val2017/1.jpg", "frames/a/00.jpg", "flickr30k_images/1.jpg")
    (root / file).write_bytes(content)
    read_or_refuse_dataset(name, root, split)
