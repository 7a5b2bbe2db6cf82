"""The mount: made where only we can look, proven, and only then shown at the mount point."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

from attrs import Factory, evolve, field, frozen

from lukshook.errors import Busy, Refused, Unavailable
from lukshook.filesystems.kinds import DEFAULT, KINDS, has_own_numbers
from lukshook.filesystems.mounts import lies_on
from lukshook.layers import mount_point
from lukshook.layers.base import LayerHandle, LayerSpec, Opening, damaged
from lukshook.store import liveness
from lukshook.system import kernel, libc
from lukshook.system.command import DEFAULT_TIMEOUT, LONG_SECONDS, Command, CommandFailed, Runner, TimedOut, change
from lukshook.system.safe_folders import Folder

TOOLS: tuple[str, ...] = ("mount", "umount")
#: On every mount, whatever kind: nothing in a volume is a device, gains rights, is run, or is written by reading.
OPTIONS = ("nodev", "nosuid", "noexec", "noatime")
#: What mount(8) says where the kernel does not accept the content: EUCLEAN, EBADMSG, EINVAL and EIO (util-linux 2.38,
#: mnt_context_get_mount_excode in libmount/src/context_mount.c).
_CONTENT = (
    "Structure needs cleaning",
    "Bad message",
    "wrong fs type, bad option, bad superblock",
    "can't read superblock",
)
_MOUNT_SECONDS = 300.0
#: Without a block that moves: writing out takes as long as it takes.
_STALLED_SECONDS = 300.0
_UNMOUNT_SECONDS = 1800.0
#: So often a mount is looked for again, where it is moved just while we unmount it.
_MOST_MOVES = 10


@frozen(repr=False)
class Spec(LayerSpec):
    """*mountpoint*: the folder where the volume appears. *filesystem*: the only kind that is mounted, never probed.

    *as_written*: the mount point as the configuration has it, before links in it were followed. *mode*: permissions of
    the volume's root folder, set at each opening for writing; None leaves them as they are.
    """

    mountpoint: Path
    filesystem: str = DEFAULT
    as_written: Path = field(default=Factory(lambda self: self.mountpoint, takes_self=True))
    mode: int | None = None

    def open_commands(self, below: str, opening: Opening) -> tuple[Command, ...]:
        """Mount in private, show at the mount point, drop the private one.

        A bind mount keeps the flags of its origin.
        """
        staging = os.fspath(_staging(opening))
        return (
            change("mkdir", "--parents", "--mode=700", "--", staging),
            _mount_in_private(self, below, opening),
            *_mode_commands(self, staging, opening),
            change("mount", "--bind", "--", staging, os.fspath(self.mountpoint)),
            change("umount", "--", staging),
            change("rmdir", "--", staging),
        )

    def expect(self, below: str, opening: Opening) -> Handle:
        """The mount point."""
        return Handle(os.fspath(self.mountpoint), below, "", os.fspath(_staging(opening)), opening.read_only)

    def open(self, below: str, opening: Opening) -> Handle:
        """Mount, prove, show. Raises `Unavailable`, `Refused`, `BadConfiguration` (the mount point)."""
        with mount_point.bare(self) as folder:
            return _open_on(folder, self, below, opening)

    def find(self, below: str, opening: Opening) -> Handle | None:
        """A mount of the device below at one of the two places where we mount.

        While the private place is there, an opening was interrupted: then it may have been moved elsewhere as well.
        """
        staging, mountpoint = os.fspath(_staging(opening)), os.fspath(self.mountpoint)
        try:
            number = kernel.number(below)
        except OSError:
            return None
        interrupted = os.path.lexists(staging)
        mounts = [mount for mount in kernel.mounts() if lies_on(mount, number)]
        ours = [mount for mount in mounts if interrupted or mount.target in (staging, mountpoint)]
        if not ours:
            return None
        shown = next((mount.id for mount in reversed(ours) if mount.target != staging), 0)
        return Handle(mountpoint, below, number, staging, opening.read_only, shown)

    @property
    def place(self) -> Path:
        """The mount point."""
        return self.mountpoint

    def at(self, mountpoint: Path) -> Spec:
        """The same at another mount point."""
        return evolve(self, mountpoint=mountpoint)


@frozen(repr=False)
class Handle(LayerHandle):
    """A mounted volume: mount point, the device, its number, and the private place it was proven at.

    *id*: the number of the mount in mountinfo, 0 where it is not known.
    """

    path: str
    source: str
    number: str
    staging: str
    read_only: bool = False
    id: int = 0

    def close_commands(self) -> tuple[Command, ...]:
        """Unmount; never lazy, never forced: both say success while data is still on its way."""
        return (*(() if self.read_only else (_freeze(self.path),)), unmount(self.path))

    def settle(self, runner: Runner) -> str:
        """Write out with error reporting, and make it read-only, so that no process writes between here and unmounting.

        syncfs(2) is the only call that reports data lost in writeback (Linux 5.8), and only once; umount exits 0 all
        the same. Raises `Busy` while a file is open for writing.
        """
        mount = _ours(self)
        if mount is None or self.read_only:
            return ""
        try:
            descriptor = kernel.enter(mount)
        except OSError as error:
            return error.strerror or "it cannot be opened"
        try:
            lost = flush(descriptor) or _stopped(self)
            lost = _make_read_only(mount, descriptor, lost, runner) or flush(descriptor)
        finally:
            os.close(descriptor)
        return lost or _stopped(self)

    def close(self, runner: Runner) -> None:
        """Unmount; what others have mounted elsewhere shows when the device below is closed. Raises `Busy`."""
        _close(self, runner)

    def inspect(self) -> bool:
        """Whether that very device lies on top at the mount point, and can be written to as it was when opened."""
        found = kernel.mount_at(self.path)
        if found is None or not lies_on(found, self.number):
            return False
        return self.read_only or not found.options & {"ro", "emergency_ro"}


def _mount_in_private(spec: Spec, below: str, opening: Opening) -> Command:
    options = ",".join((*OPTIONS, *_kind_options(spec, opening)))
    place = os.fspath(_staging(opening))
    return change("mount", "-t", spec.filesystem, "-o", options, "--", below, place, timeout=_MOUNT_SECONDS)


def _mode_commands(spec: Spec, place: str, opening: Opening) -> tuple[Command, ...]:
    """What gives the volume's root folder, mounted at *place*, its mode, before any other user can look into it."""
    if spec.mode is None or opening.read_only:
        return ()
    return (change("chmod", f"{spec.mode:04o}", "--", place),)


