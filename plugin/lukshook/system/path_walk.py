"""A path, part by part: each part is looked up once, in the folder that was opened before it, and judged there.

What a path means can change between two looks at it. Here it is walked once, from "/" on, and the caller decides
at each part whether to continue.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from attrs import frozen

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40  # as many as the kernel follows (path_resolution(7))


@frozen(eq=False, repr=False)
class Part:
    """A folder, link or file on the way, opened with O_PATH (open(2)), which opens nothing but a name for it.

    *name*: within the folder before it. *place*: how the walk has reached it. *last*: nothing of the path is left.
    *descriptor* is closed when the walk continues; `keep` makes another.
    """

    name: str
    place: str
    descriptor: int
    found: os.stat_result
    last: bool

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link; the walk follows it when it continues."""
        return stat.S_ISLNK(self.found.st_mode)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.found.st_mode)

    def keep(self) -> int:
        """A second descriptor of the part, which the caller closes."""
        return os.dup(self.descriptor)


def walk(path: Path, *, make: int | None = None) -> Iterator[Part]:
    """The parts of *path* from "/" on; a link is followed when the caller asks for the next part.

    *make*: folders that are missing are made with this mode. Raises OSError, also for a path that is not absolute.
    """
    if not path.is_absolute():
        raise OSError(errno.EINVAL, "it is not an absolute path", os.fspath(path))
    here, place, links = -1, "/", 0
    left = list(reversed(path.parts))
    try:
        while left:
            name = left.pop()
            entry = _open("/", None, None) if name == "/" else _open(name, here, make)
            reached = os.path.normpath(os.path.join(place, name))  # noqa: PTH118 - `status` walks thousands of paths
            part = Part(name, reached, entry, os.fstat(entry), not left)
            try:
                yield part
                if part.is_link:
                    links += 1
                    if links > _MOST_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
                    left += reversed(Path(os.readlink("", dir_fd=entry)).parts or (".",))
            except BaseException:
                os.close(entry)
                raise
            if part.is_link:
                os.close(entry)
                continue
            if here >= 0:
                os.close(here)
            here, place = entry, reached
    finally:
        if here >= 0:
            os.close(here)


def ways(path: str) -> Iterator[str]:
    """The folders above *path*, which is absolute and has no dots in it, from "/" on, and *path*: looks up nothing."""
    return (way or "/" for way in accumulate(path.rstrip("/").split("/"), "{}/{}".format))


def _open(name: str, folder: int | None, make: int | None) -> int:
    try:
        return os.open(name, _LOOK, dir_fd=folder)
    except FileNotFoundError:
        if make is None:
            raise
    with contextlib.suppress(FileExistsError):  # made at the same moment
        os.mkdir(name, make, dir_fd=folder)
    return os.open(name, _LOOK, dir_fd=folder)
