"""Captions files as they are found in the wild."""

import logging

import pytest

from playground.captions import captioned_dataset, table_lines
from records import Image

HEADER = "image_name,comment_number,comment\n"


@pytest.fixture
def read(tmp_path):
    def read(content, names=("a.jpg", "b.jpg", "sub/c.png")):
        path = tmp_path / "images_captions.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        images = [Image(name, tmp_path / name) for name in names]
        lines = table_lines(path, "run: python -m x")
        return captioned_dataset("x", tmp_path, images, (), path, lines, "run: python -m x")

    return read


@pytest.mark.parametrize(
    "content",
    [
        HEADER + 'a.jpg,0,"A cat, a ""big"" one"\nb.jpg,0,Two dogs',
        "\ufeff" + HEADER + 'a.jpg,0,"A cat, a ""big"" one"\nb.jpg,0,Two dogs\n',
        (HEADER + 'a.jpg,0,"A cat, a ""big"" one"\n\nb.jpg,0,Two dogs\n  \n').replace("\n", "\r\n"),
        'image_name, comment_number, comment\na.jpg, 0, "A cat, a ""big"" one"\n ./b.jpg , 0 , Two dogs \n',
        "\n\n"
        + '"image_name", "comment_number", "comment"\na.jpg,0,"A cat, a ""big"" one"\nb.jpg,0,Two dogs\n',
        'image_name| comment_number| comment\na.jpg| 0| A cat, a "big" one\nb.jpg| 0| Two dogs\n',
        'comment,image_name,x,comment_number\n"A cat, a ""big"" one",a.jpg,,0\nTwo dogs,b.jpg,1,0\n',
    ],
    ids=["plain", "mark", "crlf-and-blank-lines", "spaces", "late-quoted-header", "pipes", "other-columns"],
)
def test_the_same_captions_in_many_dresses(read, content):
    got = read(content)
    assert [(query.id, query.text) for query in got.queries] == [
        ("a.jpg#0", 'A cat, a "big" one'),
        ("b.jpg#0", "Two dogs"),
    ]
    assert got.skipped == ()


def test_unusable_lines_are_left_out_with_number_and_reason(read, caplog):
    lines = [
        "a.jpg,0,good",
        "none.jpg,0,no such image",
        '"b.jpg",0,"  "',
        "a.jpg,0,again",
        "/etc/passwd,0,x",
        "C:\\a.jpg,0,x",
        "../a.jpg,0,x",
        "sub/../../a.jpg,0,x",
        "sub\\..\\..\\a.jpg,0,x",
        'b.jpg,0,"over',
        'two lines"',
        "b.jpg,1",
        "b.jpg,1,too,many",
        ",1,no name",
        ",,",
        "b.jpg,,no number",
        "b.jpg,2,good",
    ]
    with caplog.at_level(logging.WARNING):
        got = read(HEADER + "\n".join(lines))
    assert [query.id for query in got.queries] == ["a.jpg#0", "b.jpg#0", "b.jpg#2"]
    assert got.queries[1].text == "over two lines"
    assert [(skip.what.split(": ")[0].split()[-1], skip.why) for skip in got.skipped] == [
        ("3", "no such image in the folder"),
        ("4", "the comment is empty"),
        ("5", "the image has a comment of this number already"),
        ("6", "the image name is an absolute path"),
        ("7", "the image name is an absolute path"),
        ("8", "the image name leaves the folder"),
        ("9", "the image name leaves the folder"),
        ("10", "the image name leaves the folder"),
        ("13", "not as many fields as the header"),
        ("14", "not as many fields as the header"),
        ("15", "no image name"),
        ("16", "no image name"),
        ("17", "no comment number"),
    ]
    assert got.skipped[0].what == "images_captions.csv line 3: none.jpg"
    assert "left out 13 of 16 lines: 3 x the image name leaves the folder" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "got an empty first line, expected the columns image_name, comment_number, comment"),
        ("a.jpg,0,A cat\n", "got a.jpg, 0, A cat, expected the columns"),
        ("image_name,comment_number\na.jpg,0\n", "got image_name, comment_number, expected the columns"),
        (HEADER, "no usable caption for the 3 images, expected at least one .it holds no captions"),
        (HEADER + "x.jpg,0,x\ny.jpg,0,y\n", r"\(2 x no such image in the folder\); run: python -m x"),
        (HEADER + 'a.jpg,0,good\na.jpg,1,"never closed\nb.jpg,0,good\n', "line 3: got malformed CSV"),
        (HEADER.encode() + b"a.jpg,0,caf\xe9\n", "not UTF-8"),
    ],
)
def test_a_file_of_no_use_is_refused_in_one_line(read, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(content)
    assert "\n" not in str(caught.value)


# Layouts as they are published


def test_kaggles_results_csv_with_its_spaces_and_its_broken_line(read):
    got = read(
        "image_name| comment_number| comment\n"
        "a.jpg| 0| Two young guys with shaggy hair look at their hands while hanging out in the yard .\n"
        'a.jpg| 1| " Stop , " says a sign .\n'
        "b.jpg| 4   A dog runs across the grass .\n"
        "b.jpg| 0| A dog | and a cat\n"
        "b.jpg| 1| Dogs\n"
    )
    assert [query.id for query in got.queries] == ["a.jpg#0", "a.jpg#1", "b.jpg#1"]
    assert got.queries[1].text == '" Stop , " says a sign .'
    assert [(skip.what, skip.why) for skip in got.skipped] == [
        ("images_captions.csv line 4: b.jpg", "not as many fields as the header"),
        ("images_captions.csv line 5: b.jpg", "not as many fields as the header"),
    ]


# Hostile lines


def test_nul_and_other_characters_that_are_no_text_leave_out_their_line_alone(read):
    got = read(
        HEADER.encode()
        + b"a.jpg,0,A \0 cat\na.\0jpg,1,A cat\na.jpg,2,A \x1b[31mred\x1b[0m cat\na.jpg,3,A\tcat\n\0\n"
    )
    assert [(query.id, query.text) for query in got.queries] == [("a.jpg#3", "A cat")]
    assert [skip.why for skip in got.skipped] == [
        *["holds characters that are not text, such as NUL"] * 3,
        "not as many fields as the header",
    ]
    assert "\0" not in "".join(skip.what for skip in got.skipped)


def test_a_caption_has_a_bound(read):
    got = read(HEADER + f"a.jpg,0,{'long ' * 2000}\na.jpg,1,{'long ' * 2001}\nb.jpg,1#2,x\n")
    assert [query.id for query in got.queries] == ["a.jpg#0"]
    assert [skip.why for skip in got.skipped] == [
        "the comment is longer than 10,000 characters",
        "no comment number",
    ]
    with pytest.raises(ValueError, match=r"line 2: got malformed CSV .field larger than field limit"):
        read(HEADER + f"a.jpg,0,{'x' * 200_000}\n")
