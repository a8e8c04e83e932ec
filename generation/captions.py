"""Captions of pictures: each picture is captioned once ever, when it is first asked for.

A caption is found by the captioner's name and the SHA-256 of the picture's file, so that a moved, renamed or
copied picture is not captioned again and a changed one is. All datasets and runs share one SQLite file: a
process that is killed loses nothing it has kept, and processes side by side see each other's captions.
"""

from __future__ import annotations

import logging
import sqlite3
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Protocol

from PIL import Image as PILImage
from tqdm import tqdm

from files import file_sha256
from generation.loading import model_identity
from generation.servers import SERVED, ServersFailed
from index.decode import BrokenImage, check_still_there, open_hashed, open_image
from index.fingerprint import fingerprint
from records import Image

log = logging.getLogger(__name__)

APPLICATION_ID = 0x43505431  # "CPT1": tells this file from any other SQLite database
FORMAT = 2
WAIT_SECONDS = 60.0  # for another process that is writing; a write takes milliseconds
SETTLED_NANOSECONDS = 2_000_000_000  # a younger file may change again within one tick of its clock
_AT_ONCE = 500  # SQLite bounds the placeholders of a statement

_TABLES = (
    "CREATE TABLE captioners (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "CREATE TABLE captions (captioner INTEGER NOT NULL, picture TEXT NOT NULL, caption TEXT NOT NULL,"
    " crc32 INTEGER, PRIMARY KEY (captioner, picture)) WITHOUT ROWID",
    "CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER NOT NULL, changed INTEGER NOT NULL,"
    " sha256 TEXT NOT NULL, crc32 INTEGER) WITHOUT ROWID",
)
_FROM_FORMAT_1 = (  # which had no checksums
    "ALTER TABLE captions ADD COLUMN crc32 INTEGER",
    "UPDATE captions SET crc32 = crc(name, picture, caption) FROM captioners WHERE number = captioner",
    "ALTER TABLE files ADD COLUMN crc32 INTEGER",
    "DELETE FROM files",  # they are hashed again
)


class CaptionCache:
    """Captions by captioner and picture, and the hashes of files seen before, in the file `path`.

    Each row has a CRC-32 of all that it says; one that has changed is made again.

    A connection is opened for every call, so that threads and forked processes may share the object. The
    rollback journal is kept rather than a write-ahead log, whose shared memory network drives lack.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it; ValueError if it is damaged, newer, or no file of captions."""
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
            elif version == 1:
                for change in _FROM_FORMAT_1:
                    database.execute(change)
                database.execute(f"PRAGMA user_version = {FORMAT}")
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
        """Returns the captions that are there, by picture.

        `captioner` is what makes captions differ (model, revision, precision, prompt); `pictures` are SHA-256
        of files.
        """
        with self._transaction() as database:
            found = {
                picture: (caption, crc == _crc(captioner, picture, caption))
                for part in _parts(pictures)
                for picture, caption, crc in database.execute(
                    "SELECT picture, caption, crc32 FROM captions JOIN captioners ON number = captioner"
                    f" WHERE name = ? AND picture IN ({_marks(part)})",
                    (captioner, *part),
                )
            }
        damaged = [picture for picture, (_, is_whole) in found.items() if not is_whole]
        if damaged:
            log.warning("%s: %d captions are damaged, and made again", self.path, len(damaged))
            with self._transaction("IMMEDIATE") as database:
                database.executemany(
                    "DELETE FROM captions WHERE picture = ?"
                    " AND captioner = (SELECT number FROM captioners WHERE name = ?)",
                    [(picture, captioner) for picture in damaged],
                )
        return {picture: caption for picture, (caption, is_whole) in found.items() if is_whole}

    def keep(self, captioner: str, captions: Mapping[str, str]) -> dict[str, str]:
        """Adds captions by picture; one that another process has added stays. Returns what is kept now."""
        with self._transaction("IMMEDIATE") as database:
            database.execute("INSERT OR IGNORE INTO captioners (name) VALUES (?)", (captioner,))
            database.executemany(
                "INSERT OR IGNORE INTO captions SELECT number, ?1, ?2, crc(name, ?1, ?2) FROM captioners"
                " WHERE name = ?3",
                [(picture, caption, captioner) for picture, caption in captions.items()],
            )
        kept = self.find(captioner, list(captions))
        return {picture: kept[picture] for picture in captions}

    def hashes_of(self, paths: Iterable[Path]) -> dict[Path, str]:
        """Returns the hexadecimal SHA-256 of files, by path; those that cannot be read are not in it.

        A file seen before with this size and time of change is not read again.
        """
        stated: dict[str, tuple[Path, int, int]] = {}
        hashes: dict[Path, str] = {}
        for path in paths:
            try:
                status = path.stat()
            except OSError:  # whoever opens the picture says why
                continue
            stated[str(path.absolute())] = (path, status.st_size, status.st_mtime_ns)
        with self._transaction() as database:
            known = {
                (name, size, changed): sha256
                for part in _parts(list(stated))
                for name, size, changed, sha256, crc in database.execute(
                    f"SELECT * FROM files WHERE path IN ({_marks(part)})", part
                )
                if crc == _crc(name, size, changed, sha256)
            }
        fresh = []
        for name, (path, size, changed) in stated.items():
            if (name, size, changed) in known:
                hashes[path] = known[name, size, changed]
                continue
            try:
                hashes[path] = file_sha256(path)
            except OSError:
                continue
            if time.time_ns() - changed > SETTLED_NANOSECONDS:
                row = (name, size, changed, hashes[path])
                fresh.append((*row, _crc(*row)))
        if fresh:
            with self._transaction("IMMEDIATE") as database:
                database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", fresh)
        return hashes

    def forget_hash(self, path: Path) -> None:
        """Has the file be read again the next time, though its size and its time are as before."""
        with self._transaction("IMMEDIATE") as database:
            database.execute("DELETE FROM files WHERE path = ?", (str(path.absolute()),))

    @contextmanager
    def _transaction(self, kind: str = "DEFERRED") -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, WAIT_SECONDS, isolation_level=None)) as database:
                database.text_factory = lambda text: text.decode(errors="replace")  # the CRC then tells
                database.create_function("crc", 3, _crc)
                database.execute(f"BEGIN {kind}")
                yield database
                database.execute("COMMIT")  # closing without it takes everything back
        except sqlite3.OperationalError as error:
            raise ValueError(
                f"{self.path}: {error}; check that the file may be written and the disk has room, or give"
                " another --caption-cache"
            ) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter of SQLite's own messages
            raise ValueError(
                f"{self.path}: damaged ({' '.join(str(error).split())}); move it away, its captions are made"
                " again"
            ) from error


