"""The same session in a terminal: words are searched; lines that begin with + - or / are commands."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from files import write_bytes
from interactive.once import listed
from interactive.pictures import MAX_UPLOADED_BYTES, read_upload
from interactive.saved import MAX_BYTES, open_session, save_session
from interactive.session import Options, SearchContext, Session, UserError
from settings import as_seen

log = logging.getLogger(__name__)

HELP = """\
a dog on a beach     search for it
a dog -beach +big    without a beach, rather big
+2 5                 like pictures 2 and 5 (again: undo that)
-3                   dislike picture 3
(an empty line)      more like these
/next                show the next query without searching it
/edit WORDS          search with your own words next
/back                go back one round
/picture FILE WORDS  search with a picture of your own; the words are optional
/save FILE           save the session; the page opens it too
/open FILE           continue a saved session
/quit"""


class Terminal:
    """Reads lines and answers them."""

    def __init__(
        self,
        context: SearchContext,
        options: Options,
        *,
        describe: bool = True,
        lines: Iterable[str] | None = None,
        out: TextIO = sys.stdout,
    ) -> None:
        """Prepares a session that answers lines, typed ones when None.

        Where `describe`, all shown pictures are captioned, not only liked ones.
        """
        self._context = context
        self._session = Session(context, options)
        self._describe = describe
        self._lines = _typed() if lines is None else lines
        self._out = out

    def run(self) -> None:
        """Answers lines until /quit or the end of the input."""
        self._write(f"{len(self._context.ids):,} pictures in {self._context.name}. /help lists the commands.")
        for line in self._lines:
            if line.strip() == "/quit":
                break
            try:
                self._answer(line.strip())
            except (ValueError, OSError, ModuleNotFoundError) as error:
                log.debug("traceback", exc_info=True)
                self._write(f"! {error}")

    def _answer(self, line: str) -> None:
        session = self._session
        word, _, rest = line.partition(" ")
        note = ""
        rest = rest.strip()
        match word:
            case "":
                session.next_round(say=self._say)
            case "/edit":
                session.next_round(rest, self._say)
            case "/back":
                if session.current is session.turns[0]:
                    raise UserError("this is round 1; there is none before it")
                session.go_to(session.position - 1)
            case "/picture":
                name, *words = shlex.split(rest) or [""]
                picture = read_upload(_read_file(_path(name), MAX_UPLOADED_BYTES))
                note = session.search(" ".join(words), picture, say=self._say)
            case "/open":
                text = _read_file(_path(rest), MAX_BYTES).decode("utf-8", errors="replace")
                self._session = open_session(text, self._context)
            case "/next":
                return self._propose()
            case "/save":
                path = _path(rest)
                write_bytes(path, save_session(session).encode())
                return self._write(f"saved: {path}")
            case "/help":
                return self._write(HELP)
            case _ if word[0] in "+-":
                return self._mark(line)
            case _ if word[0] == "/":
                raise UserError(f"got {word}, expected words or a command; /help lists them")
            case _:
                note = session.search(line, say=self._say)
        return self._show(note)

    def _show(self, note: str = "") -> None:
        session, turn = self._session, self._session.current
        record = turn.record
        forms = {"same": "{}", "added": "[+{}]", "removed": "[-{}]"}
        query = " ".join(forms[kind].format(text) for kind, text in session.changes()) or "your picture"
        signed = "".join(f" {sign}[{words}]" for sign, words in session.signed)
        self._write(f"\nRound {session.position + 1}: {query}{signed}")
        if record.fallback:
            self._write(f"  ({record.fallback})")
        for caption in session.past[-1].captions if session.past else ():
            self._write(f"  liked: {caption}")
        for place, (image_id, match) in enumerate(zip(turn.shown_ids, turn.matches, strict=False), start=1):
            mark = {"like": "+", "dislike": "-"}.get(turn.marks.get(image_id, ""), " ")
            self._write(mark + listed(place, match, as_seen(self._context.paths[image_id])))
        if note:
            self._write(f"! {note}")
        if record.stop:
            self._write("all pictures have been shown; go /back, or search for something else")
        if self._describe:  # takes a while: the pictures come first
            self._say("Describing the pictures")
            for place, caption in enumerate(self._context.captions_of(turn.shown_ids), start=1):
                self._write(f" {place:3d}  {caption}")

    def _mark(self, line: str) -> None:
        kind = "like" if line[0] == "+" else "dislike"
        image_ids = [self._shown(word) for word in line[1:].replace(",", " ").split()]
        if not image_ids:
            raise UserError(f"{kind} which? for example {line[0]}2 5")
        marks = self._session.current.marks
        for image_id in image_ids:
            self._session.mark(image_id, "none" if marks.get(image_id) == kind else kind)
        record = self._session.current.record
        self._write(f"{len(record.liked)} liked, {len(record.disliked)} disliked")

    def _shown(self, word: str) -> str:
        shown = self._session.current.shown_ids
        # The length comes first: Python refuses to read very long numbers.
        if not (len(word) < 10 and word.isascii() and word.isdigit() and 1 <= int(word) <= len(shown)):
            raise UserError(f"got picture {word!r}, expected a number from 1 to {len(shown)}")
        return shown[int(word) - 1]

    def _propose(self) -> None:
        proposal = self._session.propose(self._say)
        record = self._session.current.record
        for caption in record.captions:
            self._write(f"  liked: {caption}")
        self._write(f"now:  {record.text}\nnext: {proposal.search.text or ''}")
        self._write("an empty line searches with it; /edit WORDS with your own words")

    def _say(self, stage: str) -> None:
        if self._out.isatty():
            self._write(f"... {stage}")

    def _write(self, text: str) -> None:
        """Writes lines, without the control characters that a file name or caption may hold."""
        lines = ("".join(c if c.isprintable() else "?" for c in line) for line in text.split("\n"))
        self._out.write("\n".join(lines) + "\n")
        self._out.flush()


def _typed() -> Iterator[str]:
    """Yields lines of the standard input; in a terminal they can be edited and recalled."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401  changes what input() does

    with contextlib.suppress(EOFError):
        while True:
            yield input("> ")


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
