"""Reading in a volume that is open for a drill: which files there are, some of them by chance, and what is in them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import SystemRandom
from typing import TypeVar

from attrs import frozen

from lukshook.system import signals

_BLOCK = 1 << 20
#: Seconds: a file system may keep times no finer than that.
_COARSE = 2
_Item = TypeVar("_Item")


@frozen
class File:
    """A file below a folder: its path from there, and bytes and time (seconds) as they were seen."""

    path: str
    size: int
    changed: int


def files_in(root: Path, fault: Callable[[str], None]) -> Iterator[File]:
    """Every regular file below *root*; no link is followed. *fault* gets what cannot be read."""
    left = [""]
    while left:
        folder = left.pop()
        signals.check()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    path = os.path.join(folder, entry.name)  # noqa: PTH118 - a Path for each is slow
                    if entry.is_dir(follow_symlinks=False):
                        left.append(path)
                    elif entry.is_file(follow_symlinks=False):
                        found = entry.stat(follow_symlinks=False)
                        yield File(path, found.st_size, int(found.st_mtime))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # deeper than a path can be, and no damage
                fault(f"{folder or 'the root folder'} in the volume cannot be read: {error.strerror}")


def sample(items: Iterable[_Item], count: int) -> tuple[list[_Item], int]:
    """At most *count* of *items*, each with the same chance, and how many there were (Vitter's algorithm R)."""
    chosen: list[_Item] = []
    chance, seen = SystemRandom(), 0
    for seen, item in enumerate(items, 1):
        if len(chosen) < count:
            chosen.append(item)
        elif (place := chance.randrange(seen)) < count:
            chosen[place] = item
    return chosen, seen


def read_whole(path: Path) -> int:
    """Read all of a file; its bytes. Raises OSError."""
    descriptor = _opened(path)
    try:
        total = 0
        while part := os.read(descriptor, _BLOCK):
            signals.check()
            total += len(part)
        return total
    finally:
        os.close(descriptor)


def is_unchanged(path: Path, as_in: File) -> bool:
    """Whether the regular file *path* has the size and time of *as_in*, in whole seconds."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and (found.st_size, int(found.st_mtime)) == (as_in.size, as_in.changed)


def is_wrong_size(path: Path, as_in: File, before: float | None) -> bool:
    """Whether *as_in*, in a volume, has not the size of the regular file *path* although that has not changed since.

    What was written in the volume after *path* changed last is a copy of it as it is now. So is what has its time,
    where it has not changed since *before*, a moment before the last backup (None: not known).
    """
    try:
        found = path.lstat()
    except OSError:
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_size == as_in.size:
        return False
    changed = max(found.st_mtime, found.st_ctime)
    later = as_in.changed > changed + _COARSE
    same = int(found.st_mtime) == as_in.changed and before is not None and changed < before
    return later or same


def differs(path: Path, source: Path) -> bool:
    """Whether two files have different contents. Raises OSError, with the name of the one that cannot be read."""
    one, other = _opened(path), -1
    try:
        other = _opened(source)
        while True:
            signals.check()
            mine, theirs = _block(one, path), _block(other, source)
            if mine != theirs:
                return True
            if not mine:
                return False
    finally:
        os.close(one)
        if other >= 0:
            os.close(other)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _block(descriptor: int, path: Path) -> bytes:
    parts, left = [], _BLOCK
    try:
        while left and (part := os.read(descriptor, left)):
            parts.append(part)
            left -= len(part)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    return b"".join(parts)
