"""The bare mount point: nothing must be written there while the volume is closed, not even by root."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from lukshook import kernel
from lukshook.command import CommandFailed, Runner, change
from lukshook.errors import BadConfiguration, LukshookError, Unavailable


def check_bare(mountpoint: Path, runner: Runner) -> None:
    """See that the mount point is a real, empty folder with nothing mounted on it but our own guard.

    Raises `BadConfiguration` (missing, a link, no folder, not empty) or `Unavailable` (something mounted there).
    """
    mount = covering(mountpoint)
    if mount is not None:
        raise Unavailable(
            f"{mountpoint} has {mount.source} mounted on it, which is not ours",
            hint=f"look at it with: findmnt {mountpoint}",
        )
    try:
        found = mountpoint.lstat()
    except FileNotFoundError as error:
        raise BadConfiguration(f"the mount point {mountpoint} does not exist", hint=f"mkdir -p {mountpoint}") from error
    except OSError as error:
        raise Unavailable(
            f"the mount point {mountpoint} cannot be looked at: {error.strerror}",
            hint=f"a mount whose server died? try: fusermount3 -u {mountpoint}",
        ) from error
    if stat.S_ISLNK(found.st_mode):
        raise BadConfiguration(f"the mount point {mountpoint} is a symbolic link", hint="name the folder itself")
    if not stat.S_ISDIR(found.st_mode):
        raise BadConfiguration(f"the mount point {mountpoint} is not a folder", hint="name an empty folder")
    first = next(iter(sorted(os.listdir(mountpoint))), None)
    if first is not None:
        raise BadConfiguration(
            f"the mount point {mountpoint} is not empty while the volume is closed: {first}",
            hint="that may be an unencrypted backup from a run without the volume; move it away",
        )


def covering(mountpoint: Path) -> kernel.Mount | None:
    """What is mounted at the mount point, other than our own guard, or None."""
    mount = kernel.mount_at(mountpoint)
    if mount is None or _is_guard(mount, mountpoint) or _is_half_made(mount, mountpoint):
        return None
    return mount


def is_guarded(mountpoint: Path) -> bool:
    """Whether a process, as far as the kernel can keep it from that, cannot write into the bare mount point."""
    mount = kernel.mount_at(mountpoint)
    if mount is not None and _is_guard(mount, mountpoint):
        return True
    if os.geteuid():
        return not mountpoint.lstat().st_mode & 0o222
    return kernel.is_immutable(mountpoint)


def _is_guard(mount: kernel.Mount, mountpoint: Path) -> bool:
    """Our read-only bind of the mount point on itself: its root is a folder of that name, and it is read-only."""
    return "ro" in mount.options and mount.root != "/" and mount.root.endswith("/" + mountpoint.name)


def _is_half_made(mount: kernel.Mount, mountpoint: Path) -> bool:
    """A bind of the mount point on itself that is still writable: of our two commands, the second was cut off."""
    outer = kernel.mount_above(mountpoint)
    if outer is None or mount.number != outer.number:
        return False
    return Path(mount.root) == Path(outer.root) / mountpoint.relative_to(outer.target)


def put(mountpoint: Path, runner: Runner) -> None:
    """Guard the bare mount point: immutable flag, else a read-only bind mount; a user's own folder gets mode 0500.

    Raises `Unavailable` where none of that works.
    """
    if is_guarded(mountpoint):
        return
    if os.geteuid():
        runner.run(change("chmod", "0500", os.fspath(mountpoint)))
        return
    try:
        runner.run(change("chattr", "+i", "--", os.fspath(mountpoint)))
    except (CommandFailed, Unavailable):
        _bind(mountpoint, runner)


def _bind(mountpoint: Path, runner: Runner) -> None:
    place = os.fspath(mountpoint)
    there = kernel.mount_at(mountpoint)
    try:
        if there is None or not _is_half_made(there, mountpoint):
            runner.run(change("mount", "--bind", "--", place, place))
        _finish(place, runner)
    except LukshookError as error:
        raise Unavailable(
            f"the mount point {mountpoint} cannot be guarded against writing: {error.message}",
            hint="use a mount point on a local file system that knows chattr +i",
        ) from error


def _finish(place: str, runner: Runner) -> None:
    """Make the bind read-only, or take it away again."""
    try:
        runner.run(change("mount", "--options-source=mtab", "-o", "remount,bind,ro", "--", place))
    except BaseException:
        runner.run(change("umount", "--", place))
        raise


@contextlib.contextmanager
def lifted(mountpoint: Path, runner: Runner) -> Iterator[None]:
    """Let a user's own folder be mounted on, then guard it below what is mounted there, for when that is gone.

    fusermount3 wants to be able to write there, at mounting only. Root needs nothing. Raises OSError.
    """
    if not os.geteuid():
        yield
        return
    descriptor = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        runner.run(change("chmod", "0700", os.fspath(mountpoint)))
        yield
    finally:
        bare = Path(f"/proc/self/fd/{descriptor}")
        runner.note(str(change("chmod", "0500", os.fspath(bare))))
        bare.chmod(0o500)
        os.close(descriptor)
