"""The terminal mode: the same session by lines, and the whole script in a terminal."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from conftest import caption_of
from interactive_world import PAINT, context, options, picture_folder  # noqa: F401
from PIL import Image

from interactive.saved import open_session
from interactive.server import is_loopback
from interactive.terminal import Terminal

PROJECT = Path(__file__).parent.parent


@pytest.fixture
def talk(context, options):  # noqa: F811
    """Types lines; returns what was answered."""

    def talk(*lines):
        out = io.StringIO()
        Terminal(
            context, options, lines=io.StringIO("\n".join((*lines, "/quit", "never read"))), out=out
        ).run()
        return out.getvalue()

    return talk


def listed(text):
    """Mark, place, match, its word and path of the pictures printed."""
    line = r"^([ +-])\s*(\d+)  +(-?\d\.\d) (very close|close|fair|far) +(\S+\.png)$"
    return re.findall(line, text, re.MULTILINE)


def captions_in(text):
    return re.findall(r"^ +\d+  (a \w+ \w+ in the \w+)$", text, re.MULTILINE)


def test_pictures_come_before_their_captions(talk, context, picture_folder, monkeypatch):  # noqa: F811
    monkeypatch.chdir(picture_folder.parent)
    text = talk("a red dog")
    rows = listed(text)
    (expected,) = context.retriever.search(["a red dog"], 10)
    assert [Path(row[4]).stem for row in rows] == list(expected.ids)
    assert rows[0][3] == "fair" and captions_in(text) == [caption_of(i) for i in expected.ids]
    assert text.index(rows[-1][4]) < text.index(captions_in(text)[0])
    assert not Path(rows[0][4]).is_absolute() and Path(rows[0][4]).is_file()


def test_like_more_edit_back(talk):
    text = talk("a dog", "+1 2", "-3", "/next", "", "/edit a white cat in the room", "/back", "/back")
    rounds = text.split("\nRound ")[1:]
    first, second, third, back, start = (listed(each) for each in rounds)
    captions = captions_in(rounds[0])[:2]
    assert f"next: a dog, {captions[0]}, {captions[1]}" in text
    assert f"[+, {captions[0]}, {captions[1]}]" in rounds[1] and "2 liked, 1 disliked" in text
    assert Path(third[0][4]).stem == "white-cat-room" and "edited by the person" in rounds[2]
    assert back == second
    assert "".join(row[0] for row in start) == "++-       "
    assert not {row[4] for row in first} & {row[4] for row in second}


def test_a_session_is_saved_and_opened(talk, context, tmp_path):  # noqa: F811
    saved = tmp_path / "mine.json"
    text = talk("a dog", "+1", "", f"/save {saved}")
    assert len(open_session(saved.read_text(), context).turns) == 2
    assert listed(talk(f"/open {saved}")) == listed(text)[10:20]


def test_a_picture_is_searched_for_and_the_words_with_it(talk, tmp_path):
    path = tmp_path / "my picture.png"
    Image.new("RGB", (40, 40), PAINT["blue"]).save(path)
    rows = listed(talk(f"/picture '{path}'", f"/picture '{path}' a horse"))
    assert all(Path(row[4]).stem.startswith("blue") for row in rows[:10])
    assert Path(rows[10][4]).stem.startswith("blue-horse")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["+1"], "nothing has been searched"),
        (["a dog", "+0"], "expected a number from 1 to 10"),
        (["a dog", "+\u00b2"], "expected a number from 1 to 10"),
        (["a dog", "-"], "dislike which?"),
        (["/nosuch"], "/help lists them"),
        (["a dog", "/back"], "this is round 1"),
        (["/back"], "nothing has been searched"),
        (["/open /nosuch/file"], "no such file"),
        (["/picture 'unbalanced"], "No closing quotation"),
    ],
)
def test_a_mistake_is_one_line_and_the_session_goes_on(talk, lines, said):
    text = talk(*lines, "a red dog")
    assert len(re.findall(r"^! ", text, re.MULTILINE)) == 1 and said in text
    assert Path(listed(text)[-10][4]).stem.startswith("red-dog")


def test_what_a_caption_tells_the_terminal_is_taken_out(talk, context):  # noqa: F811
    context.captions.known.captions_of = lambda ids: ["a dog\x1b]0;owned\x07\x9b31m" for _ in ids]
    text = talk("a dog")
    assert "\x1b" not in text and "\x07" not in text and "\x9b" not in text and "a dog?]0;owned??31m" in text


# The script


@pytest.mark.slow
def test_the_script_over_a_folder_of_ones_own_in_a_real_terminal(picture_folder, tmp_path):  # noqa: F811
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted(picture_folder.glob("*.png"))[:12]:
        (folder / path.name).write_bytes(path.read_bytes())
    named = ["--dataset", "image_folder", "--root", str(folder), "--preset", "demo"]
    subprocess.run([sys.executable, "embed_image_as_faiss.py", *named], cwd=PROJECT, check=True, timeout=90)
    command = ["interactive_search.py", "--terminal", *named, "--strategy", "append", "--no-describe"]
    command += ["--caption-cache", str(tmp_path / "captions.sqlite")]
    child = pexpect.spawn(
        sys.executable,
        command,
        cwd=PROJECT,
        encoding="utf-8",
        timeout=90,
        dimensions=(50, 300),
        env={"TERM": "xterm", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    child.expect("12 pictures in image_folder")
    child.sendline("a dog")
    child.expect(r"10  +-?\d\.\d \w+ .*pictures/\S+\.png")
    child.sendline("+1")
    child.expect("1 liked, 0 disliked")
    child.sendline("")
    child.expect("Round 2: .*liked: ")
    child.expect("all pictures have been shown")
    child.sendline("/quit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def in_a_process(*arguments, before="pass"):
    code = f"{before}; import sys, runpy; sys.argv = ['interactive_search.py', *{list(arguments)!r}]; "
    code += "runpy.run_path('interactive_search.py', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_package_is_one_line_with_the_command(package):
    done = in_a_process("--dataset", "demo", before=f"import sys; sys.modules['{package}'] = None")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        rf"error: the page needs {package}\S*; run: pip install -r requirements/page.txt\n", done.stderr
    )


def test_a_taken_port_is_said_before_anything_is_loaded():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = in_a_process("--dataset", "demo", "--root", "/nosuch", "--port", str(port))
    assert done.returncode == 2 and re.fullmatch(
        rf"error: cannot listen on 127.0.0.1 port {port}: .*in use.*choose another --port.*\n", done.stderr
    )


def test_only_loopback_addresses_are_this_machine_alone():
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "10.0.0.1", "x")] == [
        True, True, True, False, False, False
    ]  # fmt: skip
