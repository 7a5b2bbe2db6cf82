"""The image of a volume: opened once, without following links, judged, and then used through that descriptor alone.

The owner of an image's folder can replace the image at any moment. So no path is looked up twice: what was
judged is what is used.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import stat
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from attrs import evolve, frozen

from lukshook.errors import BadConfiguration, Denied, LukshookError, NoImage, Refused, Unavailable
from lukshook.store import liveness
from lukshook.system import kernel
from lukshook.system.command import Command, Result, Runner, change, descriptor_path
from lukshook.system.path_walk import walk

#: Seconds for writing out a file of the store, after the volume in it was written out.
SYNC_SECONDS = 1800.0
#: How flock(2) fails where somebody else has the lock: cifs passes on EACCES from its server.
LOCKED = (BlockingIOError, PermissionError)
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@frozen(repr=False)
class Identity:
    """Which image it is: the number of its file system (st_dev), or of the block device itself, and its inode."""

    device: int
    inode: int


def identity(found: os.stat_result) -> Identity:
    """The identity of what fstat(2) has found."""
    return Identity(found.st_rdev if stat.S_ISBLK(found.st_mode) else found.st_dev, found.st_ino)


class ImageFile:
    """An open image: a regular file on a store, or a block device.

    *folder* is a descriptor of the folder that the image lies in, *descriptor* one of the image itself. Both are
    closed at the end of a `with` block.
    """

    def __init__(self, path: Path, folder: int, descriptor: int) -> None:
        self.path = path
        self.folder = folder
        self.descriptor = descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.folder)
        with suppress(OSError) if error else nullcontext():  # a store reports again what *error* says already
            os.close(self.descriptor)

    @property
    def identity(self) -> Identity:
        """Which image it is."""
        return identity(os.fstat(self.descriptor))

    @property
    def block(self) -> bool:
        """Whether it is a block device."""
        return stat.S_ISBLK(os.fstat(self.descriptor).st_mode)

    @property
    def size(self) -> int:
        """Length in bytes."""
        try:
            return os.lseek(self.descriptor, 0, os.SEEK_END)
        except OSError:  # one of `look_at`
            return os.fstat(self.descriptor).st_size

    def let_go(self) -> None:
        """Keep nothing of the image open until `reopen`: both descriptors lead nowhere meanwhile."""
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.dup2(nothing, self.descriptor, inheritable=False)
            os.dup2(nothing, self.folder, inheritable=False)
        finally:
            os.close(nothing)

    def reopen(self) -> None:
        """Open for writing what is at the path now: the same image, shown again. Raises as `open_image` does."""
        with open_image(self.path, writable=True) as fresh:
            os.dup2(fresh.descriptor, self.descriptor, inheritable=False)
            os.dup2(fresh.folder, self.folder, inheritable=False)

    def again(self, *, writable: bool) -> int:
        """A second descriptor of this very image, with a file position, flags and flock(2) of its own.

        It is opened through the first one, so no path is looked up. Raises OSError.
        """
        return os.open(descriptor_path(self.descriptor), _mode(writable=writable))

    def run(self, command: Callable[[Path], Command], runner: Runner) -> Result:
        """Run a tool on the image. *command* makes the command for the path under which the tool finds it."""
        made = command(Path(descriptor_path(self.descriptor)))
        return runner.run(evolve(made, fds=(*made.fds, self.descriptor)))

    def sync(self) -> None:
        """Wait until all of the image is on the store. Raises OSError, `TimedOut` when the store dies meanwhile."""
        typed = change("sync", "--", os.fspath(self.path), timeout=SYNC_SECONDS)
        liveness.call(os.fsync, self.descriptor, typed)

    def run_in_folder(self, command: Callable[[Path], Command], runner: Runner) -> Result:
        """Run a tool in the folder of the image. *command* makes the command for the path of that folder."""
        made = command(Path(descriptor_path(self.folder)))
        return runner.run(evolve(made, fds=(*made.fds, self.folder)))

    def remove(self, name: str) -> None:
        """Remove *name* from the folder of the image, where it leads to this very image. Raises OSError."""
        if self.is_named(name):
            os.unlink(name, dir_fd=self.folder)

    def is_locked(self) -> bool:
        """Whether another process has a lock on the image against us (flock(2)); False where a store has no locks.

        Takes the lock for a moment. The image has to be open for writing.
        """
        descriptor = self.again(writable=True)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, LOCKED)
        else:
            return False
        finally:
            os.close(descriptor)

    def sync_folder(self) -> None:
        """Make the names in the folder of the image outlive a power cut. Raises OSError."""
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.folder)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def is_named(self, name: str) -> bool:
        """Whether *name*, in the folder of the image, leads to this very image."""
        try:
            return identity(os.stat(name, dir_fd=self.folder, follow_symlinks=False)) == self.identity
        except OSError:
            return False


def locked_by_others(path: str) -> Unavailable:
    """The error for an image *path* that another process has locked."""
    return Unavailable(
        f"another process or host has {path} open: it is locked",
        hint="another host, or another lukshook on this host; wait until it closes the image",
    )


def may_be_device(path: Path) -> bool:
    """Whether *path* may name a block device. What lies on a store is a file, whatever the store has put there."""
    return f"{os.path.normpath(path)}/".startswith("/dev/")


def node_of(path: Path) -> Path:
    """The device that *path* in /dev leads to by a link of root's, such as LVM's /dev/VG/LV; other paths as they are.

    A user can make links in /dev/shm: those stay, and are refused like all others.
    """
    if not may_be_device(path):
        return path
    try:
        rooted = os.lstat(path).st_uid == 0
        found = Path(os.path.realpath(path))
        return found if rooted and may_be_device(found) and stat.S_ISBLK(os.lstat(found).st_mode) else path
    except OSError:
        return path


def open_image(path: Path, *, writable: bool) -> ImageFile:
    """Open the image *path*, after it was judged without opening it: a tape would rewind, a pipe would wait.

    Raises `Unavailable`, `Denied`, `BadConfiguration`, `Refused` (a block device where none is meant).
    """
    return _open_as(path, _mode(writable=writable))


def look_at(path: Path) -> ImageFile:
    """The image *path* for asking the kernel about it, judged as by `open_image`; needs no permission to read it.

    Only a block device is really opened: nothing else tells its length. Raises as `open_image` does.
    """
    return _open_as(path, None)


def _open_as(named: Path, mode: int | None) -> ImageFile:
    path = node_of(named)
    folder = _folder_of(path)
    try:
        return ImageFile(path, folder, _open_judged(path, folder, mode))
    except BaseException:
        os.close(folder)
        raise


def look(path: Path) -> os.stat_result:
    """What lies at *path*, without opening it or following a link there (but `node_of`). Raises OSError."""
    path = node_of(path)
    folder = open_folder(path.parent)
    try:
        return os.stat(path.name, dir_fd=folder, follow_symlinks=False)
    finally:
        os.close(folder)


def remove(path: Path) -> None:
    """Remove *path*, whatever it is, from its folder. Raises OSError, `Refused`."""
    folder = open_folder(path.parent)
    try:
        os.unlink(path.name, dir_fd=folder)
    finally:
        os.close(folder)


def new_image(path: Path) -> ImageFile:
    """Make the image *path*, an empty file that only this user can read. Raises `Unavailable`, `Denied`."""
    folder = _folder_of(path)
    try:
        made = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return ImageFile(path, folder, os.open(path.name, made, 0o600, dir_fd=folder))
    except OSError as error:
        os.close(folder)
        raise Unavailable(
            f"the image {path} cannot be created: {error.strerror}", hint="is the store writable?"
        ) from error


def _folder_of(path: Path) -> int:
    try:
        return open_folder(path.parent)
    except FileNotFoundError as error:
        raise NoImage(f"the image {path}, and its folder too, is not there", hint="is the store mounted?") from error
    except OSError as error:
        raise _cannot_open(path, error) from error


def open_folder(path: Path) -> int:
    """A descriptor (O_PATH) of the folder *path*. The caller closes it.

    Links are followed only where they belong to root or to this user: another user could turn theirs at any moment, and
    a store must not lead root elsewhere. Raises OSError, `Refused` (another user's link).
    """
    for part in walk(path):
        if part.is_link and part.found.st_uid not in (0, os.geteuid()):
            raise Refused(
                f"the path {path} goes through {part.name}, a symbolic link that another user owns "
                f"(user ID {part.found.st_uid})",
                hint="that user could point it to any place; use the path without the link",
            )
        if not part.is_link and not part.is_folder:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path))
        if part.last and part.is_folder:
            return part.keep()
    raise AssertionError("a path has a last part")


def open_listed(path: Path) -> int:
    """As `open_folder`, with a descriptor that can be read: what is in the folder, and what the kernel says of it."""
    found = open_folder(path)
    try:
        return os.open(descriptor_path(found), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(found)


def _open_judged(path: Path, folder: int, mode: int | None) -> int:
    """Check what is there by a descriptor that opens nothing (O_PATH, open(2)), then open that very file.

    *mode* None: leave it at that descriptor, except for a block device.
    """
    try:
        found = os.open(path.name, _LOOK, dir_fd=folder)
    except FileNotFoundError as error:
        raise NoImage(f"the image {path} is not there", hint="is the store mounted?") from error
    except OSError as error:
        raise _cannot_open(path, error) from error
    try:
        kind = os.fstat(found).st_mode
        _judge_kind(path, kind)
        if mode is None and stat.S_ISREG(kind):
            return os.dup(found)
        return os.open(descriptor_path(found), _mode(writable=False) if mode is None else mode)
    except PermissionError as error:
        raise _denied(path, found) from error
    except OSError as error:
        raise _cannot_open(path, error) from error
    finally:
        os.close(found)


def _mode(*, writable: bool) -> int:
    return (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK


def _judge_kind(path: Path, kind: int) -> None:
    if stat.S_ISREG(kind) or (stat.S_ISBLK(kind) and may_be_device(path)):
        return
    if stat.S_ISBLK(kind):
        raise Refused(
            f"the image {path} is a block device outside /dev",
            hint="a store could use it to reach a disk of this machine; name your own device as /dev/...",
        )
    if stat.S_ISLNK(kind):
        raise BadConfiguration(
            f"the image {path} is a symbolic link",
            hint="a link on an untrusted store can lead anywhere: name the file itself",
        )
    if stat.S_ISDIR(kind):
        raise BadConfiguration(f"the image {path} is a folder", hint="name a file in it")
    raise BadConfiguration(
        f"the image {path} is neither a regular file nor a block device",
        hint="a pipe or device on an untrusted store can hang or do harm: name the file itself",
    )


def _cannot_open(path: Path, error: OSError) -> LukshookError:
    if isinstance(error, PermissionError):
        return _denied(path)
    return Unavailable(
        f"the image {path} cannot be opened: {error.strerror}", hint="is the store mounted and writable?"
    )


def _denied(path: Path, found: int | None = None) -> Denied:
    """Why the image, an O_PATH descriptor *found*, may not be opened: a flag keeps root out as well."""
    flag = "" if found is None else _write_lock(found)
    if flag:
        return Denied(
            f"the image {path} is {'immutable' if flag == 'i' else 'append-only'}",
            hint=f"chattr -{flag} {shlex.quote(os.fspath(path))}",
        )
    as_root = "does the store deny root access: NFS with root_squash, SELinux, AppArmor?"
    as_a_user = "run as root, or as the image's owner with the userspace engine"
    return Denied(f"the image {path} cannot be opened: permission denied", hint=as_a_user if os.geteuid() else as_root)


def _write_lock(found: int) -> str:
    try:
        readable = os.open(descriptor_path(found), _mode(writable=False))
    except OSError:
        return ""
    try:
        return kernel.write_lock(readable)
    finally:
        os.close(readable)
