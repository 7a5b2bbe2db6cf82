"""The mount of a user who is not root: ext4 in user space, on the plaintext file that the layer below shows."""

from __future__ import annotations

import os
import re
from pathlib import Path

from attrs import frozen

from lukshook import guard, kernel
from lukshook.command import Command, CommandFailed, Runner, change, read
from lukshook.errors import Busy, NotSafe, Refused, Unavailable
from lukshook.layers.base import Opening, damaged, keep, settled

NAME = "fuse2fs"
TOOLS: tuple[str, ...] = ("fuse2fs", "fusermount3", "e2fsck")
_PROGRAM = "fuse2fs"
#: The first e2fsprogs whose fuse2fs is trusted unasked: its release notes name faults that it mended (fallocate,
#: O_TRUNC, ACLs, deleting large files). Early trials of 1.47.0 found wrong contents; with `direct_io` none does.
_TRUSTED = (1, 47, 3)
#: Seconds in which the daemon writes out what it has after unmounting, at the speed of the store.
_QUIT_SECONDS = 600.0
#: Seconds until a daemon has mounted, or given up.
_START_SECONDS = 10.0
_CHECK_SECONDS = 12 * 3600.0


@frozen
class Spec:
    """*mountpoint*: where the volume appears. *old_fuse2fs*: take a fuse2fs with known faults all the same."""

    mountpoint: Path
    old_fuse2fs: bool = False


@frozen
class Handle:
    """A mounted volume: mount point, plaintext file under it, the daemon's pid and start time, the mount's number."""

    path: str
    source: str
    pid: int
    started: int
    number: str
    read_only: bool = False


release = keep
settle = settled


def open_commands(spec: Spec, below: str, opening: Opening) -> tuple[Command, ...]:
    """One daemon. `fakeroot`: whoever may mount may do everything in it, as root could (fuse2fs(1)).

    `direct_io`: libfuse gives each name of a file a page cache of its own, so that what was written through one hard
    link would not be seen through another.
    """
    options = f"{'ro' if opening.read_only else 'rw'},fakeroot,direct_io,nodev,nosuid,noexec"
    return (Command((_PROGRAM, "-o", options, below, os.fspath(spec.mountpoint)), stays=True),)


def close_commands(handle: Handle) -> tuple[Command, ...]:
    """Unmount, then look whether what was written is whole."""
    check = () if handle.read_only else (_check(handle.source),)
    return (change("fusermount3", "-u", "--", handle.path), *check)


def _check(source: str) -> Command:
    return read("e2fsck", "-fn", source, ok=tuple(range(256)), timeout=_CHECK_SECONDS)


def expect(spec: Spec, below: str, opening: Opening) -> str:
    """The mount point."""
    return os.fspath(spec.mountpoint)


def open(spec: Spec, below: str, opening: Opening) -> Handle:  # noqa: A001
    """Mount and prove. Raises `Unavailable` (also for a fuse2fs that is too old), `Refused`.

    fuse2fs says nothing by which damage could be told from what is missing, so e2fsck is asked.
    """
    _gate(spec, opening.runner)
    try:
        with guard.lifted(spec.mountpoint, opening.runner):
            for command in open_commands(spec, below, opening):
                opening.runner.run(command)
        return _prove(spec, below, opening)
    except BaseException as error:
        left = find(spec, below, opening)
        if left is not None:
            close(left, opening.runner)
        guard.put(spec.mountpoint, opening.runner)
        if isinstance(error, CommandFailed):
            if opening.runner.run(_check(below)).code:
                raise damaged(opening.volume, error.result.reason, read_only=opening.read_only) from error
            raise Unavailable(
                f"volume {opening.volume} cannot be mounted: {error.result.reason}",
                hint="lukshook -v shows the command",
            ) from error
        raise


