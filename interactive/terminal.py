"""The same search in a terminal: words are searched, lines that begin with + - or / are commands."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

from files import write_bytes
from index.decode import BrokenImage
from interactive.errors import UserError
from interactive.inline import Protocol, inline_picture, protocol_of
from interactive.pictures import MAX_UPLOADED_BYTES, read_upload
from interactive.saved import MAX_BYTES, export_rounds, open_session, save_session
from interactive.search_context import SearchContext
from interactive.session import Options, Session
from interactive.study import Study, Task
from interactive.verdict import measure, with_target
from records import Round

log = logging.getLogger(__name__)

HELP = """\
a dog on a beach     search for it
+2 5                 like pictures 2 and 5 (again: take that back)
-3                   dislike picture 3
(an empty line)      more like these
/next                show the next query without searching it
/edit WORDS          search with your words next
/back, /round N      to an earlier round
/over                start over
/picture FILE WORDS  search by a picture of yours; the words may be left out
/strategy NAME       how feedback changes the query
/shown N             pictures a round
/threshold X         least similarity; without X all are shown
/again on|off        whether pictures may come again
/found N             picture N is the one: measures of this search
/save FILE, /open FILE, /export FILE
/study, /giveup      find the picture shown; rounds and seconds are written down
/quit"""


class Terminal:
    """Reads lines and answers them."""

    def __init__(
        self,
        context: SearchContext,
        options: Options,
        study: Study,
        *,
        describe: bool = True,
        lines: TextIO = sys.stdin,
        out: TextIO = sys.stdout,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """Prepares a session.

        Args:
            context: The parts.
            options: At first.
            study: Gives pictures to find.
            describe: Whether all shown pictures are captioned, not only liked ones.
            lines: Where commands come from.
            out: Where answers go.
            environment: Says which terminal it is.
        """
        self._desk = context
        self._options = options
        self._session = Session(context, options)
        self._study = study
        self._participant = secrets.token_hex(3)
        self._tasks_given = 0
        self._task: Task | None = None
        self._declared: list[Round] = []  # the rounds with their target, until the next step
        self._describe = describe
        self._lines = lines
        self._out = out
        self._protocol: Protocol = protocol_of(environment) if out.isatty() else "none"

    def run(self) -> None:
        """Answers lines until /quit or the end of the input."""
        self._write(f"{len(self._desk.ids):,} pictures of {self._desk.name}. /help lists commands.")
        if self._lines.isatty():
            import readline  # noqa: F401  lets input lines be edited and recalled
        while (line := self._read()) is not None and line != "/quit":
            try:
                self._answer(line)
            except UserError as error:
                self._write(f"! {error}")
            except (ValueError, OSError, ModuleNotFoundError) as error:
                log.debug("where it came from", exc_info=True)
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
        if not line.startswith(("/export", "/save", "/help")):
            self._declared = []
        if line[:1] in ("+", "-"):
            self._mark(line)
        elif line.startswith("/"):
            name, _, rest = line[1:].partition(" ")
            commands = self._commands()
            if name not in commands:
                raise UserError(f"got /{name}, expected words or a command; /help lists them")
            commands[name](rest.strip())
        elif line:
            if self._task is not None and self._session.turns:
                raise UserError("this search has begun; /edit WORDS changes the query")
            self._session.search(line, self._say)
            self._show()
        else:
            self._session.more(say=self._say)
            self._show()

    def _commands(self) -> dict[str, Callable[[str], None]]:
        return {
            "help": lambda rest: self._write(HELP),
            "next": lambda rest: self._next(),
            "edit": lambda rest: self._then_show(lambda: self._session.more(rest, self._say)),
            "back": lambda rest: self._go_to(self._session.at - 1),
            "round": lambda rest: self._go_to(_whole(rest) - 1),
            "over": lambda rest: self._free() or self._session.over(),
            "picture": self._picture,
            "strategy": lambda rest: self._set(strategy=rest),
            "shown": lambda rest: self._set(shown=_whole(rest)),
            "threshold": lambda rest: self._set(threshold=_number(rest) if rest else None),
            "again": lambda rest: self._set(shows_again=rest == "on"),
            "found": self._found,
            "save": self._save,
            "open": self._open,
            "export": self._export,
            "study": lambda rest: self._begin_task(),
            "giveup": lambda rest: self._end_task(found=False),
        }

    def _then_show(self, step: Callable[[], object]) -> None:
        step()
        self._show()

    def _show(self) -> None:
        session, turn = self._session, self._session.now
        record = turn.record
        self._write(f"\nRound {session.at + 1}: {_changes(session.changes())}")
        if record.fallback:
            self._write(f"  ({record.fallback})")
        if session.past:
            for caption in session.past[-1].captions:
                self._write(f"  liked: {caption}")
        if self._describe:
            self._say("Describing the pictures")
            self._desk.captions_of(turn.shown_ids)
        for place, (image_id, score) in enumerate(zip(turn.shown_ids, record.scores, strict=False), start=1):
            mark = "+" if image_id in record.liked else "-" if image_id in record.disliked else " "
            path = self._desk.paths[image_id]
            self._out.write(self._inline(path))
            where = "" if self._task is not None else f"  {path}"  # a path would give the target away
            self._write(f"{mark}{place:3d}  {score:.3f}{where}  {self._desk.known(image_id) or ''}".rstrip())
        hidden = min(session.options.shown, len(record.image_ids)) - record.shown
        if hidden:
            self._write(f"{hidden} less similar than {session.options.threshold} are not shown")
        if record.stop:
            self._write("all pictures have been shown; /again on, /back or /over")

    def _inline(self, path: Path) -> str:
        try:
            return inline_picture(path, self._protocol)
        except BrokenImage as error:
            log.warning("%s", error)
            return ""

    def _mark(self, line: str) -> None:
        kind = "like" if line[0] == "+" else "dislike"
        image_ids = [self._shown(word) for word in line[1:].replace(",", " ").split()]
        if not image_ids:
            raise UserError(f"{kind} which? for example {line[0]}2 5")
        record = self._session.now.record
        already = record.liked if kind == "like" else record.disliked
        for image_id in image_ids:
            self._session.mark(image_id, "none" if image_id in already else kind)
        for image_id in image_ids if kind == "like" else ():
            self._say("Describing the picture")
            self._write(f"  {self._desk.captions_of([image_id])[0]}")
        record = self._session.now.record
        self._write(f"{len(record.liked)} liked, {len(record.disliked)} disliked")

    def _shown(self, word: str) -> str:
        place, shown = _whole(word), self._session.now.shown_ids
        if not 1 <= place <= len(shown):
            raise UserError(f"got picture {place}, expected 1 to {len(shown)}")
        return shown[place - 1]

    def _next(self) -> None:
        before = self._session.now.record.text
        proposal = self._session.propose(self._say)
        for caption in self._session.now.record.captions:
            self._write(f"  liked: {caption}")
        self._write(f"now:  {before}\nnext: {proposal.search.text or ''}")
        self._write("an empty line searches it; /edit WORDS searches yours")

    def _go_to(self, number: int) -> None:
        self._free()
        self._session.go_to(number)
        self._show()

    def _set(self, **changes: object) -> None:
        self._free()
        values = {**vars(self._session.options), **changes}
        self._session.set_options(Options(**values), self._say)
        if self._session.turns and "strategy" not in changes:
            self._show()

    def _picture(self, rest: str) -> None:
        self._free()
        name, *words = shlex.split(rest) or [""]
        picture = read_upload(_read_file(_path(name), MAX_UPLOADED_BYTES))
        self._session.search_picture(picture, " ".join(words), self._say)
        self._show()

    def _found(self, rest: str) -> None:
        image_id, session = self._shown(rest), self._session
        if self._task is not None:
            if image_id != self._task.target:
                self._task.wrong += 1
                raise UserError("that is another picture; look again")
            self._end_task(found=True)
            return
        records = with_target(session.turns[: session.at + 1], image_id, self._desk.retriever, "found")
        ranks = ["shown before" if turn.target_rank is None else str(turn.target_rank) for turn in records]
        self._write(f"found in round {len(records)}; its place in each round: {' -> '.join(ranks)}")
        means = measure(records, len(self._desk.ids))["means_per_round"]
        for name, values in means.items():
            self._write(f"  {name}: {' '.join(f'{value:.3g}' for value in values)}")
        self._declared = records

    def _begin_task(self) -> None:
        self._free()
        if self._protocol == "none":
            raise UserError(
                "the study needs a terminal that shows pictures (kitty, iTerm2, WezTerm), or the page"
            )
        self._task = self._study.give(self._participant, self._tasks_given)
        self._tasks_given += 1
        self._session = Session(self._desk, self._options)
        self._out.write(self._inline(self._desk.paths[self._task.target]))
        self._write("find this picture: describe it; /found N when you see it, /giveup to stop")

    def _end_task(self, found: bool) -> None:
        if self._task is None:
            raise UserError("there is no picture to find; /study shows one")
        line = self._study.end(self._task, self._session, found)
        self._task, self._session = None, Session(self._desk, self._options)
        self._write(f"{line['event']}: {line['rounds']} rounds, {line['seconds']:.0f} seconds; written down")

    def _free(self) -> None:
        if self._task is not None:
            raise UserError("not while you look for a picture; find it, or /giveup")

    def _save(self, rest: str) -> None:
        path = _path(rest)
        write_bytes(path, save_session(self._session).encode())
        self._write(f"written: {path}")

    def _open(self, rest: str) -> None:
        self._free()
        data = _read_file(_path(rest), MAX_BYTES)
        self._session = open_session(data.decode("utf-8", errors="replace"), self._desk)
        self._show()

    def _export(self, rest: str) -> None:
        session, path = self._session, _path(rest)
        session.now  # noqa: B018  says that there is nothing to export
        records = self._declared or [turn.record for turn in session.turns[: session.at + 1]]
        write_bytes(path, export_rounds(records).encode())
        self._write(f"written: {path}")

    def _say(self, stage: str) -> None:
        if self._out.isatty():
            self._write(f"... {stage}")

    def _write(self, text: str) -> None:
        """Writes lines; what a file's name or a caption could tell the terminal to do is taken out."""
        lines = ("".join(c if c.isprintable() else "?" for c in line) for line in text.split("\n"))
        self._out.write("\n".join(lines) + "\n")
        self._out.flush()


def _changes(words: list[tuple[str, str]]) -> str:
    forms = {"same": "{}", "added": "[+{}]", "removed": "[-{}]"}
    return " ".join(forms[kind].format(text) for kind, text in words)


def _whole(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 10):
        raise UserError(f"got {word!r}, expected a number")
    return int(word)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise UserError(f"got {word!r}, expected a number") from error


def _path(rest: str) -> Path:
    if not rest:
        raise UserError("name a file")
    return Path(rest).expanduser()


def _read_file(path: Path, max_bytes: int) -> bytes:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size > max_bytes:
        raise UserError(f"{path}: too large; at most {max_bytes / 2**20:.3g} MB are read")
    return path.read_bytes()
