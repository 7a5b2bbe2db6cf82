"""The file system in the volume: looked at before every mount and after every close. One table row per kind."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from attrs import evolve, field, frozen

from lukshook.errors import BadConfiguration, NotSafe, Refused, Unavailable
from lukshook.filesystems import ext4_repair, superblock
from lukshook.filesystems.superblock import Facts
from lukshook.layers.base import Opening, keep, no_commands, nothing_to_release, settled
from lukshook.system.command import TOOL_ENVIRONMENT, Command, Runner, change, read

NAME = "filesystem"
#: Each kind has its own: `Kind.tools`.
TOOLS: tuple[str, ...] = ()
#: Seconds for work that grows with the file system; only there so that a dead store ends it some day.
LONG_SECONDS = 12 * 3600.0


@frozen
class Kind:
    """A row of the table: how one kind of file system is made, checked and recognised.

    *clean* are the exit statuses of *check* after which the file system may be mounted. *least* is the smallest size
    in bytes that is made. *resize* gives the command for a place and a size in bytes: the place is the mount point,
    or, for a kind that can be resized unmounted too (*unmounted*), the device. *recheck* has to come before that then.
    *minimum* prints how small it can get, in blocks, and is empty for a kind that lukshook does not shrink; *prove*
    checks one that was made smaller and changes nothing. *hindrance* says why it cannot get a size in bytes while it is
    mounted, or not. *tools* are the programs that this kind needs in its life.
    """

    make: tuple[str, ...]
    check: tuple[str, ...]
    look: tuple[str, ...]
    clean: frozenset[int]
    facts: Callable[[int], Facts | None]
    least: int
    tools: tuple[str, ...]
    resize: Callable[[str, int], tuple[str, ...]]
    unmounted: bool = False
    recheck: tuple[str, ...] = ()
    minimum: tuple[str, ...] = ()
    prove: tuple[str, ...] = ()
    hindrance: Callable[[int, int, bool], str] = superblock.no_hindrance


def _ext4_resize(place: str, size: int) -> tuple[str, ...]:
    """resize2fs(8); sectors, because a plain number is one of file system blocks."""
    return ("resize2fs", place, f"{size // 512}s")


def _xfs_resize(place: str, size: int) -> tuple[str, ...]:
    """xfs_growfs(8): as far as the device goes, which is *size*."""
    return ("xfs_growfs", "-d", place)


def _btrfs_resize(place: str, size: int) -> tuple[str, ...]:
    """btrfs-filesystem(8)."""
    return ("btrfs", "filesystem", "resize", str(size), place)


KINDS = {
    "ext4": Kind(
        # 4 KiB blocks, because a mapping with 4 KiB sectors carries no smaller ones. Inode tables and journal are not
        # written out: on a fresh key their blocks decrypt to noise that no checksum fits, and the time stays the same
        # whatever the size. nodiscard keeps preallocated blocks allocated. Tables of 256 block groups lie together, as
        # Lustre has it, because growing takes one step for each such flock (docs/internals/measurements.md).
        make=(
            "mkfs.ext4",
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-m",
            "0",
            "-e",
            "remount-ro",
            "-G",
            "256",
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
        ),
        check=("e2fsck", "-p"),
        look=("e2fsck", "-n"),
        clean=frozenset({0, 1}),
        facts=superblock.ext4,
        least=32 * 1024 * 1024,
        tools=("mkfs.ext4", "e2fsck", "resize2fs", "tune2fs"),
        resize=_ext4_resize,
        unmounted=True,
        recheck=("e2fsck", "-f", "-p"),
        minimum=("resize2fs", "-P"),
        prove=("e2fsck", "-f", "-n"),
        hindrance=superblock.ext4_hindrance,
    ),
    "xfs": Kind(
        make=("mkfs.xfs", "-q", "-f", "-K"),
        check=(),  # there is nothing to run before mounting: fsck.xfs(8) does nothing, mounting replays the log
        look=(),
        clean=frozenset({0}),
        facts=superblock.xfs,
        least=320 * 1024 * 1024,
        tools=("mkfs.xfs", "xfs_growfs", "xfs_info"),
        resize=_xfs_resize,
    ),
    "btrfs": Kind(
        make=("mkfs.btrfs", "-q", "-f", "-K"),
        check=("btrfs", "check", "--readonly"),
        look=("btrfs", "check", "--readonly"),
        clean=frozenset({0}),
        facts=superblock.btrfs,
        least=128 * 1024 * 1024,
        tools=("mkfs.btrfs", "btrfs"),
        resize=_btrfs_resize,
    ),
}


@frozen
class Spec:
    """*filesystem*: kind of a new one, and the only one mounted. *mmp*: ext4 keeps a second host out."""

    filesystem: str = field(default="ext4")
    mmp: bool = False


@frozen
class Handle:
    """A checked file system: the device or file it lies in, its kind and uuid.

    *finished*: its journal was empty when it was opened, so it has to be empty when it is closed. *whole*: the
    last writer has unmounted it, or it was repaired since; only ext4 records it.
    """

    path: str
    kind: str
    uuid: str
    finished: bool = False
    read_only: bool = False
    whole: bool = True


close_commands = no_commands
release = keep
release_commands = nothing_to_release
settle = settled


def make_commands(spec: Spec, path: str, *, journaled: bool = True) -> tuple[Command, ...]:
    """The command that makes the file system. *journaled*: its writer uses its journal.

    fuse2fs does not. When it is killed, folders may name inodes that were not written yet, and e2fsck 1.47.0 gives up
    on one that is noise; so there the inode tables are written out.
    """
    make = KINDS[spec.filesystem].make
    if not journaled:
        make = tuple(word.replace("lazy_itable_init=1", "lazy_itable_init=0") for word in make)
    return (change(*make, path, timeout=LONG_SECONDS),)


def open_commands(spec: Spec, below: str, opening: Opening) -> tuple[Command, ...]:
    """The check before mounting what is not clean; for a read-only opening one that changes nothing."""
    kind = KINDS[spec.filesystem]
    argv = kind.look if opening.read_only else kind.check
    if not argv:
        return ()
    make = read if opening.read_only else change
    return (make(*argv, below, ok=tuple(range(256)), timeout=LONG_SECONDS),)


def recheck_commands(kind: str, path: str) -> tuple[Command, ...]:
    """The whole check that has to come before an unmounted resize: resize2fs asks for one since the last mount."""
    argv = KINDS[kind].recheck
    return (change(*argv, path, ok=tuple(KINDS[kind].clean), timeout=LONG_SECONDS),) if argv else ()


def resize_command(kind: str, device: str, mountpoint: str | None, size: int) -> Command:
    """Make the file system *size* bytes large; shrinking ext4 takes None for *mountpoint*.

    For an ordinary user new inode tables are written out, for the reason that `make_commands` has.
    """
    row = KINDS[kind]
    place = mountpoint if mountpoint and not row.unmounted else device
    command = change(*row.resize(place, size), timeout=LONG_SECONDS)
    if command.argv[0] != "resize2fs":
        return command
    environment = {"UNIX_IO_NOZEROOUT": TOOL_ENVIRONMENT["UNIX_IO_NOZEROOUT"]}  # printed too, for a shell
    if os.geteuid():
        environment["RESIZE2FS_FORCE_ITABLE_INIT"] = "1"
    return evolve(command, environment=environment)


def size(kind: str, device: str, mountpoint: str | None, runner: Runner) -> int | None:
    """Bytes of the file system, or None where there is none.

    xfs and btrfs write their super blocks past the device's page cache while they are mounted, so those are asked
    by other ways then.
    """
    if mountpoint and kind == "xfs":
        told = re.search(
            r"^data\s+=\s+bsize=([0-9]+)\s+blocks=([0-9]+)", runner.run(read("xfs_info", mountpoint)).out, re.M
        )
        return int(told[1]) * int(told[2]) if told else None
    if mountpoint and kind == "btrfs":
        found = os.statvfs(mountpoint)
        return found.f_blocks * found.f_frsize
    noted = facts(kind, device)
    return noted.size if noted else None


def minimum(kind: str, path: str, runner: Runner) -> int | None:
    """Bytes below which the tool itself would not go, or None where it cannot say (not clean, or it cannot shrink)."""
    found = facts(kind, path)
    if found is None or not KINDS[kind].minimum:
        return None
    result = runner.run(read(*KINDS[kind].minimum, path, ok=tuple(range(256)), timeout=LONG_SECONDS))
    match = re.search(r"minimum size of the filesystem: ([0-9]+)", result.out)
    return int(match[1]) * found.block if match and not result.code else None


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
    """What a whole check that changes nothing finds wrong in *path*, in words, or "".

    e2fsck 1.47.0 exits 0 also where it has found a damaged resize inode, so what it asks, and answers itself with "no",
    counts. An extent tree that could be smaller is not an error.
    """
    argv = KINDS[kind].prove
    result = runner.run(read(*argv, path, ok=tuple(range(256)), timeout=LONG_SECONDS))
    asked = next((line.strip(" \t\r") for line in result.out.split("\n") if _is_refused_repair(line)), "")
    return asked or (result.reason if result.code else "")


def _is_refused_repair(line: str) -> bool:
    return line.endswith("? no") and not line.endswith("Optimize? no")


def kind_of(path: str) -> str | None:
    """Which of our kinds of file system lies in *path*, or None."""
    return next((kind for kind in KINDS if facts(kind, path) is not None), None)


def expect(spec: Spec, below: str, opening: Opening) -> Handle:
    """The device or file below itself."""
    return Handle(below, spec.filesystem, "", read_only=opening.read_only)


def open(spec: Spec, below: str, opening: Opening) -> Handle:  # noqa: A001
    """Check that it is the expected kind and clean. Raises `Refused`, `Unavailable`."""
    found = facts(spec.filesystem, below)
    opening.trust.extent(found.size if found else None)
    if found is None:
        raise Refused(
            f"there is no {spec.filesystem} file system in volume {opening.volume}",
            hint="create was interrupted, or the image is damaged; restore a backup of the image",
        )
    opening.trust.history(found.uuid, found.written)
    if not found.clean or _is_torn(spec.filesystem, below, opening):
        for command in open_commands(spec, below, opening):
            _judge(command, spec.filesystem, below, opening)
        found = facts(spec.filesystem, below) or found
    if spec.mmp and not found.mmp and not opening.read_only:
        _protect(below, opening)
    if spec.filesystem == "ext4" and _may_mend(opening) and ext4_repair.has_blank_tables(below):
        opening.warn(
            f"volume {opening.volume} was created as root: if fuse2fs is killed while it is open, it may not open "
            "again. Create a new volume as this user"
        )
    whole = found.clean or spec.filesystem != "ext4"
    return Handle(below, spec.filesystem, found.uuid, not found.unfinished, opening.read_only, whole)


def _protect(below: str, opening: Opening) -> None:
    """Turn multi-mount protection on. fuse2fs 1.47.0 mounts with the mark of a running e2fsck: all are kept out."""
    if os.geteuid():
        raise BadConfiguration(
            f"volume {opening.volume} cannot use mmp: a user's fuse2fs leaves a lock in it that shuts all users out",
            hint="remove mmp, and make sure that no two hosts use the volume at the same time; or run as root",
        )
    opening.runner.run(change("tune2fs", "-O", "mmp", below))


def _is_torn(kind: str, below: str, opening: Opening) -> bool:
    return kind == "ext4" and _may_mend(opening) and ext4_repair.is_torn(below)


def _may_mend(opening: Opening) -> bool:
    """Whether it was fuse2fs that wrote to it, as it is for an ordinary user. The kernel's ext4 never needs that."""
    return bool(os.geteuid()) and not opening.read_only


