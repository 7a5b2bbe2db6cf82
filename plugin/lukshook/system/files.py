"""Reading a file that may be anything, and writing one so that no process ever sees half of it."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

#: What the kernel says where there is no direct I/O.
_NOT_DIRECT = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def read(file: Path, most: int) -> bytes:
    """The content of the regular file *file*, of at most *most* bytes. Raises OSError; never waits."""
    descriptor = os.open(file, os.O_PATH | os.O_CLOEXEC)
    try:
        return read_found(descriptor, most)
    finally:
        os.close(descriptor)


def read_found(found: int, most: int) -> bytes:
    """As `read`, for a file that was opened with O_PATH (open(2)), so that nothing but a regular file is opened."""
    kind = os.fstat(found).st_mode
    if not stat.S_ISREG(kind):
        code = errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL
        raise OSError(code, os.strerror(code) if code == errno.EISDIR else "it is not a regular file")
    descriptor = os.open(f"/proc/self/fd/{found}", _READ)
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most} bytes")
    return content


def past_the_cache(file: str | Path) -> int:
    """A descriptor to read *file* with that no page cache of this host answers; its reads are aligned to pages.

    Where a file system has no direct I/O, the kernel is asked to forget the pages of the file (posix_fadvise(2)). It
    forgets those that are written out. Raises OSError.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(file, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno not in _NOT_DIRECT:
            raise
    descriptor = os.open(file, flags)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return descriptor


def read_past_the_cache(descriptor: int, place: memoryview | mmap.mmap, offset: int) -> int:
    """Read from a descriptor of `past_the_cache` into *place*; how many bytes. Raises OSError.

    Some file systems accept the flag when they open a file and refuse to read with it: from then on it does without.
    """
    try:
        return os.preadv(descriptor, [place], offset)
    except OSError as error:
        if error.errno not in _NOT_DIRECT:
            raise
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if flags & os.O_DIRECT:  # otherwise another thread has done it
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return os.preadv(descriptor, [place], offset)


def write_whole(
    file: Path,
    content: bytes | Callable[[int], None],
    *,
    durable: bool,
    mode: int = 0o600,
    replace: bool = True,
) -> None:
    """Write *file* so that a reader, or the next boot (*durable*), sees the old content or the new, nothing between.

    *content* is written, or called with the descriptor to write to. Without *replace* a file that is there stays, and
    FileExistsError is raised. Raises OSError.
    """
    folder = os.open(file.parent, _FOLDER)
    try:
        write_within(folder, file.name, content, durable=durable, mode=mode, replace=replace)
    finally:
        os.close(folder)


def write_within(
    folder: int,
    name: str,
    content: bytes | Callable[[int], None],
    *,
    durable: bool,
    mode: int = 0o600,
    replace: bool = True,
) -> None:
    """As `write_whole`, for the file *name* in the open folder *folder*.

    It is written under a name that was not used before, so no other process has it open and no link is followed.
    """
    if durable:
        _remove_leftovers(folder, name)
    fresh = f"{name}.{os.urandom(4).hex()}.part"
    descriptor = os.open(fresh, _WRITE, 0o600, dir_fd=folder)
    try:
        _fill(descriptor, content, mode, durable=durable)
        if replace:
            os.replace(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
        else:
            os.link(fresh, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            os.unlink(fresh, dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(fresh, dir_fd=folder)
        raise
    if durable:
        os.fsync(folder)


def _fill(descriptor: int, content: bytes | Callable[[int], None], mode: int, *, durable: bool) -> None:
    with os.fdopen(descriptor, "wb") as out:
        os.fchmod(descriptor, mode)
        if callable(content):
            content(descriptor)
        else:
            out.write(content)
            out.flush()
        if durable:
            os.fsync(descriptor)


def _remove_leftovers(folder: int, name: str) -> None:
    """Remove what a writer of the same file has left that was killed. Callers lock what several may write."""
    leftover = re.compile(re.escape(name) + r"\.[0-9a-f]{8}\.part")
    for entry in os.listdir(folder):
        if leftover.fullmatch(entry):
            os.unlink(entry, dir_fd=folder)


def write_new(file: Path, content: bytes) -> bool:
    """Write a new file that is its owner's alone, durable; what cannot be written whole is removed. Raises OSError.

    Needs no links, which file systems of memory sticks lack. False where others can read it all the same: those
    file systems keep no modes.
    """
    descriptor = os.open(file, _WRITE, 0o600)
    try:
        _fill(descriptor, content, 0o600, durable=True)
        sync_folder(file.parent)
    except BaseException:
        with suppress(OSError):
            file.unlink()
        raise
    return not file.lstat().st_mode & 0o077


def rename(fresh: Path, file: Path) -> None:
    """Give *fresh*, in the same folder, the name *file*, so that it outlives a power cut. Raises OSError."""
    fresh.replace(file)
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in *folder* outlive a power cut. Raises OSError."""
    descriptor = os.open(folder, _FOLDER)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
