"""`btrfs`: a read-only snapshot of the subvolume that the image lies in.

It lies in a folder of that subvolume that only its owner can enter. The kernel makes it in one transaction that is on
the disk before the call ends, so it is there or not, also after a power cut (fs/btrfs/ioctl.c, create_snapshot).
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import evolve, frozen

from lukshook.errors import LukshookError, Refused, Unavailable
from lukshook.snapshots.kind import Policy, Snapshot
from lukshook.store.image_file import look, open_listed
from lukshook.system.command import Command, Runner, change, descriptor_path, find_tool

ARGUMENT = ""
#: The folder for snapshots in the subvolume.
FOLDER = ".lukshook-snapshots"
#: Seconds: a snapshot waits until all that is to be written is on the disk.
_SECONDS = 1800.0
_ENTER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ROOT_INODE = 256  # BTRFS_FIRST_FREE_OBJECTID (linux/btrfs_tree.h): the root of every subvolume, and nothing else
_GET_SUBVOL_INFO = 0x81F8943C  # BTRFS_IOC_GET_SUBVOL_INFO (linux/btrfs.h)
_INFO_BYTES = 504


@frozen
class _Subvolume:
    """What the kernel says of a subvolume: its number, its UUID, and that of the one it is a snapshot of."""

    number: int
    uuid: str
    parent: str


def check(argument: str) -> str:
    """It takes none."""
    return ""


def plan(image: Path, name: str, policy: Policy, runner: Runner) -> Snapshot:
    """The snapshot of the subvolume of *image*. Raises `Unavailable` where there is none."""
    find_tool("btrfs")
    if not stat.S_ISREG(look(image).st_mode):
        raise Unavailable(f"the image {image} is not a file on btrfs", hint="use another kind of snapshot")
    inner, descriptor = _root_above(image)
    try:
        found = _info(descriptor)
        place = os.readlink(descriptor_path(descriptor))
    except OSError as error:
        raise _not_btrfs(image) from error
    finally:
        os.close(descriptor)
    return Snapshot("btrfs", name, place, found.uuid, image=os.fspath(Path(place, FOLDER, name, inner)))


def _root_above(image: Path) -> tuple[Path, int]:
    """The path of *image* within its subvolume, and a descriptor of the subvolume's root."""
    folder = open_listed(image.parent)
    start, device = os.readlink(descriptor_path(folder)), os.fstat(folder).st_dev
    try:
        while os.fstat(folder).st_ino != _ROOT_INODE:
            lower, folder = folder, os.open("..", _ENTER, dir_fd=folder)
            same = os.path.samestat(os.fstat(lower), os.fstat(folder))
            os.close(lower)
            if same or os.fstat(folder).st_dev != device:
                raise _not_btrfs(image)
        root = os.readlink(descriptor_path(folder))
        return Path(start).relative_to(root) / image.name, folder
    except BaseException:
        os.close(folder)
        raise


def _not_btrfs(image: Path) -> LukshookError:
    return Unavailable(
        f"the image {image} does not lie in a subvolume of btrfs that is mounted here",
        hint="move it to a subvolume of its own (btrfs subvolume create), or use another kind of snapshot",
    )


def _info(descriptor: int) -> _Subvolume:
    """Raises OSError where *descriptor* is not on btrfs. Offsets of btrfs_ioctl_get_subvol_info_args, linux/btrfs.h."""
    found = fcntl.ioctl(descriptor, _GET_SUBVOL_INFO, bytes(_INFO_BYTES))
    number = struct.unpack_from("Q", found)[0]
    own, parent = (str(uuid.UUID(bytes=found[at : at + 16])) for at in (296, 312))
    return _Subvolume(number, own, parent)


def take(planned: Snapshot, policy: Policy, runner: Runner) -> Snapshot:
    """Take it, in a folder that is ours alone."""
    if runner.dry:
        beside = os.fspath(Path(planned.place, FOLDER))
        runner.run(change("mkdir", "--parents", "--mode=0700", "--", beside))
        runner.run(_taking(planned.place, beside, planned.name))
        return planned
    with _origin(planned) as root:
        _make_folder(root)
        with _folder(root) as folder:
            command = _taking(descriptor_path(root), descriptor_path(folder), planned.name)
            runner.run(evolve(command, fds=(root, folder)))
    found = find(planned, runner)
    if found is None:
        raise Unavailable(f"the snapshot {planned.image} is gone at once", hint="who removes snapshots there?")
    return found


def _taking(source: str, folder: str, name: str) -> Command:
    """btrfs-subvolume(8)."""
    return change("btrfs", "subvolume", "snapshot", "-r", source, f"{folder}/{name}", timeout=_SECONDS)


@contextmanager
def _origin(snapshot: Snapshot) -> Iterator[int]:
    """A descriptor of the subvolume that it was taken of. Raises `Unavailable` where that is not at its place."""
    root = -1
    try:
        root = open_listed(Path(snapshot.place))
        there = os.fstat(root).st_ino == _ROOT_INODE and _info(root).uuid == snapshot.origin
    except OSError:
        there = False
    try:
        if not there:
            raise Unavailable(
                f"the subvolume {snapshot.place} that snapshot {snapshot.name} was taken of is not there",
                hint="is the store mounted?",
            )
        yield root
    finally:
        if root >= 0:
            os.close(root)


def _make_folder(root: int) -> None:
    """A snapshot commits it to the disk as well."""
    with suppress(FileExistsError):
        os.mkdir(FOLDER, 0o700, dir_fd=root)


@contextmanager
def _folder(root: int) -> Iterator[int]:
    """The folder of the snapshots. Raises FileNotFoundError; `Refused` where other users could change it."""
    descriptor = os.open(FOLDER, _ENTER, dir_fd=root)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
            raise Refused(
                f"other users may write to the folder {FOLDER} of the image's subvolume",
                hint=f"look at what is in it, then: chown and chmod 0700 {FOLDER}",
            )
        yield descriptor
    finally:
        os.close(descriptor)


def find(snapshot: Snapshot, runner: Runner) -> Snapshot | None:
    """A subvolume of that name whose parent is the origin."""
    with _origin(snapshot) as root:
        try:
            with _folder(root) as folder:
                seen = _seen(folder, snapshot.name)
        except FileNotFoundError:
            return None
    return evolve(snapshot, mark=seen.uuid) if seen and seen.parent == snapshot.origin else None


def _seen(folder: int, name: str) -> _Subvolume | None:
    """The subvolume *name* in *folder*."""
    try:
        descriptor = os.open(name, _ENTER, dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return _info(descriptor) if os.fstat(descriptor).st_ino == _ROOT_INODE else None
    finally:
        os.close(descriptor)


def remove(snapshot: Snapshot, policy: Policy, runner: Runner) -> None:
    """By its number, which no other subvolume ever gets; what has another mark stays."""
    with _origin(snapshot) as root:
        try:
            with _folder(root) as folder:
                seen = _seen(folder, snapshot.name)
        except FileNotFoundError:
            return
        if seen is not None and seen.uuid == snapshot.mark:
            number = ("--commit-after", "--subvolid", str(seen.number))
            command = change("btrfs", "subvolume", "delete", *number, descriptor_path(root), timeout=_SECONDS)
            runner.run(evolve(command, fds=(root,)))