def _judge(command: Command, kind: str, below: str, opening: Opening) -> None:
    """e2fsck(8): 0 clean, 1 repaired, 4 errors left, 8 operational error; others are added up.

    The check replays the journal, which may hold another size than the super block did: so that is judged again.
    """
    result = opening.runner.run(command)
    replayed = facts(kind, below)
    opening.trust.extent(replayed.size if replayed else None)
    if _may_mend(opening) and result.code:
        if result.code & 12:
            result = ext4_repair.repair(below, opening.runner)
        opening.warn(
            f"volume {opening.volume} was not closed cleanly; its file system was repaired. "
            "The most recent changes may be missing: run the backup again"
        )
    if result.code in KINDS[kind].clean or opening.read_only:
        return
    if "MMP" in result.err:
        raise Unavailable(
            f"volume {opening.volume} is in use by another host, according to its multi-mount protection",
            hint="close it there; if that host no longer exists: docs/troubleshooting.md",
        )
    if result.code == 8 and not ext4_repair.is_torn(below):
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


def close(handle: Handle, runner: Runner) -> None:
    """Look at the super block after unmounting: no errors noted, nothing left in the journal. Raises `NotSafe`."""
    if handle.read_only:
        return
    try:
        found = facts(handle.kind, handle.path)
    except OSError as error:
        raise NotSafe(
            f"the file system on {handle.path} cannot be read back: {error.strerror}",
            hint="the last backup is not safely stored; repair the store and run it again",
        ) from error
    if found is None or found.errors or (handle.finished and found.unfinished):
        raise NotSafe(
            f"the file system on {handle.path} recorded errors while it was mounted",
            hint="the last backup is not safely stored; the next opening checks and repairs what it can",
        )


def inspect(handle: Handle) -> bool:
    """Whether that file system is still there."""
    try:
        found = facts(handle.kind, handle.path)
    except OSError:
        return False
    return found is not None and found.uuid == handle.uuid


def find(spec: Spec, below: str, opening: Opening) -> Handle | None:
    """The file system, if it can be read: checking leaves nothing behind."""
    try:
        found = facts(spec.filesystem, below)
    except OSError:
        return None
    return Handle(below, spec.filesystem, found.uuid) if found else None
