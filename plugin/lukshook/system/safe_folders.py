"""Folders that are reached by a path which no other user can change: each part is opened once and checked.

The rule is that of sshd(8) for ChrootDirectory, extended by sticky folders such as /tmp: only root or the caller may
own a folder on the path; where others can write to a folder, it has to be sticky and the entry in it has to belong to
root or the caller (inode(7): no other user can rename or remove it then). An ordinary user may share folders with a
group: many systems give each user a group of their own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from lukshook.system.path_walk import walk


class Unsafe(Exception):
    """Another user can change where the path leads; its text says where and why."""


class IsLink(Exception):
    """The last part of the path is a symbolic link."""


@frozen(eq=False, repr=False)
class Folder:
    """An open folder: it stays the same one, whatever is renamed around it. *path*: where the kernel says it lies."""

    descriptor: int
    path: Path

    @property
    def inside(self) -> str:
        """A path to it, for this process and for a tool that inherits the descriptor. Its last part is not a link."""
        return f"/proc/self/fd/{self.descriptor}/."


@contextlib.contextmanager
def opened(path: Path, *, make: int | None = None) -> Iterator[Folder]:
    """Open the folder *path* part by part (O_PATH). Links above it are followed where no other user can change them.

    *make*: folders that are missing are made with this mode. Raises `Unsafe`, `IsLink`, OSError.
    """
    descriptor = _walk(path, make)
    try:
        yield Folder(descriptor, Path(os.readlink(f"/proc/self/fd/{descriptor}")))
    finally:
        os.close(descriptor)


def _walk(path: Path, make: int | None) -> int:
    """A descriptor of the folder at the end of *path*."""
    others_write = False
    for part in walk(path, make=make):
        if others_write and part.name != ".." and not _is_trusted(part.found.st_uid):
            raise Unsafe(
                f"{_where(part.descriptor)} belongs to user {part.found.st_uid}, and its folder is open to all"
            )
        if part.is_link:
            if part.last:
                raise IsLink
            continue
        if not part.is_folder:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), _where(part.descriptor))
        if part.last:
            return part.keep()
        others_write = _others_write(part.descriptor)
    raise AssertionError("a path has a last part")


def _others_write(folder: int) -> bool:
    """Whether other users can write to the folder, which is sticky then. Raises `Unsafe`."""
    found = os.fstat(folder)
    if not _is_trusted(found.st_uid):
        raise Unsafe(f"{_where(folder)} belongs to user {found.st_uid}")
    wide = found.st_mode & (stat.S_IWOTH if os.geteuid() else stat.S_IWGRP | stat.S_IWOTH)
    if wide and not found.st_mode & stat.S_ISVTX:
        raise Unsafe(f"{_where(folder)} can be written to by {'all' if wide & stat.S_IWOTH else 'its group'}")
    return bool(wide)


def _is_trusted(owner: int) -> bool:
    return owner in (0, os.geteuid())


def _where(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")
