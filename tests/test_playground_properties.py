"""Whatever a data file holds, a reader returns records inside its folder, or refuses in one line."""

import json
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
GOOD = ("1.jpg", "a", "A cat", "two dogs", "0", "1")
SPITEFUL = (
    *("../../etc/passwd", "/etc/passwd", "C:\\x.jpg", "\\\\host\\x", "..\\1.jpg", "./1.jpg", "sub/../1.jpg"),
    *(
        "",
        " ",
        "\0",
        "\ufeff",
        "\u202egpj.a",
        "🐈.jpg",
        "a" * 300,
        '"',
        "a,b",
        "a|b",
        "#",
        "\r",
        "\n",
        "\x1b[2J",
    ),
)
WORDS = st.sampled_from(GOOD) | st.sampled_from(SPITEFUL) | st.text(max_size=9)
ROWS = st.lists(
    st.tuples(st.sampled_from(("1.jpg", "a")) | WORDS, st.sampled_from("0123") | WORDS, WORDS), max_size=9
)
VALUES = st.none() | st.integers(0, 3) | WORDS | st.lists(WORDS, max_size=2)


def as_file(file, rows, odd):
    """Rows of name, number and comment as a file of its kind holds them; in JSON one value is `odd`."""
    if file.endswith(".csv"):
        header = "image_name,comment_number,comment\n" if "captions" in file else "video_id,sentence\n"
        chosen = [row if "captions" in file else (row[0], row[2]) for row in rows]
        return header + "".join(",".join(row) + "\n" for row in chosen)
    if file.endswith(".token"):
        return "".join(f"{name}#{number}\t{comment}\n" for name, number, comment in rows)
    said = [{"image_id": n, "caption": row[2], "video_id": row[0]} for n, row in enumerate(rows)]
    images = [{"id": n, "file_name": row[0], "filename": row[0], "cocoid": 1, "split": "test",
               "video_id": row[0], "sentences": [{"raw": row[2]}]} for n, row in enumerate(rows)]  # fmt: skip
    said.append({"image_id": 0, "video_id": "a", "caption": odd})
    return json.dumps({"images": images, "annotations": said, "videos": images, "sentences": said})


@QUICK
@given(rows=ROWS, odd=VALUES, junk=st.none() | st.binary(max_size=200))
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
def test_any_content_of_any_file(tmp_path, name, file, split, rows, odd, junk):
    root = tmp_path / name
    for picture in ("val2017/1.jpg", "frames/a/00.jpg", "flickr30k_images/1.jpg", "../secret.jpg"):
        (root / picture).parent.mkdir(parents=True, exist_ok=True)
        (root / picture).touch()
    content = as_file(file, rows, odd).encode("utf-8", "replace")
    (root / file).write_bytes(content if junk is None else junk)
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