def _kind_options(spec: Spec, opening: Opening) -> tuple[str, ...]:
    kind = KINDS[spec.filesystem]
    return kind.read_only if opening.read_only else kind.options


def _staging(opening: Opening) -> Path:
    return opening.run_folder / f"{opening.label}.private"


def unmount(target: str) -> Command:
    """The command that unmounts *target*."""
    return change("umount", "--", target, timeout=_UNMOUNT_SECONDS)


def trim(target: str) -> Command:
    """The command that tells the layers below which blocks are unused; how long it takes depends on the size."""
    return change("fstrim", "--verbose", "--", target, timeout=LONG_SECONDS)


def growing(kind: str, target: str, grow: Command) -> tuple[Command, ...]:
    """*grow*, which makes the file system at *target* larger, with the mount options that its kind has for that."""
    options = KINDS[kind].around_growing
    if options is None:
        return (grow,)
    before, after = (_remount(target, option, DEFAULT_TIMEOUT) for option in options)
    return (before, grow, after)


def _open_on(folder: Folder, spec: Spec, below: str, opening: Opening) -> Handle:
    """Mount, prove, and show at the open *folder*, wherever that is renamed to meanwhile."""
    staging = _staging(opening)
    staging.mkdir(mode=0o700, exist_ok=True)
    handle = Handle(os.fspath(spec.mountpoint), below, kernel.number(below), os.fspath(staging), opening.read_only)
    try:
        _run(_mount_in_private(spec, below, opening), opening)
        _prove(handle, handle.staging, spec, opening)
        if spec.mode is not None and staging.stat().st_mode & 0o777 != spec.mode:
            for command in _mode_commands(spec, handle.staging, opening):
                _run(command, opening)
        handle = _show(handle, folder, opening)
        _prove(handle, handle.path, spec, opening)
    except BaseException as error:
        _undo(handle, error, opening.runner)
        raise
    staging.rmdir()
    return handle


def _undo(handle: Handle, error: BaseException, runner: Runner) -> None:
    """Unmount whatever there is of the device: until the volume is shown, no other process can have mounted it."""
    _close(handle, runner, anywhere=True)
    if isinstance(error, Refused):
        error.hint = f"{error.hint}; it is no longer mounted"


def _run(command: Command, opening: Opening) -> None:
    """Mount. This is the one place that tells damage from unavailability.

    The layer below has found the super block of the configured kind, so what the kernel does not like is the content:
    `Refused`. A kind that this kernel does not have, a missing permission, or a device that gives no data (which the
    kernel reports like content that it cannot read): `Unavailable`.
    """
    try:
        opening.runner.run(command)
    except CommandFailed as error:
        if any(words in error.result.err for words in _CONTENT) and _gives_data(command.argv[-2]):
            raise damaged(opening.volume, error.result.reason, read_only=opening.read_only) from error
        raise Unavailable(
            f"volume {opening.volume} cannot be mounted: {error.result.reason}",
            hint=f"the command was: {command}",
        ) from error


def _gives_data(device: str) -> bool:
    """Whether both ends of *device* can be read: else it is the store that has failed."""
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            end = os.lseek(descriptor, 0, os.SEEK_END)
            return all(os.pread(descriptor, 4096, max(place, 0)) for place in (0, end - 4096))
        finally:
            os.close(descriptor)
    except OSError:
        return False


