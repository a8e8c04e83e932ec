"""The same session in a terminal: words are searched; lines that begin with + - or / are commands."""

from __future__ import annotations

import base64
import io
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from files import write_bytes
from index.decode import BrokenImage, open_image
from interactive.pictures import MAX_UPLOADED_BYTES, read_upload
from interactive.saved import MAX_BYTES, export_rounds, open_session, save_session
from interactive.search_context import SearchContext, UserError
from interactive.session import Options, Session

log = logging.getLogger(__name__)

PICTURE_PIXELS = 320
PICTURE_LINES = 8
KITTY_CHUNK = 4096  # kitty reads no longer ones
HELP = """\
a dog on a beach     search for it
+2 5                 like pictures 2 and 5 (again: undo that)
-3                   dislike picture 3
(an empty line)      more like these
/next                show the next query without searching it
/edit WORDS          search with your own words next
/back, /round N      go to an earlier round
/over                start over
/picture FILE WORDS  search with a picture of your own; the words are optional
/strategy NAME       how feedback changes the query
/shown N             pictures per round
/save FILE, /open FILE, /export FILE
/quit"""


class Terminal:
    """Reads lines and answers them."""

    def __init__(
        self,
        context: SearchContext,
        options: Options,
        *,
        describe: bool = True,
        lines: TextIO = sys.stdin,
        out: TextIO = sys.stdout,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """Prepares a session.

        Args:
            context: The collection and its models.
            options: The initial options.
            describe: Whether all shown pictures are captioned, not only liked ones.
            lines: Where commands come from.
            out: Where answers go.
            environment: Tells which terminal it is.
        """
        self._context = context
        self._session = Session(context, options)
        self._describe = describe
        self._lines = lines
        self._out = out
        self._protocol = picture_protocol(environment) if out.isatty() else None

    def run(self) -> None:
        """Answers lines until /quit or the end of the input."""
        self._write(f"{len(self._context.ids):,} pictures in {self._context.name}. /help lists the commands.")
        if self._lines.isatty():
            import readline  # noqa: F401  lets lines be edited and recalled
        while (line := self._read()) is not None and line != "/quit":
            try:
                self._answer(line)
            except (ValueError, OSError, ModuleNotFoundError) as error:
                log.debug("traceback", exc_info=True)
                self._write(f"! {error}")

    def _read(self) -> str | None:
        if self._lines is sys.stdin and self._lines.isatty():
            try:
                return input("> ").strip()
            except EOFError:
                return None
        line = self._lines.readline()
        return line.strip() if line else None

    def _answer(self, line: str) -> None:
        session = self._session
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        match word:
            case "/help":
                self._write(HELP)
                return
            case "/next":
                self._propose()
                return
            case "/over":
                session.start_over()
                return
            case "/save":
                self._write_file(rest, save_session(session))
                return
            case "/export":
                self._write_file(rest, export_rounds(session.records()))
                return
            case "":
                session.next_round(say=self._say)
            case "/edit":
                session.next_round(rest, self._say)
            case "/back":
                session.go_to(session.position - 1)
            case "/round":
                session.go_to(_integer(rest) - 1)
            case "/strategy" | "/shown":
                value = rest if word == "/strategy" else _integer(rest)
                self._write(session.set_options(replace(session.options, **{word[1:]: value}), self._say))
            case "/picture":
                name, *words = shlex.split(rest) or [""]
                picture = read_upload(_read_file(_path(name), MAX_UPLOADED_BYTES))
                session.search(" ".join(words), picture, self._say)
            case "/open":
                text = _read_file(_path(rest), MAX_BYTES).decode("utf-8", errors="replace")
                self._session = open_session(text, self._context)
            case _ if word[0] == "/":
                raise UserError(f"got {word}, expected words or a command; /help lists them")
            case _ if word[0] in "+-":
                self._mark(line)
                return
            case _:
                session.search(line, say=self._say)
        if self._session.turns:
            self._show()

    def _show(self) -> None:
        session, turn = self._session, self._session.current
        record = turn.record
        forms = {"same": "{}", "added": "[+{}]", "removed": "[-{}]"}
        query = " ".join(forms[kind].format(text) for kind, text in session.changes())
        self._write(f"\nRound {session.position + 1}: {query}")
        if record.fallback:
            self._write(f"  ({record.fallback})")
        self._write_captions(session.past[-1].captions if session.past else (), "liked: ")
        if self._describe:
            self._say("Describing the pictures")
            self._context.captions_of(turn.shown_ids)
        for place, (image_id, score) in enumerate(zip(turn.shown_ids, record.scores, strict=False), start=1):
            mark = {"like": "+", "dislike": "-"}.get(turn.marks.get(image_id, ""), " ")
            path, caption = self._context.paths[image_id], self._context.known_caption(image_id) or ""
            try:
                self._out.write(inline_picture(path, self._protocol))
            except BrokenImage as error:
                log.warning("%s", error)
            self._write(f"{mark}{place:3d}  {score:.3f}  {path}  {caption}".rstrip())
        if record.stop:
            self._write("all pictures have been shown; /back or /over")

    def _write_captions(self, captions: Sequence[str], head: str = "") -> None:
        for caption in captions:
            self._write(f"  {head}{caption}")

    def _mark(self, line: str) -> None:
        kind = "like" if line[0] == "+" else "dislike"
        image_ids = [self._shown(word) for word in line[1:].replace(",", " ").split()]
        if not image_ids:
            raise UserError(f"{kind} which? for example {line[0]}2 5")
        marks = self._session.current.marks
        for image_id in image_ids:
            self._session.mark(image_id, "none" if marks.get(image_id) == kind else kind)
        if kind == "like":
            self._say("Describing the pictures")
            self._write_captions(self._context.captions_of(image_ids))
        record = self._session.current.record
        self._write(f"{len(record.liked)} liked, {len(record.disliked)} disliked")

    def _shown(self, word: str) -> str:
        place, shown = _integer(word), self._session.current.shown_ids
        if not 1 <= place <= len(shown):
            raise UserError(f"got picture {place}, expected 1 to {len(shown)}")
        return shown[place - 1]

    def _propose(self) -> None:
        proposal = self._session.propose(self._say)
        record = self._session.current.record
        self._write_captions(record.captions, "liked: ")
        self._write(f"now:  {record.text}\nnext: {proposal.search.text or ''}")
        self._write("an empty line searches with it; /edit WORDS with your own words")

    def _write_file(self, rest: str, text: str) -> None:
        path = _path(rest)
        write_bytes(path, text.encode())
        self._write(f"written: {path}")

    def _say(self, stage: str) -> None:
        if self._out.isatty():
            self._write(f"... {stage}")

    def _write(self, text: str) -> None:
        """Writes lines, without the control characters that a file name or caption may hold."""
        if not text:
            return
        lines = ("".join(c if c.isprintable() else "?" for c in line) for line in text.split("\n"))
        self._out.write("\n".join(lines) + "\n")
        self._out.flush()


def picture_protocol(environment: Mapping[str, str]) -> str | None:
    """Returns how a terminal takes pictures, "kitty" or "iterm2", by the variables that it sets; or None.

    A multiplexer would swallow the pictures, so there are none inside tmux and screen.
    """
    program = environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or environment.get("TERM", "").startswith("screen"):
        return None
    if "KITTY_WINDOW_ID" in environment or environment.get("TERM") == "xterm-kitty" or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return None


def inline_picture(path: Path, protocol: str | None) -> str:
    """Returns the escape sequence that shows a picture `PICTURE_LINES` lines high; empty without a protocol.

    Sources: kitty's terminal graphics protocol (sw.kovidgoyal.net/kitty/graphics-protocol) and iTerm2's
    inline images protocol (iterm2.com/documentation-images.html).

    Raises:
        BrokenImage: (a ValueError) If the file gives no picture.
    """
    if protocol is None:
        return ""
    picture = open_image(path)
    picture.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    png = stream.getvalue()
    data = base64.b64encode(png).decode()
    if protocol == "iterm2":
        head = f"\x1b]1337;File=inline=1;size={len(png)};height={PICTURE_LINES};preserveAspectRatio=1:"
        return f"{head}{data}\x07\n"
    parts = []
    for start in range(0, len(data), KITTY_CHUNK):
        how = "" if start else f"a=T,f=100,r={PICTURE_LINES},"
        has_more = int(start + KITTY_CHUNK < len(data))
        parts.append(f"\x1b_G{how}q=2,m={has_more};{data[start : start + KITTY_CHUNK]}\x1b\\")
    return "".join(parts) + "\n"


def _integer(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 10):
        raise UserError(f"got {word!r}, expected a number")
    return int(word)


def _path(rest: str) -> Path:
    if not rest:
        raise UserError("name a file")
    return Path(rest).expanduser()


def _read_file(path: Path, max_bytes: int) -> bytes:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size > max_bytes:
        raise UserError(f"{path}: too large; the limit is {max_bytes / 2**20:.3g} MB")
    return path.read_bytes()
