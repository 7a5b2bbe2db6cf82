"""The mount of a user who is not root: ext4 in user space, on the plaintext file that the layer below shows."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from attrs import Factory, evolve, field, frozen

from lukshook.errors import Busy, LukshookError, NotSafe, Refused, Unavailable
from lukshook.layers import mount_point
from lukshook.layers.base import LayerHandle, LayerSpec, Opening, damaged
from lukshook.system import kernel, processes
from lukshook.system.command import LONG_SECONDS, Command, CommandFailed, Result, Runner, change, read
from lukshook.system.safe_folders import Folder

TOOLS: tuple[str, ...] = ("fuse2fs", "fusermount3", "e2fsck")
_PROGRAM = "fuse2fs"
#: fusermount3 needs write permission at the mount point. "." is the bare folder before and below the mount.
_MOUNT_BY_HAND = 'cd -- "$3" && chmod 0700 . && fuse2fs -o "$1" "$2" . && chmod 0500 . && mountpoint -q -- "$3"'
#: fuse2fs writes on after the mount is gone, with the plaintext file open.
_WAIT_BY_HAND = 'while find /proc/[0-9]*/fd -lname "$1" 2>/dev/null | grep -q .; do sleep 0.1; done'
#: The first libfuse that has no option `direct_io`. A fuse2fs that was built with it mounts nothing then, and that of
#: e2fsprogs 1.47.2 (Debian 13) exits 0 all the same (seen).
_LIBFUSE_WITHOUT_DIRECT_IO = 3
#: Seconds in which the daemon writes out what it has after unmounting, at the speed of the store.
_QUIT_SECONDS = 600.0
#: Seconds until a daemon has mounted, or given up.
_START_SECONDS = 10.0


@frozen(repr=False)
class Spec(LayerSpec):
    """*mountpoint*: where the volume appears. *old_fuse2fs*: take a fuse2fs with known faults all the same.

    *as_written*: the mount point as the configuration has it, before links in it were followed. *mode*: permissions of
    the volume's root folder, set at each opening for writing; None leaves them as they are.
    """

    mountpoint: Path
    old_fuse2fs: bool = False
    as_written: Path = field(default=Factory(lambda self: self.mountpoint, takes_self=True))
    mode: int | None = None

    def open_commands(self, below: str, opening: Opening) -> tuple[Command, ...]:
        """What `open` does, for a shell: lift the guard, mount, guard the folder below the mount."""
        place = os.fspath(self.mountpoint)
        by_hand = Command(("sh", "-c", _MOUNT_BY_HAND, "sh", _options(opening), below, place), stays=True)
        return (by_hand, *_mode_commands(self, place, opening))

    def expect(self, below: str, opening: Opening) -> Handle:
        """The mount point."""
        return Handle(os.fspath(self.mountpoint), below, 0, 0, "", opening.read_only)

    def open(self, below: str, opening: Opening) -> Handle:
        """Mount and prove. Raises `Unavailable` (also for a fuse2fs that cannot be trusted), `Refused`.

        fuse2fs says nothing that distinguishes damage from what is missing, so e2fsck is asked.
        """
        self.check_tools(opening.runner)
        try:
            with mount_point.lifted(self, opening.runner) as folder:
                start = _start(folder, below, opening)
                said = opening.runner.run(start)
            if _is_nothing_there(self, below, opening):
                raise CommandFailed(start, said)
            handle = _prove(self, below, opening)
            _set_mode(handle, self, opening)
            return handle
        except BaseException as error:
            left = self.find(below, opening)
            if left is not None:
                _close_unused(left, opening.runner, error)
            if isinstance(error, Refused):
                error.hint = f"{error.hint}; it is no longer mounted"
            if isinstance(error, CommandFailed | OSError):
                reason = _why(error.result) if isinstance(error, CommandFailed) else error.strerror or "I/O error"
                if re.search("unknown option.*direct_io", reason):
                    raise _no_direct_io() from error
                if opening.runner.run(_check(below)).code:
                    raise damaged(opening.volume, reason, read_only=opening.read_only) from error
                raise Unavailable(
                    f"volume {opening.volume} cannot be mounted: {reason}",
                    hint="lukshook -v shows the command",
                ) from error
            raise

    def find(self, below: str, opening: Opening) -> Handle | None:
        """A daemon of ours on the file below, or the mount that a killed one left (with pid 0), wherever it is now.

        One that has the file open and no mount is still starting, because its lukshook was killed, or already ending.
        """
        place = os.fspath(self.mountpoint)
        kernel.wait_until(lambda: _shown(below, place) is not None or not _daemon(below, place), _START_SECONDS)
        mount = _shown(below, place)
        pid = _daemon(below, place)
        if mount is None or (mount.source != below and not pid):
            return None
        return Handle(place, mount.source, pid, kernel.started(pid) or 0, mount.number, opening.read_only)

    def check_tools(self, runner: Runner) -> None:
        """Check that this fuse2fs can be trusted with a volume. Raises `Unavailable`."""
        from lukshook.system import platforms  # noqa: PLC0415 - hooks of other engines do not need it

        result = runner.run(read(_PROGRAM, "-V", ok=range(256)))
        told = result.out + result.err
        version = tuple(int(part or 0) for part in _numbers(r"fuse2fs (\d+)\.(\d+)(?:\.(\d+))?", told)) or (0, 0, 0)
        library = _numbers(r"FUSE library version:? (\d+)", told)
        if library and int(library[0]) >= _LIBFUSE_WITHOUT_DIRECT_IO:
            raise _no_direct_io()
        fault = platforms.fault(_PROGRAM, version)
        if fault is not None and not self.old_fuse2fs:
            raise Unavailable(
                f"fuse2fs {'.'.join(map(str, version))} has bugs that are fixed in e2fsprogs 1.47.3",
                hint="use e2fsprogs 1.47.3 or later, or run as root, or accept the bugs: old_fuse2fs = true",
            )

    @property
    def place(self) -> Path:
        """The mount point."""
        return self.mountpoint

    def at(self, mountpoint: Path) -> Spec:
        """The same at another mount point."""
        return evolve(self, mountpoint=mountpoint)


@frozen(repr=False)
class Handle(LayerHandle):
    """A mounted volume: mount point, plaintext file under it, the daemon's pid and start time, the mount's number."""

    path: str
    source: str
    pid: int
    started: int
    number: str
    read_only: bool = False

    def close_commands(self) -> tuple[Command, ...]:
        """What `close` does, for a shell: unmount, wait for the daemon, look whether what was written is whole."""
        pattern = re.sub(r"([\\*?\[])", r"\\\1", self.source)
        wait = change("sh", "-c", _WAIT_BY_HAND, "sh", pattern, timeout=_QUIT_SECONDS)
        check = () if self.read_only else (_check(self.source),)
        return (_unmount(self.path), wait, *check)

    def close(self, runner: Runner) -> None:
        """Unmount, wait until the daemon has written out everything, and check the result. Raises `Busy`, `NotSafe`."""
        killed = False
        mount = _ours(self)
        if mount is not None:
            killed = kernel.started(self.pid) != self.started
            try:
                runner.run(_unmount(mount.target))
            except CommandFailed as error:
                if _ours(self) is not None:
                    raise Busy(f"{mount.target} is still in use") from error
        with processes.watched(self.pid) as process:
            if not kernel.wait_until(lambda: kernel.started(self.pid) != self.started, _QUIT_SECONDS, process):
                raise Busy(f"the daemon of {self.path} (pid {self.pid}) did not exit", hint="is the store dead?")
        with contextlib.suppress(LukshookError):  # the caller checks the mount point afterwards, and warns
            mount_point.secure(Spec(Path(self.path)), runner)
        if self.read_only or not (self.pid or killed):
            return
        why = "its daemon was killed" if killed else _what_is_wrong(self.source, runner)
        if why:
            raise NotSafe(
                f"some of the data written to {self.path} did not reach the store: {why}",
                hint="the last backup is not safely stored; the next opening repairs what it can; then run it again",
            )

    def inspect(self) -> bool:
        """Whether that daemon runs and its mount is what lies on top at the mount point."""
        mount = kernel.mount_at(self.path)
        return kernel.started(self.pid) == self.started and mount is not None and mount.number == self.number


def _options(opening: Opening) -> str:
    """`fakeroot`: who may mount may do everything in it, as root could (fuse2fs(1)).

    `direct_io`: libfuse gives each name of a file a page cache of its own, so that what was written through one hard
    link would not be seen through another.
    """
    return f"{'ro' if opening.read_only else 'rw'},fakeroot,direct_io,nodev,nosuid,noexec"


def _mode_commands(spec: Spec, place: str, opening: Opening) -> tuple[Command, ...]:
    """What gives the volume's root folder its mode. Nobody but its user can look into a FUSE mount in any case."""
    if spec.mode is None or opening.read_only:
        return ()
    return (change("chmod", f"{spec.mode:04o}", "--", place),)


