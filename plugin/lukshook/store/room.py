"""What an image takes from its store, and what the store still has room for. This is measured here only."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from attrs import evolve, frozen

from lukshook import size
from lukshook.errors import Unavailable
from lukshook.store.image_file import ImageFile, look_at, open_folder
from lukshook.system import caller_limits

#: Bytes that have to stay free on the store: journals and metadata of the store's own file system.
RESERVE = 16 * 1024 * 1024


@frozen(repr=False)
class Room:
    """Sizes in bytes: *length* and *allocated* of the image, *free* and *total* of its store.

    *free* is what a user like us can still use. Both are None for a block device, which lies on no store.
    """

    length: int
    allocated: int
    free: int | None
    total: int | None

    @property
    def block(self) -> bool:
        """Whether the image is a block device."""
        return self.free is None

    @property
    def holes(self) -> int:
        """Bytes that the image may still take from its store at its present length."""
        return 0 if self.block else max(self.length - self.allocated, 0)

    @property
    def may_run_out(self) -> bool:
        """Whether the image may take more from its store than the store has."""
        return self.free is not None and self.holes > self.free

    def check(self, target: int, *, sparse: bool) -> None:
        """Check that the store can hold the image once it has *target* bytes. Raises `Unavailable`.

        *sparse*: the holes that the image has now do not have their blocks yet.
        """
        if self.free is None:
            _check_device(target, self.length)
            return
        needed = target - self.length + (self.holes if sparse else 0)
        if target > self.length and needed + RESERVE > self.free:
            raise Unavailable(
                f"the store has {size.show(self.free)} free, an image of {size.show(target)} needs {size.show(needed)}"
                f", and {size.show(RESERVE)} must stay free",
                hint="free space there, or use a smaller size (max: all that fits); "
                'fill = "sparse" with space = "warn" can fill the store up later',
            )


def _check_device(target: int, length: int) -> None:
    if target > length:
        raise Unavailable(
            f"the device has {size.show(length)}, not {size.show(target)}",
            hint="let the device grow first (lvextend), then use: max",
        )


def of(image: ImageFile) -> Room:
    """The room of an open image. Raises OSError."""
    length = image.size
    return Room(length, length, None, None) if image.block else evolve(through(image.descriptor), length=length)


def through(descriptor: int) -> Room:
    """The room of the regular file behind *descriptor*, which may be an O_PATH one. Raises OSError."""
    found, store = os.fstat(descriptor), os.fstatvfs(descriptor)
    if not store.f_blocks:  # a file system of FUSE that does not say
        return Room(found.st_size, found.st_size, None, None)
    return Room(found.st_size, found.st_blocks * 512, store.f_bavail * store.f_frsize, store.f_blocks * store.f_frsize)


def at(path: Path) -> Room:
    """The room of the image *path*; only a block device is opened for that. Raises OSError, `LukshookError`."""
    with look_at(path) as image:
        return of(image)


def of_new(path: Path) -> Room:
    """The room for an image that is to be made at *path*. Raises OSError, `Refused`."""
    folder = open_folder(path.parent)
    try:
        store = os.fstatvfs(folder)
    finally:
        os.close(folder)
    return Room(0, 0, store.f_bavail * store.f_frsize, store.f_blocks * store.f_frsize)


def check_limit(path: Path, length: int) -> None:
    """Check that this process may write a file of *length* bytes: it is killed where it goes past its limit.

    Raises `Unavailable`.
    """
    most = caller_limits.file_size()
    if most is not None and length > most:
        raise Unavailable(
            f"only files of up to {size.show(most)} may be written, and the image {path} needs {size.show(length)}",
            hint="raise the limit: ulimit -f unlimited, or LimitFSIZE=infinity in a unit",
        )


def check_length(image: ImageFile, target: int) -> None:
    """Check that the image can be so long: the store and this process have a largest file. Raises `Unavailable`.

    lseek(2) fails beyond the largest file of the store's file system (fs/read_write.c). A network or FUSE server may
    have a smaller limit, which shows only when the file is extended.
    """
    if not stat.S_ISREG(os.fstat(image.descriptor).st_mode):
        return
    check_limit(image.path, target)
    try:
        os.lseek(image.descriptor, target, os.SEEK_SET)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.EOVERFLOW, errno.EFBIG):
            raise
        raise too_large(image.path, target) from error


def too_large(path: Path, length: int) -> Unavailable:
    """What is said where the store, or the limit of this process (setrlimit(2)), has no files of *length* bytes."""
    return Unavailable(
        f"{path} cannot have {size.show(length)}: the store, or a limit of this process, allows no file of that size",
        hint="use a smaller size, or a store with larger files (FAT: 4 GiB, ext4: 16 TiB); see also: ulimit -f",
    )
