"""What the kernel shows of a volume, regardless of who opened it: for when there is no record.

Looks at mounts and at sysfs only, so it never waits for a store. Two users may have volumes of the same name, so what
is not at the mount point counts only where it stands on the image.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from lukshook.config import Volume
from lukshook.errors import Busy, Denied
from lukshook.filesystems.mounts import lies_on
from lukshook.layers import loop_device, mount_point, qemu_process
from lukshook.layers.base import COPY
from lukshook.store.image_file import may_be_device
from lukshook.system import kernel, loops
from lukshook.system.ownership import name_of

#: How mappings and the marks of loop devices of any lukshook begin (`layers`).
_OURS = "lukshook"


@frozen(repr=False)
class Shown:
    """*what* stands, in words; *owner*: the id of the user who can close it."""

    what: str
    owner: int


def of(volume: Volume) -> Shown | None:
    """What stands of *volume*, the topmost; None for nothing that this user can see."""
    return next(_all(volume), None)


def line(volume: Volume, found: Shown) -> str:
    """What is open and who can close it."""
    who = "" if found.owner == os.geteuid() else f"; user {name_of(found.owner)} can close it"
    return f"volume {volume.name} is still open: {found.what}{who}"


def refuse(volume: Volume) -> None:
    """Check that nothing of *volume* is open, when there is nothing (more) that we know how to close.

    Raises `Denied` where another user can close it, `Busy` where root looks or the user is not known.
    """
    found = of(volume)
    if found is None:
        return
    if found.owner == os.geteuid():
        hint = f"this configuration did not open it; look at it with: findmnt {volume.mountpoint}"
        raise Busy(line(volume, found), hint=hint)
    kind = Denied if os.geteuid() else Busy
    raise kind(line(volume, found), hint=f"as user {name_of(found.owner)}, who opened it: lukshook close {volume.name}")


def places_of(below: str) -> Iterator[Path]:
    """Where the kernel shows the file system on the device or file *below*."""
    try:
        number = kernel.number(below)
    except OSError:
        number = ""
    for mount in kernel.mounts():
        named = mount.source == below and (not mount.kind.startswith("fuse") or kernel.is_fuse_of(mount, os.geteuid()))
        if mount.root == "/" and (named or (number and lies_on(mount, number))):
            yield Path(mount.target)


def _all(volume: Volume) -> Iterator[Shown]:
    mount = mount_point.covering(volume.mountpoint)
    if mount is not None:
        yield Shown(f"{mount.source} is mounted at {volume.mountpoint}", _user_of(mount))
    image, copy = os.fspath(volume.image.image), COPY in volume.label
    named = loops.named(image)
    under = {*named.values(), *_device(volume.image.image)}
    for mapping in _mappings_on(under) if under else ():
        if mapping.name.startswith(f"{_OURS}-") and (COPY in mapping.name) == copy:
            places = [m.target for m in kernel.mounts() if lies_on(m, mapping.number)]
            yield Shown(f"the mapping {mapping.name}" + "".join(f", mounted at {place}" for place in places[:1]), 0)
    for loop in loops.look(dict.fromkeys(named, image)) if named else ():
        mark = loop.mark or b""
        if mark.startswith(_OURS.encode()) and mark.startswith(loop_device.COPY_MARK) == copy:
            yield Shown(f"the loop device {loop.node} on {image}", 0)
    if f"{volume.label}.plain" in kernel.fuse_names():
        yield from _daemons(image, volume.label)


def _mappings_on(under: set[str]) -> Iterator[kernel.Mapping]:
    """The mappings that stand on a device *under*, or on another mapping that does; the topmost first."""
    there = tuple(kernel.mappings())
    lower = [mapping for mapping in there if mapping.under & under]
    if lower:
        yield from _mappings_on({mapping.number for mapping in lower})
    yield from lower


def _daemons(image: str, label: str) -> Iterator[Shown]:
    """The daemons of the userspace engine that have the image open for *label*, as far as this user may know.

    By the names of their open files, and by that of their PID file: a copy of the volume may be this very image. The
    image itself may lie on a dead store, and is not touched.
    """
    for pid in kernel.processes_named(qemu_process.NAME):
        if image in kernel.open_names(pid) and qemu_process.is_of(pid, label):
            yield Shown(f"the daemon with pid {pid}, which has {image} open", kernel.owner(pid) or 0)


def _device(image: Path) -> set[str]:
    """The number of an image that is a block device."""
    try:
        return {kernel.number(image)} if may_be_device(image) else set()
    except OSError:
        return set()


def _user_of(mount: kernel.Mount) -> int:
    """Who may unmount it: for FUSE the user who mounted it (mount option user_id=, fuse(8)), else root."""
    ids = [option.partition("=")[2] for option in mount.common if option.startswith("user_id=")]
    return int(ids[0]) if ids and ids[0].isdecimal() else 0
