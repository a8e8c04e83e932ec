"""The members of a tar: where each begins, so that one is read without the rest, and nothing is unpacked.

Python's own tarfile reads the headers. The webdataset package reads tars from front to back, for training;
here single pictures are wanted again later, by captions, reports and pages.
"""

from __future__ import annotations

import functools
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from records import Skip
from scale.places import address_of, file_of, is_remote, read_range, read_with

BLOCK = tarfile.BLOCKSIZE
LONGEST_HEADER = 65_536  # bytes of an extended header, such as a long name
_EXTENDED = frozenset(
    {
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
    }
)
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class TarMembers:
    """What is in a tar.

    Attributes:
        places: First byte and length of each file, by its name, in the tar's order.
        skipped: Members left out, and what is wrong with the tar.
    """

    places: dict[str, tuple[int, int]]
    skipped: tuple[Skip, ...]


def read_members(path: Path) -> TarMembers:
    """Reads a tar's headers; kept for the next time, until a local tar changes.

    Links, devices, second members of a name, names that lead out of the tar and members that are cut off are
    left out. A tar in a store is taken not to change.

    Raises:
        FileNotFoundError: If it is missing.
        Unreadable: (an OSError) If the store does not give it.
        ValueError: If it is no tar, or compressed.
    """
    if is_remote(path):
        return _read_members(path, 0, 0)
    status = path.stat()
    return _read_members(path, status.st_size, status.st_mtime_ns)


def member_bytes(path: Path, name: str) -> bytes:
    """Reads one member.

    Raises:
        FileNotFoundError: If there is none of that name.
        Unreadable: (an OSError) If it is cut off.
        ValueError: As `read_members`.
    """
    place = _learnt.get(path, {}).get(name) or read_members(path).places.get(name)
    if place is None:
        raise FileNotFoundError(f"{address_of(path)} has no member {name}")
    return read_range(path, *place)


def stored_places(paths: Iterable[Path]) -> dict[Path, dict[str, tuple[int, int]]]:
    """Returns where pictures in stores' tars are, so that another process need not read all headers.

    Args:
        paths: Of pictures; those that are not in a store's tar do not matter.
    """
    places: dict[Path, dict[str, tuple[int, int]]] = {}
    for path in paths:
        file, name = file_of(path)
        if name and file.suffix == ".tar" and is_remote(file):
            places.setdefault(file, {})[name] = read_members(file).places[name]
    return places


def learn_places(places: Mapping[Path, dict[str, tuple[int, int]]]) -> None:
    """Takes what `stored_places` returned elsewhere, in the place of what was learnt before."""
    _learnt.clear()
    _learnt.update(places)


_learnt: dict[Path, dict[str, tuple[int, int]]] = {}


@functools.cache
def _read_members(path: Path, size: int, changed: int) -> TarMembers:
    return read_with(path, lambda file: _scan(path, file))


class _Header(tarfile.TarInfo):
    """A header; refused where tarfile would read a name of gigabytes, or go back instead of on."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _EXTENDED and header.size > LONGEST_HEADER):
            raise tarfile.HeaderError(f"a header of {header.size} bytes")
        return header


def _scan(path: Path, file: BinaryIO) -> TarMembers:
    places: dict[str, tuple[int, int]] = {}
    skipped: list[Skip] = []
    flaw = ""
    reached = 0
    with file:
        end = file.seek(0, 2)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:", errorlevel=1, tarinfo=_Header) as tar:
                for member in tar:
                    if tar.offset <= reached or member.size < 0:
                        raise tarfile.HeaderError("a length below 0")
                    reached = tar.offset
                    if member.isdir():
                        continue
                    name = PurePosixPath(member.name).as_posix()
                    why = _flaw_of(member, name, end)
                    if not why and name in places:
                        why = "a second member of this name"
                    if why:
                        skipped.append(Skip(f"{path.name}/{_NO_TEXT.sub('?', member.name)}", why))
                    else:
                        places[name] = member.offset_data, member.size
                reached = tar.offset
                file.seek(reached)
                block = file.read(BLOCK)
                if len(block) < BLOCK or block.strip(b"\0"):
                    flaw = "no end mark"
        except (tarfile.TarError, *_OF_DAMAGED_HEADERS) as error:
            if not places and not skipped:
                raise ValueError(
                    f"{address_of(path)}: no tar ({error}); a compressed one gives no single pictures: unpack"
                    " it with gunzip, zstd or xz first"
                ) from error
            flaw = str(error)
    if flaw:
        skipped.append(
            Skip(path.name, f"damaged or cut off at byte {min(reached, end)} ({flaw}): the rest is left out")
        )
    return TarMembers(places, tuple(skipped))


# What tarfile lets through. None comes from a store: `read_with` has tried whether it gives parts.
_OF_DAMAGED_HEADERS = (ValueError, IndexError, OverflowError, RecursionError)


def _flaw_of(member: tarfile.TarInfo, name: str, end: int) -> str:
    if member.issym() or member.islnk():
        return "a link"
    if not member.isreg() or member.issparse():
        return "no plain file"
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or PureWindowsPath(name).root:
        return "the name is an absolute path"
    if ".." in PureWindowsPath(name).parts:  # takes both kinds of slash
        return "the name leads out of the tar"
    if _NO_TEXT.search(name):
        return "the name is no text"
    if member.offset_data + member.size > end:
        return f"cut off: got {max(0, end - member.offset_data)} of {member.size} bytes"
    return ""
