"""Copies of the image that others have taken, such as a provider's snapshots: found by a pattern, never changed.

Names on a store are the store's word. Each part of the pattern is looked up in the folder that was opened before it,
and no link is followed from the first wildcard on.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from lukshook.store.image_file import open_listed
from lukshook.system.text import fault_of_path

_ENTER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_WILD = re.compile(r"[*?[]")
#: Entries of one folder that are looked at; a store could show without end.
_MOST = 100_000


@frozen
class Copy:
    """A regular file that the pattern has found: its path, and when it was written last, as the store says."""

    path: str
    written: float


def fixed_part(pattern: str) -> Path:
    """The folders of *pattern* before its first wildcard."""
    parts = Path(pattern).parts
    wild = next((number for number, part in enumerate(parts) if _WILD.search(part)), len(parts))
    return Path(*parts[: min(wild, len(parts) - 1)])


def copies(pattern: str) -> Iterator[Copy]:
    """What matches *pattern*, in no order. Raises OSError, `Refused` for the folders before the first wildcard."""
    start = fixed_part(pattern)
    folder = open_listed(start)
    try:
        yield from _below(folder, start, Path(pattern).parts[len(start.parts) :])
    finally:
        os.close(folder)


def _below(folder: int, place: Path, left: tuple[str, ...]) -> Iterator[Copy]:
    """What matches the parts *left* in an open folder. What cannot be opened does not match."""
    for name in _names(folder, left[0]):
        path = place / name
        if fault_of_path(os.fspath(path)):
            continue  # no command takes such a path
        try:
            entry = os.open(name, _ENTER if left[1:] else _LOOK, dir_fd=folder)
        except OSError:
            continue
        try:
            if left[1:]:
                yield from _below(entry, path, left[1:])
            elif stat.S_ISREG((found := os.fstat(entry)).st_mode):
                yield Copy(os.fspath(path), found.st_mtime)
        finally:
            os.close(entry)


def _names(folder: int, part: str) -> Iterator[str]:
    """The names in *folder* that match *part*; as in a shell, a wildcard does not match a dot at the beginning."""
    if not _WILD.search(part):
        yield part
        return
    try:
        with os.scandir(folder) as entries:
            for _, entry in zip(range(_MOST), entries, strict=False):
                hidden = entry.name.startswith(".") and not part.startswith(".")
                if not hidden and fnmatch.fnmatchcase(entry.name, part):
                    yield entry.name
    except OSError:
        return
