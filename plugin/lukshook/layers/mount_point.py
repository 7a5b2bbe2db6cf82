"""The bare mount point: no other user can move it, and nothing is written there while the volume is closed."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from attrs import evolve

from lukshook.errors import BadConfiguration, Denied, Unavailable
from lukshook.system import kernel, libc, safe_folders
from lukshook.system.command import CommandFailed, Runner, change
from lukshook.system.safe_folders import Folder

#: The mode of folders that are made on the path to a mount point.
_FOLDER_MODE = 0o755


class Wanted(Protocol):
    """Which mount point is meant: *mountpoint* has no links in it, *as_written* is what the configuration says."""

    @property
    def mountpoint(self) -> Path: ...

    @property
    def as_written(self) -> Path: ...


class _Missing(BadConfiguration):
    """There is no such folder."""


@contextlib.contextmanager
def bare(wanted: Wanted) -> Iterator[Folder]:
    """Open the mount point and check it: a real, empty folder that no other user can move; no mount but our guard.

    Raises `BadConfiguration` (missing, a link, not a folder, not empty, unsafe) or `Unavailable` (a mount is on it).
    """
    _check_mounts(wanted.mountpoint)
    with _opened(wanted) as folder:
        _check_empty(folder)
        yield folder


def look(wanted: Wanted) -> bool:
    """Check the mount point as `bare` does; whether it is guarded."""
    with bare(wanted) as folder:
        return _is_guarded(folder)


def check_new(wanted: Wanted) -> None:
    """Check a mount point that may be missing, for a volume that is to be made.

    Raises `BadConfiguration`, `Unavailable`, and `Denied` where this user cannot make it.
    """
    try:
        with bare(wanted):
            return
    except _Missing:
        above = next(folder for folder in wanted.mountpoint.parents if folder.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        raise Denied(f"you cannot make a folder in {above}", hint="name a folder of your own as mount point")


def secure(wanted: Wanted, runner: Runner) -> None:
    """Check the mount point as `bare` does, and guard it against writing. Raises `BadConfiguration`, `Unavailable`."""
    with bare(wanted) as folder:
        _put(folder, runner)


def prepare(wanted: Wanted, runner: Runner) -> None:
    """`secure` for a mount point that is made if it is missing, with the folders above it."""
    try:
        secure(wanted, runner)
    except _Missing:
        runner.note(f"mkdir --parents -- {shlex.quote(os.fspath(wanted.mountpoint))}")
        if runner.dry:
            return
        with _opened(wanted, make=_FOLDER_MODE):
            pass
        secure(wanted, runner)


def make(wanted: Wanted, runner: Runner) -> None:
    """Make the mount point where it is missing, without a guard: for what is open only now and then."""
    runner.note(f"mkdir --parents -- {shlex.quote(os.fspath(wanted.mountpoint))}")
    if not runner.dry:
        with _opened(wanted, make=_FOLDER_MODE):
            pass


@contextlib.contextmanager
def lifted(wanted: Wanted, runner: Runner) -> Iterator[Folder]:
    """`bare` for a user's own folder that can be mounted on inside, and is guarded below the mount afterwards.

    fusermount3 needs write permission there, at mounting only.
    """
    with bare(wanted) as folder:
        try:
            _chmod(folder, 0o700, runner)
            yield folder
        finally:
            _chmod(folder, 0o500, runner)


def _check_mounts(mountpoint: Path) -> None:
    """Nothing is touched here: a mount whose server has died would hang us."""
    mount = covering(mountpoint)
    if mount is not None:
        raise Unavailable(
            f"{mount.source} is mounted on {mountpoint}, and not by lukshook",
            hint=f"look at it with: findmnt {mountpoint}",
        )


@contextlib.contextmanager
def _opened(wanted: Wanted, make: int | None = None) -> Iterator[Folder]:
    mountpoint = wanted.mountpoint
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(safe_folders.opened(wanted.as_written, make=make))
        except safe_folders.Unsafe as error:
            raise BadConfiguration(
                f"another user can move the mount point {mountpoint}: {error}",
                hint="use a mount point in folders that only root can change, such as /mnt/NAME"
                if not os.geteuid()
                else "use a mount point in folders that only you and root can change",
            ) from error
        except safe_folders.IsLink as error:
            raise BadConfiguration(
                f"the mount point {mountpoint} is a symbolic link", hint="name the folder itself"
            ) from error
        except FileNotFoundError as error:
            raise _Missing(f"the mount point {mountpoint} does not exist", hint=f"mkdir -p {mountpoint}") from error
        except NotADirectoryError as error:
            raise BadConfiguration(
                f"the mount point {mountpoint} is not a folder", hint="name an empty folder"
            ) from error
        except OSError as error:
            raise Unavailable(
                f"cannot access the mount point {mountpoint}: {error.strerror}",
                hint=f"did the server of a mount die? try: fusermount3 -u {mountpoint}",
            ) from error
        if folder.path != mountpoint:
            raise BadConfiguration(
                f"the mount point {mountpoint} was moved: it is {folder.path} now",
                hint="if that is right, run the same command again",
            )
        yield folder


def _check_empty(folder: Folder) -> None:
    try:
        descriptor = os.open(folder.inside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(
            f"the mount point {folder.path} cannot be read: {error.strerror}", hint="correct its owner and mode"
        ) from error
    try:
        first = next(iter(sorted(os.listdir(descriptor))), None)
    finally:
        os.close(descriptor)
    if first is not None:
        raise BadConfiguration(
            f"the mount point {folder.path} is not empty while the volume is closed: {first}",
            hint="that may be an unencrypted backup, made while the volume was not mounted; move it away",
        )


def covering(mountpoint: Path) -> kernel.Mount | None:
    """What is mounted at the mount point, other than our own guard, or None."""
    mount = kernel.mount_at(mountpoint)
    if mount is None or _is_guard(mount, mountpoint) or _is_half_made(mount, mountpoint):
        return None
    return mount


def _is_guarded(folder: Folder) -> bool:
    """Whether a process, as far as the kernel can keep it from that, cannot write into the bare mount point."""
    mount = kernel.mount_at(folder.path)
    if mount is not None and _is_guard(mount, folder.path):
        return True
    if os.geteuid():
        return not os.fstat(folder.descriptor).st_mode & 0o222
    return kernel.is_immutable(folder.inside)


def _is_guard(mount: kernel.Mount, mountpoint: Path) -> bool:
    """Our read-only bind of the mount point on itself: its root is a folder of that name, and it is read-only."""
    return "ro" in mount.options and mount.root != "/" and mount.root.endswith("/" + mountpoint.name)


def _is_half_made(mount: kernel.Mount, mountpoint: Path) -> bool:
    """A bind of the mount point on itself that is still writable: a run was interrupted between our two steps."""
    outer = kernel.mount_above(mountpoint)
    if outer is None or mount.number != outer.number:
        return False
    return Path(mount.root) == Path(outer.root) / mountpoint.relative_to(outer.target)


def _put(folder: Folder, runner: Runner) -> None:
    """Guard it: immutable flag, else a read-only bind mount; a user's own folder gets mode 0500.

    Raises `Unavailable` where none of that works.
    """
    if _is_guarded(folder):
        return
    if os.geteuid():
        _chmod(folder, 0o500, runner)
        return
    place = os.fspath(folder.path) if runner.dry else folder.inside
    try:
        runner.run(evolve(change("chattr", "+i", "--", place), fds=(folder.descriptor,)))
    except (CommandFailed, Unavailable):
        _bind(folder, runner)


def _chmod(folder: Folder, mode: int, runner: Runner) -> None:
    runner.note(str(change("chmod", f"{mode:04o}", os.fspath(folder.path))))
    if runner.dry:
        return
    try:
        os.chmod(folder.inside, mode)  # noqa: PTH101 - a Path has no "." at its end
    except OSError as error:
        raise Unavailable(
            f"the mount point {folder.path} cannot be guarded against writing: {error.strerror}",
            hint="use a mount point of your own",
        ) from error


def _bind(folder: Folder, runner: Runner) -> None:
    place = os.fspath(folder.path)
    there = kernel.mount_at(folder.path)
    half = there is not None and _is_half_made(there, folder.path)
    remount = change("mount", "-o", "remount,bind,ro", "--", place)
    try:
        if half:
            runner.note(str(remount))
            libc.make_read_only(folder.descriptor)
        else:
            runner.note(f"{change('mount', '--bind', '--', place, place)} && {remount}")
            libc.bind(folder.inside, folder.descriptor, read_only=True)
    except OSError as error:
        raise Unavailable(
            f"the mount point {place} cannot be guarded against writing: {error.strerror}",
            hint="use a mount point on a local file system that supports chattr +i",
        ) from error
