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
from stores.places import NO_RANGES, address_of, asked, file_of, is_remote, read_range

BLOCK = tarfile.BLOCKSIZE
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
    if is_remote(path):
        address = address_of(path)
        return asked(address, lambda store: _scan(path, store.open(address, "rb")))
    return _scan(path, path.open("rb"))


def _scan(path: Path, file: BinaryIO) -> TarMembers:
    places: dict[str, tuple[int, int]] = {}
    skipped: list[Skip] = []
    with file:
        if not file.seekable():
            raise ValueError(f"{address_of(path)}: {NO_RANGES}")
        end = file.seek(0, 2)
        file.seek(0)
        flaw = ""
        try:
            with tarfile.open(fileobj=file, mode="r:", errorlevel=1) as tar:
                for member in tar:
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
                file.seek(tar.offset)
                block = file.read(BLOCK)
                if len(block) < BLOCK or block.strip(b"\0"):
                    flaw = f"damaged or cut off at byte {tar.offset}: what follows is left out"
        except tarfile.TarError as error:
            if not places and not skipped:
                raise ValueError(
                    f"{address_of(path)}: no tar ({error}); a compressed one gives no single pictures: unpack"
                    " it with gunzip, zstd or xz first"
                ) from error
            flaw = f"cut off at byte {end}: what follows is left out"
    if flaw:
        skipped.append(Skip(path.name, flaw))
    return TarMembers(places, tuple(skipped))


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