def _unmount(target: str) -> Command:
    return change("fusermount3", "-u", "--", target)


def _check(source: str) -> Command:
    return read("e2fsck", "-fn", source, ok=tuple(range(256)), timeout=LONG_SECONDS)


def _close_unused(handle: Handle, runner: Runner, cause: BaseException) -> None:
    """Close what was not written to yet. What is wrong with it then is no loss: *cause* is what is reported."""
    try:
        handle.close(runner)
    except NotSafe as error:
        cause.add_note(error.message)


def _start(folder: Folder, below: str, opening: Opening) -> Command:
    """One daemon for the open folder: libfuse asks the kernel where that is, and looks up no link on the way."""
    argv = (_PROGRAM, "-o", _options(opening), below, folder.inside)
    return Command(argv, stays=True, fds=(folder.descriptor,))


def _set_mode(handle: Handle, spec: Spec, opening: Opening) -> None:
    mount = _ours(handle)
    if mount is None:
        return
    root = kernel.enter(mount)
    try:
        if spec.mode is not None and os.fstat(root).st_mode & 0o777 != spec.mode:
            for command in _mode_commands(spec, f"/proc/self/fd/{root}/.", opening):
                opening.runner.run(evolve(command, fds=(root,)))
    finally:
        os.close(root)


def _numbers(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    return match.groups() if match else ()


def _no_direct_io() -> Unavailable:
    return Unavailable(
        "this fuse2fs does not support direct_io, so files with several names could show old content",
        hint="docs/userspace-engine.md says how to install one that does; or run as root",
    )


def _is_nothing_there(spec: Spec, below: str, opening: Opening) -> bool:
    """Whether fuse2fs has mounted nothing, whatever it says."""
    return spec.find(below, opening) is None and kernel.mount_at(spec.mountpoint) is None


def _why(result: Result) -> str:
    """What fuse2fs says when it mounts nothing: it may say more after the reason, and exit 0."""
    unknown = re.search(r"unknown option.*", result.err)
    if unknown:
        return unknown[0]
    return result.reason if result.code or result.err else "fuse2fs exited with 0 and mounted nothing"


def _prove(spec: Spec, below: str, opening: Opening) -> Handle:
    handle = spec.find(below, opening)
    mount = kernel.mount_at(spec.mountpoint)
    if handle is None or not handle.pid or mount is None or mount.number != handle.number:
        raise Refused(
            f"what is mounted at {spec.mountpoint} is not volume {opening.volume}",
            hint="was something mounted there, or the folder moved, at the same time?",
        )
    # Read-only is not among them: fuse2fs keeps that to itself, and the file below cannot be written to then.
    if not {"nodev", "nosuid"} <= mount.options:
        shown = ",".join(sorted(mount.options))
        raise Refused(f"volume {opening.volume} is mounted with {shown}", hint="it has to be nodev,nosuid")
    return handle


def _what_is_wrong(source: str, runner: Runner) -> str:
    """Whether what was written is whole, as far as that can be seen; what is wrong, or "".

    fuse2fs loses errors of the store that come when it writes out file contents later (seen with 1.47.0: neither write
    nor fsync nor unmounting tells), so see that the store takes writes at all: one block, as it is.
    """
    if not os.path.lexists(source):  # it was in the runtime folder of a session that has ended
        return f"{source} is gone, so it could not be checked"
    if runner.run(_check(source)).code:
        return "it is not clean after closing"
    descriptor = os.open(source, os.O_RDWR | os.O_CLOEXEC)
    return _failure(lambda: _write_a_block(descriptor)) or _failure(lambda: os.close(descriptor))


def _write_a_block(descriptor: int) -> None:
    """The first block, as it is."""
    try:
        os.pwrite(descriptor, os.pread(descriptor, 4096, 0), 0)
        os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):  # qemu reports at closing again what it has reported
            os.close(descriptor)
        raise