def _show(handle: Handle, folder: Folder, opening: Opening) -> Handle:
    """Move it from the private place to the mount point. Nothing of that touches the store, so it needs no tool."""
    show = change("mount", "--bind", "--", handle.staging, handle.path)
    drop = change("umount", "--", handle.staging)
    try:
        opening.runner.note(str(show))
        shown = evolve(handle, id=libc.bind(handle.staging, folder.descriptor))
        opening.runner.note(str(drop))
        libc.unmount(handle.staging)
    except OSError as error:
        raise Unavailable(
            f"volume {opening.volume} cannot be shown at {handle.path}: {error.strerror}",
            hint=f"the commands for that are: {show}; {drop}",
        ) from error
    return shown


def _prove(handle: Handle, place: str, spec: Spec, opening: Opening) -> None:
    """Check in mountinfo what is mounted at *place*: this device, this kind, these options."""
    found = kernel.mount_at(place)
    if found is None or not lies_on(found, handle.number) or not _shows(place, found):
        raise Refused(
            f"what is mounted at {place} is not volume {opening.volume}",
            hint="was something mounted there, or the folder moved, at the same time?",
        )
    wanted = {*OPTIONS, "ro" if opening.read_only else "rw"}
    if found.kind != spec.filesystem or not wanted <= found.options or "emergency_ro" in found.options:
        raise Refused(
            f"volume {opening.volume} is mounted as {found.kind} with {','.join(sorted(found.options))}",
            hint=f"it has to be {spec.filesystem} with {','.join(sorted(wanted))}",
        )


def _shows(place: str, mount: kernel.Mount) -> bool:
    """Whether what one finds at *place* is that mount's; a subvolume of it can have one more number, of major 0."""
    try:
        inside = kernel.number_within(place)
    except OSError:
        return False
    return inside == mount.number or (has_own_numbers(mount.kind) and inside.startswith("0:"))


def _ours(handle: Handle, *, anywhere: bool = False) -> kernel.Mount | None:
    """The newest of our mounts: at one of our two places, or, wherever its folder was moved to, the one we made.

    *anywhere*: each mount of the device is ours.
    """
    places = (handle.staging, handle.path)
    return next(
        (
            mount
            for mount in reversed(kernel.mounts())
            if (anywhere or mount.target in places or (handle.id and mount.id == handle.id))
            and lies_on(mount, handle.number)
        ),
        None,
    )


def _make_read_only(mount: kernel.Mount, descriptor: int, lost: str, runner: Runner) -> str:
    """*descriptor*: of the root folder of *mount*."""
    if "ro" in mount.options:
        return lost
    freeze = _freeze(mount.target)
    runner.note(str(freeze))
    try:
        liveness.call(libc.remount_read_only, descriptor, freeze)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Busy(f"{mount.target} is still being written to", lost=lost) from error
        return lost or error.strerror or str(error)
    except TimedOut as error:
        error.lost = lost
        raise
    return lost


def _freeze(target: str) -> Command:
    return _remount(target, "ro", _UNMOUNT_SECONDS)


def _remount(target: str, option: str, timeout: float) -> Command:
    """Change one option of a mount and keep the others. From /etc/fstab, mount(8) would take them otherwise."""
    argv = ("mount", "--options-source=mtab", "-o", f"remount,{option}", "--", target)
    return change(*argv, timeout=timeout)


def _stopped(handle: Handle) -> str:
    """Whether the kernel has stopped writing by itself, after an error; what happened, or "".

    It makes the super block read-only and leaves the mount as it was, where remounting changes both; ext4 says
    `emergency_ro` since Linux 6.15.
    """
    mount = _ours(handle)
    stopped = mount is not None and ("emergency_ro" in mount.common or ("rw" in mount.own and "ro" in mount.common))
    return "the file system has met errors" if stopped or _has_met_errors(handle.number) else ""


def _has_met_errors(number: str) -> bool:
    """Whether the kernel counts errors of the file system on device *number* ("major:minor"), whatever its kind."""
    counts = (kind.errors_met for kind in KINDS.values())
    return any(count is not None and count(number) for count in counts)


def _close(handle: Handle, runner: Runner, *, anywhere: bool = False) -> None:
    moves = 0
    while (mount := _ours(handle, anywhere=anywhere)) is not None:
        if moves > _MOST_MOVES:
            raise Busy(f"another process moves {mount.target} each time lukshook unmounts it")
        moves += not _take_down(mount.target, handle, runner)
    _forget(handle.staging)


def flush(descriptor: int) -> str:
    """Write out the file system of *descriptor*; what was lost since it was opened, in words, or ""."""
    try:
        liveness.call(libc.flush, descriptor, change("sync", "--file-system", timeout=_STALLED_SECONDS))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _take_down(target: str, handle: Handle, runner: Runner) -> bool:
    """Unmount; False if there was nothing left to unmount. Raises `Busy`."""
    typed, device = unmount(target), os.makedev(*map(int, handle.number.split(":")))
    runner.note(str(typed))
    try:
        liveness.call_outside(partial(libc.unmount, target), device, typed)
    except OSError as error:
        if kernel.mount_at(target) is not None:
            raise Busy(f"{target} is still in use") from error
        return False
    return True


def _forget(staging: str) -> None:
    try:
        Path(staging).rmdir()
    except OSError:
        return  # not there, or by now used by the next opening
