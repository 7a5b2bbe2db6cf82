"""The file system in the volume: looked at before every mount and after every close.

What depends on its kind is said in `filesystems/`, in one file for each kind.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from attrs import frozen

from lukshook.errors import BadConfiguration, NotSafe, Refused, Unavailable
from lukshook.filesystems.kind import Facts, Kind, Owners
from lukshook.filesystems.kinds import DEFAULT, KINDS
from lukshook.layers.base import LayerHandle, LayerSpec, Opening
from lukshook.system.command import LONG_SECONDS, Command, Runner, change, read

#: Each kind has its own: `Kind.tools`.
TOOLS: tuple[str, ...] = ()


@frozen(repr=False)
class Spec(LayerSpec):
    """*filesystem*: kind of a new one, and the only one mounted. *mmp*: it keeps a second host out."""

    filesystem: str = DEFAULT
    mmp: bool = False

    @property
    def transparent(self) -> bool:
        """What is too damaged to be found can still be mounted."""
        return True

    def open_commands(self, below: str, opening: Opening) -> tuple[Command, ...]:
        """The check before mounting what is not clean; for a read-only opening one that changes nothing.

        A whole one where writes were lost: those of directories and bitmaps may be among them, under a file system that
        was unmounted well and calls itself clean.
        """
        kind = KINDS[self.filesystem]
        whole = kind.recheck if opening.doubted else ()
        argv = kind.look if opening.read_only else whole or kind.check
        if not argv:
            return ()
        make = read if opening.read_only else change
        return (make(*argv, below, ok=tuple(range(256)), timeout=LONG_SECONDS),)

    def expect(self, below: str, opening: Opening) -> Handle:
        """The device or file below itself."""
        return Handle(below, self.filesystem, "", read_only=opening.read_only)

    def open(self, below: str, opening: Opening) -> Handle:
        """Check that it is the expected kind and clean. Raises `Refused`, `Unavailable`."""
        found = facts(self.filesystem, below)
        opening.trust.extent(found.size if found else None)
        if found is None:
            raise Refused(
                f"there is no {self.filesystem} file system in volume {opening.volume}",
                hint="create was interrupted, or the image is damaged; restore a backup of the image",
            )
        opening.trust.history(found.uuid, found.written)
        kind = KINDS[self.filesystem]
        opening.counted(found.written if kind.is_sealed(below) else None)
        torn = _may_repair(opening) and kind.is_torn(below)
        if not found.clean or torn or (opening.doubted and not opening.read_only):
            interrupted = torn or found.unfinished or not found.unmounted
            for command in self.open_commands(below, opening):
                _judge(command, self.filesystem, below, opening, interrupted=interrupted)
            found = facts(self.filesystem, below) or found
        if self.mmp and not found.mmp and not opening.read_only:
            _protect(kind, below, opening)
        if _may_repair(opening) and kind.is_fragile(below):
            opening.warn(
                f"volume {opening.volume} was created as root: if fuse2fs is killed while it is open, it may not open "
                "again. Create a new volume as this user"
            )
        whole = found.clean or not kind.records_unmount
        return Handle(below, self.filesystem, found.uuid, not found.unfinished, opening.read_only, whole)

    def find(self, below: str, opening: Opening) -> Handle | None:
        """The file system, if it can be read: checking leaves nothing behind."""
        try:
            found = facts(self.filesystem, below)
        except OSError:
            return None
        return Handle(below, self.filesystem, found.uuid) if found else None


@frozen(repr=False)
class Handle(LayerHandle):
    """A checked file system: the device or file it lies in, its kind and uuid.

    *finished*: its journal was empty when it was opened, so it has to be empty when it is closed. *whole*: the
    last writer has unmounted it, or it was repaired since; not every kind records it.
    """

    path: str
    kind: str
    uuid: str
    finished: bool = False
    read_only: bool = False
    whole: bool = True

    def close(self, runner: Runner) -> None:
        """Look at the super block after unmounting: no errors noted, nothing left in the journal. Raises `NotSafe`."""
        if self.read_only:
            return
        try:
            found = facts(self.kind, self.path)
        except OSError as error:
            raise NotSafe(
                f"the file system on {self.path} cannot be read back: {error.strerror}",
                hint="the last backup is not safely stored; repair the store and run it again",
            ) from error
        if found is None or found.errors or (self.finished and found.unfinished):
            raise NotSafe(
                f"the file system on {self.path} recorded errors while it was mounted",
                hint="the last backup is not safely stored; the next opening checks and repairs what it can",
            )

    def inspect(self) -> bool:
        """Whether that file system is still there."""
        try:
            found = facts(self.kind, self.path)
        except OSError:
            return False
        return found is not None and found.uuid == self.uuid


def make_commands(spec: Spec, path: str, *, journaled: bool = True) -> tuple[Command, ...]:
    """The command that makes the file system. *journaled*: its writer uses its journal, which fuse2fs does not."""
    kind = KINDS[spec.filesystem]
    make = kind.make if journaled else kind.without_journal(kind.make)
    return (change(*make, path, timeout=LONG_SECONDS),)


def recheck_commands(kind: str, path: str) -> tuple[Command, ...]:
    """The whole check that has to come before an unmounted resize."""
    argv = KINDS[kind].recheck
    return (change(*argv, path, ok=tuple(KINDS[kind].clean), timeout=LONG_SECONDS),) if argv else ()


def resize_command(kind: str, device: str, mountpoint: str | None, size: int) -> Command:
    """Make the file system *size* bytes large; shrinking takes None for *mountpoint*."""
    row = KINDS[kind]
    return row.resize(mountpoint if mountpoint and not row.unmounted else device, size)


def size(kind: str, device: str, mountpoint: str | None, runner: Runner) -> int | None:
    """Bytes of the file system, or None where there is none."""
    mounted = KINDS[kind].mounted_size
    if mountpoint and mounted is not None:
        return mounted(mountpoint, runner)
    noted = facts(kind, device)
    return noted.size if noted else None


def minimum(kind: str, path: str, runner: Runner) -> int | None:
    """Bytes below which the tool itself would not go, or None where it cannot say (not clean, or it cannot shrink)."""
    least, found = KINDS[kind].minimum, facts(kind, path)
    return least(path, found, runner) if least is not None and found is not None else None


def hindrance(kind: str, path: str, size: int, *, mounted: bool) -> str:
    """Why the file system in *path* can never get *size* bytes, in words, or "": by its features, whatever is in it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return KINDS[kind].hindrance(descriptor, size, mounted)
    finally:
        os.close(descriptor)


