"""A target at a path: another disk, or a store that is mounted. Its folder is opened once, without another's links."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from lukshook.errors import Refused, Unavailable
from lukshook.store.image_file import LOCKED, identity, locked_by_others, open_folder
from lukshook.store.target import TargetFile
from lukshook.system import libc
from lukshook.system.command import descriptor_path

_FICLONE = 0x40049409  # linux/fs.h
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: What a store says that has no such call, or not between these files.
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EPERM, errno.ETXTBSY)


class LocalFile:
    """An open regular file."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def close(self) -> None:
        """Close it."""
        os.close(self.descriptor)

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return os.fstat(self.descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """What lies there; shorter only at the end of the file."""
        found = os.pread(self.descriptor, length, offset)
        while 0 < len(found) < length:
            more = os.pread(self.descriptor, length - len(found), offset + len(found))
            if not more:
                break
            found += more
        return found

    def write(self, offset: int, content: bytes | memoryview) -> None:
        """Write all of *content* there."""
        rest = memoryview(content)
        while rest:
            done = os.pwrite(self.descriptor, rest, offset)
            offset, rest = offset + done, rest[done:]

    def clear(self, offset: int, length: int) -> None:
        """Make a hole there, or write zeros where the store has no holes."""
        try:
            libc.punch_hole(self.descriptor, offset, length)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            self.write(offset, bytes(length))

    def resize(self, size: int) -> None:
        """Cut it off, or extend it with a hole."""
        os.ftruncate(self.descriptor, size)

    def take(self, source: TargetFile, start: int, offset: int, length: int) -> bool:
        """Let the kernel copy, or the server (copy_file_range(2): NFS 4.2, SMB 3)."""
        if not isinstance(source, LocalFile):
            return False
        while length:
            try:
                done = os.copy_file_range(source.descriptor, self.descriptor, length, start, offset)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                return False
            if not done:
                return False
            start, offset, length = start + done, offset + done, length - done
        return True

    def data(self, start: int) -> int:
        """Where the next data begin (lseek(2), SEEK_DATA)."""
        try:
            return os.lseek(self.descriptor, start, os.SEEK_DATA)
        except OSError as error:
            return self.size if error.errno == errno.ENXIO else start

    def sync(self) -> None:
        """Write it out, and forget the pages that this host keeps of it (posix_fadvise(2))."""
        os.fsync(self.descriptor)
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


class LocalTarget:
    """The folder of *path*, which is open until the end of a `with` block. Raises as `open_folder` does."""

    shows_neighbours = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.shown = os.fspath(path)
        try:
            self._folder = open_folder(path.parent)
        except FileNotFoundError as error:
            raise Unavailable(
                f"the folder of the copy {path} is not there", hint="is its disk or store mounted?"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._folder)

    def plan(self, size: int, spare: str) -> None:
        """There is room, or not."""

    def is_same_file(self, other: int) -> bool:
        """Whether the replica is the open file *other*."""
        try:
            found = os.stat(self.name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return identity(found) == identity(os.fstat(other))

    def open(self, name: str, *, writable: bool) -> LocalFile:
        """Open a regular file; it is judged before it is opened, and locked where it is to be written."""
        found = os.open(name, _LOOK, dir_fd=self._folder)
        try:
            if not stat.S_ISREG(os.fstat(found).st_mode):
                raise Refused(
                    f"{self.path.parent / name} is not a regular file",
                    hint="a copy is a regular file: name another path",
                )
            mode = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(descriptor_path(found), mode)
        finally:
            os.close(found)
        if writable:
            self._lock(descriptor, name)
        return LocalFile(descriptor)

    def _lock(self, descriptor: int, name: str) -> None:
        """Keep out who uses the replica as an image; a store without locks has none to keep."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except LOCKED as error:
            os.close(descriptor)
            raise locked_by_others(os.fspath(self.path.parent / name)) from error
        except OSError:
            return

    def create(self, name: str) -> LocalFile:
        """Make a new, empty file that only its owner can read."""
        return LocalFile(os.open(name, _NEW, 0o600, dir_fd=self._folder))

    def claim(self) -> None:
        """Each file is locked when it is opened for writing."""

    def clone(self, name: str, fresh: str) -> bool:
        """Share the blocks (FICLONE: btrfs, xfs, bcachefs, NFS 4.2)."""
        source = self.open(name, writable=False)
        try:
            copy = self.create(fresh)
            try:
                fcntl.ioctl(copy.descriptor, _FICLONE, source.descriptor)
            finally:
                copy.close()
        except OSError as error:
            with suppress(OSError):
                self.unlink(fresh)
            if error.errno not in _CANNOT:
                raise
            return False
        finally:
            source.close()
        return True

    def exists(self, name: str) -> bool:
        """Whether anything lies there."""
        try:
            os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def rename(self, name: str, wanted: str) -> None:
        """By rename(2), which is atomic."""
        os.rename(name, wanted, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def unlink(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._folder)

    def sync_folder(self) -> None:
        """By fsync(2) of the folder."""
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def taken(self, size: int, fresh: int) -> int:
        """Holes take no room."""
        return fresh

    def free(self) -> int | None:
        """What a user like us can still use (statvfs(3))."""
        found = os.fstatvfs(self._folder)
        return found.f_bavail * found.f_frsize
