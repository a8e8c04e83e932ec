"""Every picture is captioned once ever: one file of captions, shared by all datasets and runs.

A caption is found by the captioner's name and the SHA-256 of the picture's file, so that a moved, renamed or
copied picture is not captioned again and a changed one is. The file is an SQLite database: a process that is
killed loses nothing it has kept, and processes that run side by side see each other's captions.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from files import file_sha256

APPLICATION_ID = 0x43505431  # "CPT1": tells this file from any other SQLite database
FORMAT = 1
WAIT_SECONDS = 60.0  # for another process that is writing; a write takes milliseconds
SETTLED_NANOSECONDS = (
    2_000_000_000  # younger files may change again within one tick of the file system's clock
)
_AT_ONCE = 500  # SQLite bounds the placeholders of a statement

_TABLES = (
    "CREATE TABLE captioners (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "CREATE TABLE captions (captioner INTEGER NOT NULL, picture TEXT NOT NULL, caption TEXT NOT NULL,"
    " PRIMARY KEY (captioner, picture)) WITHOUT ROWID",
    "CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER NOT NULL, changed INTEGER NOT NULL,"
    " sha256 TEXT NOT NULL) WITHOUT ROWID",
)


class CaptionCache:
    """Captions by captioner and picture, and the hashes of files seen before.

    A connection is opened for every call, so that threads and forked processes may share the object. The
    rollback journal is kept rather than a write-ahead log, whose shared memory network drives lack.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it.

        Args:
            path: The file; folders above it are made.

        Raises:
            ValueError: If it is damaged, of a newer format, or no file of captions.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction("IMMEDIATE") as database:  # two processes may want to make it
            (kind,) = database.execute("PRAGMA application_id").fetchone()
            (version,) = database.execute("PRAGMA user_version").fetchone()
            (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not (kind or version or tables):
                for table in _TABLES:
                    database.execute(table)
                database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                database.execute(f"PRAGMA user_version = {FORMAT}")
            elif kind != APPLICATION_ID:
                raise ValueError(f"{path}: a database, but not one of captions; give another --caption-cache")
            elif version != FORMAT:
                raise ValueError(
                    f"{path}: got captions in format {version}, expected {FORMAT}; give another"
                    " --caption-cache, or use the version of this project that wrote it"
                )
            else:
                (state,) = database.execute("PRAGMA quick_check(1)").fetchone()
                if state != "ok":
                    raise sqlite3.DatabaseError(state)

    def find(self, captioner: str, pictures: Sequence[str]) -> dict[str, str]:
        """Returns the captions that are there.

        Args:
            captioner: What makes captions differ: model, revision, precision, prompt.
            pictures: SHA-256 of each picture's file.

        Returns:
            Captions by picture; pictures without one are not in it.
        """
        found: dict[str, str] = {}
        with self._transaction() as database:
            for part in _parts(pictures):
                found.update(
                    database.execute(
                        "SELECT picture, caption FROM captions JOIN captioners ON number = captioner"
                        f" WHERE name = ? AND picture IN ({_marks(part)})",
                        (captioner, *part),
                    ).fetchall()
                )
        return found

    def keep(self, captioner: str, captions: Mapping[str, str]) -> dict[str, str]:
        """Adds captions; one that another process has added meanwhile stays.

        Args:
            captioner: As for `find`.
            captions: By picture.

        Returns:
            What is kept of these pictures now.
        """
        with self._transaction("IMMEDIATE") as database:
            database.execute("INSERT OR IGNORE INTO captioners (name) VALUES (?)", (captioner,))
            database.executemany(
                "INSERT OR IGNORE INTO captions SELECT number, ?, ? FROM captioners WHERE name = ?",
                [(picture, caption, captioner) for picture, caption in captions.items()],
            )
        kept = self.find(captioner, list(captions))
        return {picture: kept[picture] for picture in captions}

    def hashes_of(self, paths: Iterable[Path]) -> dict[Path, str]:
        """Returns the SHA-256 of files; one seen before with this size and time of change is not read again.

        Args:
            paths: As `index.decode.open_image` takes them.

        Returns:
            Hexadecimal, by path; files that cannot be read are not in it.
        """
        stated: dict[str, tuple[Path, int, int]] = {}
        hashes: dict[Path, str] = {}
        for path in paths:
            try:
                status = path.stat()
            except OSError:  # whoever opens the picture says why
                continue
            stated[str(path.absolute())] = (path, status.st_size, status.st_mtime_ns)
        known: dict[str, tuple[int, int, str]] = {}
        with self._transaction() as database:
            for part in _parts(list(stated)):
                rows = database.execute(f"SELECT * FROM files WHERE path IN ({_marks(part)})", part)
                known |= {name: (size, changed, sha256) for name, size, changed, sha256 in rows}
        fresh = []
        for name, (path, size, changed) in stated.items():
            if name in known and known[name][:2] == (size, changed):
                hashes[path] = known[name][2]
                continue
            try:
                hashes[path] = file_sha256(path)
            except OSError:
                continue
            if time.time_ns() - changed > SETTLED_NANOSECONDS:
                fresh.append((name, size, changed, hashes[path]))
        if fresh:
            with self._transaction("IMMEDIATE") as database:
                database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", fresh)
        return hashes

    @contextmanager
    def _transaction(self, kind: str = "DEFERRED") -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, WAIT_SECONDS, isolation_level=None)) as database:
                database.execute(f"BEGIN {kind}")
                yield database
                database.execute("COMMIT")  # closing without it takes everything back
        except sqlite3.OperationalError as error:
            raise ValueError(
                f"{self.path}: {error}; check that the file may be written and the disk has room, or give"
                " another --caption-cache"
            ) from error
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self.path}: damaged ({' '.join(str(error).split())}); move it away, its captions are made"
                " again"
            ) from error


def _marks(values: Sequence[str]) -> str:
    return ", ".join("?" * len(values))


def _parts(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]