def is_repaired_by_opening(kind: str) -> bool:
    """Whether opening for writing runs a tool that repairs a file system which is not clean."""
    return KINDS[kind].check != KINDS[kind].look


def what_is_wrong(kind: str, path: str, runner: Runner) -> str:
    """What a whole check that changes nothing finds wrong in *path*, in words, or "": only of a kind that shrinks."""
    prove = KINDS[kind].prove
    if prove is None:
        raise RuntimeError(f"nothing shows whether {kind} is whole")
    return prove(path, runner)


def owners(kind: str, path: str, extents: Iterable[tuple[int, int]], runner: Runner) -> Owners:
    """What lies in *extents*, offsets and lengths in bytes, of the file system in *path*.

    Raises `Unavailable` where nobody can tell: for a kind without such a tool, and one that is too damaged.
    """
    ask, found = KINDS[kind].owners, facts(kind, path)
    if ask is None:
        raise Unavailable(
            f"lukshook cannot name the files in damaged pieces for {kind}",
            hint="reading all files shows which ones are damaged, if your backup tool has checksums of its own",
        )
    if found is None:
        raise Unavailable(
            f"the super block of the {kind} in the image is damaged, so no file can be named", hint="docs/recovery.md"
        )
    return ask(path, found, extents, runner)


def kind_of(path: str) -> str | None:
    """Which of our kinds of file system lies in *path*, or None."""
    return next((kind for kind in KINDS if facts(kind, path) is not None), None)


def _protect(kind: Kind, below: str, opening: Opening) -> None:
    """Turn multi-mount protection on. fuse2fs 1.47.0 mounts with the mark of a running e2fsck: all are kept out."""
    if os.geteuid():
        raise BadConfiguration(
            f"volume {opening.volume} cannot use mmp: a user's fuse2fs leaves a lock in it that shuts all users out",
            hint="remove mmp, and make sure that no two hosts use the volume at the same time; or run as root",
        )
    opening.runner.run(change(*kind.protect, below))


def _may_repair(opening: Opening) -> bool:
    """Whether it was fuse2fs that wrote to it, as it is for an ordinary user. The kernel leaves nothing like that."""
    return bool(os.geteuid()) and not opening.read_only


def _judge(command: Command, kind: str, below: str, opening: Opening, *, interrupted: bool) -> None:
    """Run the check, and say what it means for the opening.

    It replays the journal, which may hold another size than the super block did: so that is judged again.

    *interrupted*: the last writer was. Only then is damage what fuse2fs leaves, and repaired whatever that takes: where
    the file system says that it was unmounted, such a repair could hide that files are gone. e2fsck notes in it that
    it has refused, so one that is not clean need not be interrupted.
    """
    row, result = KINDS[kind], opening.runner.run(command)
    replayed = facts(kind, below)
    opening.trust.extent(replayed.size if replayed else None)
    if row.repair is not None and interrupted and _may_repair(opening) and result.code:
        result = row.repair(below, result, opening.runner)
        opening.warn(
            f"volume {opening.volume} was not closed cleanly; its file system was repaired. "
            "The most recent changes may be missing: run the backup again"
        )
    if result.code in row.clean or opening.read_only:
        return
    if row.kept_out and row.kept_out in result.err:
        raise Unavailable(
            f"volume {opening.volume} is in use by another host, according to its multi-mount protection",
            hint="close it there; if that host no longer exists: docs/troubleshooting.md",
        )
    if result.code in row.unchecked and not row.is_torn(below):
        raise Unavailable(
            f"the file system of volume {opening.volume} cannot be checked: {result.reason}",
            hint="is it mounted, or does another process use it?",
        )
    raise Refused(
        f"the file system of volume {opening.volume} is damaged and cannot be repaired automatically: {result.reason}",
        hint="copy the image first, then repair by hand: docs/recovery.md",
    )


def facts(kind: str, path: str) -> Facts | None:
    """What the super block in *path* says, or None where there is no such file system."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return KINDS[kind].facts(descriptor)
    finally:
        os.close(descriptor)
