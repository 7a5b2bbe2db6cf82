"""The folder inside a volume that backups are pointed to, and the root of an open volume."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from lukshook.config import DATA_FOLDER, Volume
from lukshook.errors import Refused, Unavailable
from lukshook.system import kernel

#: Mode of the folder for backups where the configuration names none: of an image that has no mode of its own.
DEFAULT_MODE = 0o700


def check_data(volume: Volume) -> None:
    """Check that what backups are pointed to, if it is there, is a folder and leads nowhere else. Raises `Refused`."""
    try:
        kind = volume.data.lstat().st_mode
    except FileNotFoundError:
        return
    except PermissionError:
        raise  # ours to get, and no damage
    except OSError as error:
        raise Refused(
            f"the file system of volume {volume.name} is damaged: {volume.data} cannot be read: {error.strerror}",
            hint="copy the image first, then repair the file system by hand: docs/recovery.md",
        ) from error
    if not stat.S_ISLNK(kind) and not stat.S_ISDIR(kind):
        raise Refused(
            f"{volume.data} in volume {volume.name} is not a folder",
            hint="a backup cannot be written there; open the volume by hand elsewhere and look (docs/recovery.md)",
        )
    if stat.S_ISLNK(kind):
        raise Refused(
            f"{volume.data} in volume {volume.name} is a symbolic link",
            hint="what is backed up there would go elsewhere, in the clear; open it by hand elsewhere and look",
        )


def make_data(volume: Volume) -> None:
    """Make the folder that backups are pointed to, with the volume's mode, where an open volume has none.

    One that is there belongs to its user and stays as it is. Raises `Refused` (a link), `Unavailable`.
    """
    check_data(volume)
    mode = volume.mount.mode or DEFAULT_MODE
    with root_of(volume) as root:
        try:
            os.mkdir(DATA_FOLDER, mode, dir_fd=root)
        except FileExistsError:
            return
        os.chmod(DATA_FOLDER, mode, dir_fd=root)  # whatever the umask is


@contextmanager
def root_of(volume: Volume) -> Iterator[int]:
    """A descriptor of the root folder of an open volume. Raises `Unavailable` where it is not at its mount point."""
    found = kernel.mount_at(volume.mountpoint)
    try:
        if found is None:
            raise OSError(errno.ESTALE, "nothing is mounted there now")
        descriptor = kernel.enter(found)
    except OSError as error:
        raise Unavailable(
            f"volume {volume.name} cannot be accessed at {volume.mountpoint}: {error.strerror}",
            hint=f"was it unmounted or moved at the same time? lukshook status {volume.name}",
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_root(volume: Volume, root: int) -> bool:
    """Whether the mount point still shows the volume whose root folder is open."""
    try:
        return os.path.samestat(os.stat(volume.mountpoint), os.fstat(root))
    except OSError:
        return False
