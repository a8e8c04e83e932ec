"""Whatever a data file holds, a reader returns records inside its folder, or refuses in one line."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from playground import open_dataset

QUICK = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "15")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
HEADERS = (
    "image_name,comment_number,comment\n",
    "image_name| comment_number| comment\n",
    "video_id,sentence\n",
)
PIECES = (
    *("1.jpg", "a", "1.jpg,0,A cat\n", "1.jpg|0|A cat\n", "1.jpg#0\tA cat\n", "a,two dogs\n", "a/00.jpg"),
    *("../../etc/passwd", "/etc/passwd", "C:\\x.jpg", "\\\\host\\x", "..\\1.jpg", "./1.jpg", "sub/../1.jpg"),
    *(
        " ",
        "\0",
        "\ufeff",
        "\u202egpj.a",
        "🐈.jpg",
        "a" * 300,
        '"',
        ",",
        "|",
        "#",
        "\r",
        "\n",
        "\t",
        "\x1b[2J",
    ),
    *('{"images": [', '{"videos": [', '"sentences": [', '"annotations": [', "{", "}", "]}", "1", "null"),
)
TABLES = st.tuples(st.sampled_from(("", *HEADERS)), st.lists(st.sampled_from(PIECES), max_size=30))
CONTENTS = st.binary(max_size=200) | TABLES.map(lambda parts: (parts[0] + "".join(parts[1])).encode())


@QUICK
@given(content=CONTENTS)
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
def test_any_content_of_any_file(tmp_path, name, file, split, content):
    root = tmp_path / name
    for picture in ("val2017/1.jpg", "frames/a/00.jpg", "flickr30k_images/1.jpg", "../secret.jpg"):
        (root / picture).parent.mkdir(parents=True, exist_ok=True)
        (root / picture).touch()
    (root / file).write_bytes(content)
    try:
        dataset = open_dataset(name, root, split)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    known = {image.id for image in dataset.images}
    assert len(known) == len(dataset.images)
    for image in dataset.images:
        assert image.path.resolve().is_relative_to(root.resolve()) and image.path.is_file()
    assert len({query.id for query in dataset.queries}) == len(dataset.queries) > 0
    for query in dataset.queries:
        assert query.relevant and query.relevant <= known
        assert query.text == " ".join(query.text.split()) != ""
        assert not set(query.text) & set(map(chr, range(32)))
    for skip in dataset.skipped:
        assert skip.why
        f"{skip.what}{skip.why}".encode()  # can be printed and written