def _failure(work: Callable[[], None]) -> str:
    try:
        work()
    except OSError as error:
        return error.strerror or "I/O error"
    return ""


def _shown(below: str, place: str) -> kernel.Mount | None:
    """The mount of the file below, else the one at the mount point: an earlier version showed the file elsewhere."""
    mount = _mount_of(below) or kernel.mount_at(place)
    return mount if mount is not None and kernel.is_fuse_of(mount, os.geteuid()) else None


def _mounts_of(below: str) -> list[kernel.Mount]:
    """The mounts of the file below, the newest first: fuse2fs names it as its source, as any user's daemon could.

    So only those of this user count, which the kernel notes itself (`user_id`, Documentation/filesystems/fuse.rst).
    """
    found = (mount for mount in reversed(kernel.mounts()) if mount.kind.startswith("fuse"))
    return [mount for mount in found if mount.source == below and kernel.is_fuse_of(mount, os.geteuid())]


def _mount_of(below: str) -> kernel.Mount | None:
    return next(iter(_mounts_of(below)), None)


def _ours(handle: Handle) -> kernel.Mount | None:
    """The mount, wherever it is now. Its number alone could be that of a later mount."""
    return next((mount for mount in _mounts_of(handle.source) if mount.number == handle.number), None)


def _daemon(below: str, place: str) -> int:
    """Our daemon that has the file *below* open; where that is gone (`_what_is_wrong`), the one so started; or 0."""
    try:
        file = os.stat(below)
    except OSError:
        pids = (pid for pid in kernel.processes_named(_PROGRAM) if kernel.owner(pid) == os.geteuid())
        return next((pid for pid in pids if kernel.words(pid)[-2:] == [below, place]), 0)
    return next(iter(kernel.processes_with(_PROGRAM, file.st_dev, file.st_ino)), 0)