def _gate(spec: Spec, runner: Runner) -> None:
    told = runner.run(read("e2fsck", "-V")).err
    match = re.search(r"e2fsck (\d+)\.(\d+)(?:\.(\d+))?", told)
    version = tuple(int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    if version < _TRUSTED and not spec.old_fuse2fs:
        raise Unavailable(
            f"fuse2fs {'.'.join(map(str, version))} has faults that e2fsprogs 1.47.3 has mended",
            hint="use e2fsprogs 1.47.3 or later, or run as root, or take it as it is: old_fuse2fs = true",
        )


def _prove(spec: Spec, below: str, opening: Opening) -> Handle:
    handle = find(spec, below, opening)
    if handle is None or not handle.pid:
        raise Refused(
            f"what is mounted at {spec.mountpoint} is not volume {opening.volume}", hint="it was unmounted again"
        )
    mount = kernel.mount_at(handle.path)
    # Read-only is not among them: fuse2fs keeps that to itself, and the file below cannot be written to then.
    if mount is None or not {"nodev", "nosuid"} <= mount.options:
        shown = ",".join(sorted(mount.options)) if mount else "nothing"
        raise Refused(
            f"volume {opening.volume} is mounted with {shown}", hint="it has to be nodev,nosuid; it was unmounted again"
        )
    return handle


def close(handle: Handle, runner: Runner) -> None:
    """Unmount, wait until the daemon has written out everything, and check the result. Raises `Busy`, `NotSafe`."""
    killed = False
    if kernel.mount_at(handle.path) is not None:
        killed = kernel.started(handle.pid) != handle.started
        try:
            runner.run(close_commands(handle)[0])
        except CommandFailed as error:
            if kernel.mount_at(handle.path) is not None:
                raise Busy(f"{handle.path} is still in use") from error
    if not kernel.wait_until(lambda: kernel.started(handle.pid) != handle.started, _QUIT_SECONDS):
        raise Busy(f"the daemon of {handle.path} (pid {handle.pid}) does not end", hint="is the store dead?")
    guard.put(Path(handle.path), runner)
    if handle.read_only or not (handle.pid or killed):
        return
    why = "its daemon was killed" if killed else _what_is_wrong(handle.source, runner)
    if why:
        raise NotSafe(
            f"not all that was written to {handle.path} reached the store: {why}",
            hint="the last backup is not safely stored; the next opening mends what it can, then run the backup again",
        )


def _what_is_wrong(source: str, runner: Runner) -> str:
    """Whether what was written is whole, as far as that can be seen; what is wrong, or "".

    fuse2fs loses errors of the store that come when it writes out file contents later (seen with 1.47.0: neither write
    nor fsync nor unmounting tells), so see that the store takes writes at all: one block, as it is.
    """
    if runner.run(_check(source)).code:
        return "it is not clean after closing"
    descriptor = os.open(source, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, os.pread(descriptor, 4096, 0), 0)
        os.fsync(descriptor)
    except OSError as error:
        return error.strerror or "I/O error"
    finally:
        os.close(descriptor)
    return ""


def inspect(handle: Handle) -> bool:
    """Whether that daemon runs and its mount is what lies on top at the mount point."""
    mount = kernel.mount_at(handle.path)
    return kernel.started(handle.pid) == handle.started and mount is not None and mount.number == handle.number


def find(spec: Spec, below: str, opening: Opening) -> Handle | None:
    """A daemon of ours on the file below, or the mount that a killed one left (with pid 0).

    One that has the file open and no mount is still starting, because its lukshook was killed, or already ending.
    """
    kernel.wait_until(lambda: _is_mounted(spec.mountpoint) or not _daemon(below), _START_SECONDS)
    mount = kernel.mount_at(spec.mountpoint)
    if mount is None or not _is_mounted(spec.mountpoint):
        return None
    pid = _daemon(below)
    if not pid and mount.source != below:
        return None
    place = os.fspath(spec.mountpoint)
    return Handle(place, below, pid, kernel.started(pid) or 0, mount.number, opening.read_only)


def _is_mounted(mountpoint: Path) -> bool:
    mount = kernel.mount_at(mountpoint)
    return mount is not None and mount.kind.startswith("fuse")


def _daemon(below: str) -> int:
    try:
        file = os.stat(below)
    except OSError:
        return 0
    return next(iter(kernel.processes_with(_PROGRAM, file.st_dev, file.st_ino)), 0)
