"""Loop devices for layers: attached to an open file, marked as ours, and let go of with their last user."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from attrs import frozen

from lukshook.errors import Unavailable
from lukshook.layers.base import Opening
from lukshook.store.image_file import ImageFile
from lukshook.system import kernel, loops
from lukshook.system.digest import sha256
from lukshook.system.loops import Loop

#: linux/loop.h; LOOP_CONFIGURE is there since Linux 5.8.
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CLR_FD = 0x4C01
_LOOP_CONFIGURE = 0x4C0A
READ_ONLY, GOES_WITH_LAST_USER, DIRECT_IO = 1, 4, 16
#: struct loop_config: fd, block size, then struct loop_info64 with flags and file name, then reserved words.
_CONFIG = "II 5Q 4I 64s 64s 32s 2Q 8Q"
#: How the mark in a device of any lukshook begins.
MARK = b"lukshook "
#: The same in a device under another copy of a volume (`unrecorded`).
COPY_MARK = MARK + b"copy "
#: Others may take the device that was free a moment ago.
_TRIES = 20
#: Seconds in which sysfs forgets the name of a file that was just let go of.
_NAMED_SECONDS = 5.0


@frozen(eq=False, repr=False)
class Attached:
    """A loop device that was just attached: its node, and an open descriptor of that, which the caller closes."""

    node: str
    descriptor: int


def attach(file: int, shown: str, flags: int, opening: Opening) -> Attached:
    """A loop device on the open *file*, named *shown* in errors, with our mark. Raises `Unavailable`.

    losetup(8) would open a file of its own.
    """
    config = struct.pack(_CONFIG, file, 0, *(0,) * 8, flags, mark(opening), b"", b"", *(0,) * 10)
    problem = "all devices are taken"
    for _ in range(_TRIES):
        try:
            return _configured(_free_node(), config)
        except OSError as error:
            if error.errno == errno.EBUSY:
                continue
            problem = error.strerror or str(error)
            break
    raise Unavailable(
        f"no loop device for {shown}: {problem}",
        hint="loop devices need root, /dev/loop-control and the loop module",
    )


def _configured(node: str, config: bytes) -> Attached:
    descriptor = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _LOOP_CONFIGURE, config)
    except OSError:
        os.close(descriptor)
        raise
    return Attached(node, descriptor)


def _free_node() -> str:
    return f"/dev/loop{ioctl('/dev/loop-control', _LOOP_CTL_GET_FREE, 0)}"


def ioctl(node: str, request: int, argument: int | bytes, mode: int = os.O_RDWR) -> int:
    """Open *node*, ask the kernel for *request*, close. Raises OSError."""
    descriptor = os.open(node, mode | os.O_CLOEXEC)
    try:
        answer = fcntl.ioctl(descriptor, request, argument)
        return answer if isinstance(answer, int) else 0
    finally:
        os.close(descriptor)


def let_go(node: str) -> None:
    """Detach *node*; one in use is only marked to go with its last user (loop(4)). Raises OSError."""
    try:
        ioctl(node, _LOOP_CLR_FD, 0, os.O_RDONLY)
    except OSError as error:
        if error.errno != errno.ENXIO:  # nothing is attached
            raise


def check_unattached(image: ImageFile) -> None:
    """Check that no loop device stands on *image*: another program would write through it. Raises `Unavailable`.

    flock(2) does not show it, because losetup(8) takes no lock. A device of root does not answer an ordinary user, and
    its name stays a moment longer than the file behind it.
    """
    found: tuple[Loop, ...] = ()

    def is_free() -> bool:
        nonlocal found
        found = loops.on_open(image.descriptor)
        return not found

    if not kernel.wait_until(is_free, _NAMED_SECONDS if os.geteuid() else 0.0):
        raise _attached_by_others(os.fspath(image.path), found[0])


def _attached_by_others(image: str, loop: Loop) -> Unavailable:
    mark = loop.mark or b""
    if mark.startswith(COPY_MARK):
        return Unavailable(
            f"{image} is already open read-only as a copy of a volume, on {loop.node}",
            hint="lukshook status shows where; close it with: lukshook close NAME --at FOLDER",
        )
    if mark.startswith(MARK):
        return Unavailable(
            f"another lukshook has {image} open, on {loop.node}",
            hint="a lukshook with other folders, or an interrupted lukshook-resize: the same command closes it",
        )
    who = "" if loop.mark is None else ", and not by lukshook"  # a device that says nothing may be root's lukshook's
    return Unavailable(
        f"{image} is already attached to {loop.node}{who}",
        hint=f"detach it first, as root: losetup --detach {loop.node}",
    )


def mark(opening: Opening) -> bytes:
    """Says in the device itself that it is ours: of this volume and this run folder, not of another lukshook."""
    return (COPY_MARK if opening.is_copy else MARK) + tag(opening).encode()


def tag(opening: Opening) -> str:
    """40 hexadecimal digits that stand for this volume and this run folder."""
    return sha256(os.fsencode(opening.run_folder / opening.label)).hexdigest()[:40]
