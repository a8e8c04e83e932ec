"""Records, captions, settings and pictures: any content comes back as it was, or is refused in one line."""

import io
import json
import logging
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from evaluation.runs import append_rounds, read_rounds
from files import read_json, write_json
from index.decode import BrokenImage, open_image
from records import Round

QUICK = settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "15")), deadline=None)
# Readers let no half character in; line ends of every sort stay inside a record.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["\n", "\r\n", "\u2028", "\x85", "\x00", '"', "\\n", "🐈", "null", "e\u0301"]
)
TUPLES = st.lists(TEXTS, max_size=4).map(tuple)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
ROUNDS = st.builds(
    Round,
    query_id=TEXTS,
    number=st.integers(0, 100),
    text=TEXTS,
    target=st.none() | TEXTS,
    relevant=TUPLES,
    image_ids=TUPLES,
    scores=st.lists(NUMBERS, max_size=4).map(tuple),
    shown=st.integers(0, 50),
    target_rank=st.none() | st.integers(1, 10**7),
    liked=TUPLES,
    disliked=TUPLES,
    captions=TUPLES,
    fallback=TEXTS,
    stop=TEXTS,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@QUICK
@given(records=st.lists(ROUNDS, max_size=5), data=st.data())
def test_records_come_back_and_a_kill_at_any_byte_costs_the_last_one(records, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rounds.jsonl"
        append_rounds(path, records)
        assert read_rounds(path) == records
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        left = read_rounds(path)
        assert left == records[: whole[:cut].count(b"\n")]
        append_rounds(path, records[len(left) :])
        assert path.read_bytes() == whole


@QUICK
@given(content=st.binary(max_size=200) | st.lists(VALUES, max_size=3).map(
    lambda values: "".join(f"{json.dumps(value)}\n" for value in values).encode()))  # fmt: skip
def test_any_file_of_records_is_read_or_refused_in_one_line(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rounds.jsonl"
        path.write_bytes(content)
        try:
            assert read_rounds(path) == [] and b"\n" not in content
        except ValueError as error:
            assert "\n" not in str(error) and str(error).startswith(str(path))


@QUICK
@given(values=st.dictionaries(TEXTS, VALUES, max_size=4), content=st.binary(max_size=100))
def test_json_comes_back_and_anything_else_is_refused(values, content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        write_json(path, values)
        assert read_json(path) == values
        path.write_bytes(content)
        try:
            assert isinstance(read_json(path), dict)
        except ValueError as error:
            assert "\n" not in str(error) and str(error).startswith(str(path))


def small_picture(kind):
    sheet = io.BytesIO()
    Image.linear_gradient("L").resize((9, 7)).convert("RGB").save(sheet, kind)
    return sheet.getvalue()


PICTURES = {kind: small_picture(kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")}


@pytest.mark.filterwarnings("ignore::UserWarning")
@QUICK
@given(kind=st.sampled_from(sorted(PICTURES)), data=st.data())
def test_any_damage_to_a_picture_gives_a_picture_or_its_reason(kind, data):
    logging.getLogger("PIL").setLevel(logging.ERROR)
    content = bytearray(PICTURES[kind])
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=8)
    ):
        content[place] = value
    cut = data.draw(st.none() | st.integers(0, len(content)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        path.write_bytes(content[:cut] + data.draw(st.binary(max_size=20)))
        try:
            assert open_image(path).mode == "RGB"
        except BrokenImage as error:
            assert error.reason and str(error).startswith(str(path))