class Captioner(Protocol):
    """Pictures to sentences.

    Attributes:
        model_id: A file, a folder, or a model of the hub.
        name: What makes captions differ, beginning with the model's id: model, precision and prompt.
    """

    model_id: str
    name: str

    def caption(self, images: list[PILImage.Image]) -> list[str]:
        """Describes each picture in one line."""
        ...


def name_captioner(captioner: Captioner, hashes_of: Callable[[Iterable[Path]], Mapping[Path, str]]) -> str:
    """Names what makes captions differ: the model's content, precision, prompt, library, how files are read.

    `hashes_of` tells the SHA-256 of files. ValueError if there is no such model.
    """
    model_id, name = captioner.model_id, captioner.name
    if model_id.startswith(SERVED):  # nobody here can see a server's files
        return name
    content = model_identity(model_id, hashes_of) + name.removeprefix(model_id)
    return fingerprint(content, library="transformers")


class ImageCaptions:
    """Captions of a collection's images by one captioner.

    Every image asked for is one of `reused` (it or an equal file had a caption), `made` and `broken` (with
    the reason, by id). A picture that cannot be read has the empty caption, which moves no query and is not
    kept.
    """

    def __init__(
        self, captioner: Captioner, images: Sequence[Image], cache: CaptionCache, batch_size: int
    ) -> None:
        """Opens nothing yet; `batch_size` pictures are captioned, and then kept, at a time."""
        self.reused = 0
        self.made = 0
        self.broken: dict[str, str] = {}
        self._captioner = captioner
        self._images = {image.id: image for image in images}
        self._cache = cache
        self._batch_size = batch_size
        self._captions: dict[str, str] = {}

    @cached_property
    def captioner_name(self) -> str:
        """What makes captions differ, see `name_captioner`."""
        return name_captioner(self._captioner, self._cache.hashes_of)

    def captions_of(self, image_ids: Sequence[str]) -> list[str]:
        """Returns the captions of images, one line each, making those that are missing.

        A picture that cannot be read has the empty caption. ValueError if an image is not in the collection,
        or the captioner cannot be opened.
        """
        missing = [image_id for image_id in dict.fromkeys(image_ids) if image_id not in self._captions]
        unknown = [image_id for image_id in missing if image_id not in self._images]
        if unknown:
            raise ValueError(
                f"got image id {unknown[0]!r}, expected one of the collection's {len(self._images)} images"
            )
        if missing:
            self._look_up(missing)
        return [self._captions[image_id] for image_id in image_ids]

    def describe(self, picture: PILImage.Image) -> str:
        """Captions a picture that is not of the collection; nothing of it is kept."""
        return self._captioner.caption([picture])[0]

    def counts(self) -> str:
        """Says how many images were reused, made and broken, for the log."""
        said = f"{self.made} captions made, {self.reused} reused"
        return f"{said}, {len(self.broken)} pictures broken" if self.broken else said

    def _look_up(self, image_ids: Sequence[str]) -> None:
        hashes = self._cache.hashes_of([self._images[image_id].path for image_id in image_ids])
        same: dict[str, list[str]] = defaultdict(list)  # images by content
        for image_id in image_ids:
            path = self._images[image_id].path
            if path in hashes:
                same[hashes[path]].append(image_id)
            else:
                self._note_broken([image_id], _reason(path))
        self._take(same, self._cache.find(self.captioner_name, list(same)), made=False)
        wanting = list(same)
        starts = range(0, len(wanting), self._batch_size)
        bar = tqdm(total=len(wanting), desc="captioning", unit="image", disable=len(starts) < 2, leave=False)
        with bar:
            for start in starts:
                batch = wanting[start : start + self._batch_size]
                if start:  # another process may have been faster
                    self._take(same, self._cache.find(self.captioner_name, batch), made=False)
                self._take(
                    same, self._make([picture for picture in batch if picture in same], same), made=True
                )
                bar.update(len(batch))

    def _take(self, same: dict[str, list[str]], captions: Mapping[str, str], made: bool) -> None:
        """Gives captions to all images of their content, and strikes those off the list."""
        for picture, caption in captions.items():
            image_ids = same.pop(picture)
            self._captions |= dict.fromkeys(image_ids, caption)
            self.made += made
            self.reused += len(image_ids) - made

    def _make(self, pictures: Sequence[str], same: dict[str, list[str]]) -> dict[str, str]:
        """Captions pictures; those that cannot be opened are noted, and struck off the list."""
        captions, broken = self.make({picture: self._images[same[picture][0]].path for picture in pictures})
        for picture, reason in broken.items():
            self._note_broken(same.pop(picture), reason)
        return captions

    def make(self, pictures: Mapping[str, Path]) -> tuple[dict[str, str], dict[str, str]]:
        """Captions files, by content, and keeps that; returns the captions, and why others have none."""
        opened, broken = open_pictures(pictures)
        if not opened:
            return {}, broken
        try:
            captions = self._captioner.caption(list(opened.values()))
        except ServersFailed as error:
            made = zip(opened, error.answers, strict=True)
            kept = {picture: caption for picture, caption in made if caption is not None}
            self._cache.keep(self.captioner_name, kept)
            raise
        return self._cache.keep(self.captioner_name, dict(zip(opened, captions, strict=True))), broken

    def _note_broken(self, image_ids: Sequence[str], reason: str) -> None:
        check_still_there(image.path for image in self._images.values())
        for image_id in image_ids:
            log.warning("%s cannot be captioned: %s", self._images[image_id].path, reason)
            self._cache.forget_hash(self._images[image_id].path)
            self.broken[image_id] = reason
            self._captions[image_id] = ""


def open_pictures(paths: Mapping[str, Path]) -> tuple[dict[str, PILImage.Image], dict[str, str]]:
    """Opens pictures, by SHA-256; returns them, and why the others cannot be, such as other content now."""
    opened: dict[str, PILImage.Image] = {}
    broken: dict[str, str] = {}
    for expected, path in paths.items():
        try:
            picture, sha256 = open_hashed(path)
        except BrokenImage as error:
            broken[expected] = error.reason
            continue
        if sha256 == expected:
            opened[expected] = picture
        else:
            broken[expected] = "its file was replaced meanwhile; give the same command again"
    return opened, broken


def _reason(path: Path) -> str:
    try:
        open_image(path)
    except BrokenImage as error:
        return error.reason
    return "it came and went while it was read"


def _crc(*values: str | int) -> int:
    return zlib.crc32(repr(values).encode("utf-8", "surrogatepass"))


def _marks(values: Sequence[str]) -> str:
    return ", ".join("?" * len(values))


def _parts(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]
