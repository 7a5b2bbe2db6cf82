"""The loop devices of this machine and the files behind them, also where the server of such a file hangs.

To say which file is behind a loop device, the kernel asks the file system of that file. A file in user space (the plain
file of another volume, a file on sshfs) has a server, and the kernel waits for it without a limit. So children ask: one
for each file system that the names in sysfs lead to, all at the same time. A device that gives no answer is not asked
again by this process. Its name, which the kernel gives without asking anybody, has to do then.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from attrs import frozen

from lukshook.system import forked_call, kernel
from lukshook.system.one_look import same_for_all

#: How long a server may take.
SECONDS = 5.0
#: Devices that one child asks about: it tells 4 KiB at most, up to 200 bytes for each.
_AT_ONCE = 20
_GET_STATUS64 = 0x4C05  # linux/loop.h
_INFO64_BYTES = 232
_FLAG_DIRECT_IO = 16
#: The devices that gave no answer, and the file that was behind them.
_silent: set[tuple[str, str]] = set()


@frozen(repr=False)
class Backing:
    """The file behind a loop device: the numbers of its file system and inode."""

    device: int
    inode: int


@frozen(repr=False)
class Loop:
    """A loop device with a file attached.

    *name*: the path of the file, as the kernel gives it. *file* and *mark* are what the device itself says, None where
    it gives no answer: because its store hangs, or because it does not answer this user. *mark* is the name that the
    attaching program has written into it.
    """

    node: str
    name: str
    file: Backing | None = None
    mark: bytes | None = None


def on(file: Backing) -> tuple[Loop, ...]:
    """The loop devices that say that they stand on *file*."""
    return tuple(loop for loop in look() if loop.file == file)


def on_open(descriptor: int) -> tuple[Loop, ...]:
    """The loop devices on an open file: by what they say, or by their names where they say nothing."""
    found = os.fstat(descriptor)
    file, system = Backing(found.st_dev, found.st_ino), _file_system(os.readlink(f"/proc/self/fd/{descriptor}"))
    return tuple(
        loop
        for loop in look()
        if loop.file == file or (loop.file is None and _file_system(loop.name) == system and _leads_to(loop.name, file))
    )


def named(path: str) -> dict[str, str]:
    """The nodes of the loop devices on the file *path*, each with its number ("major:minor"). Asks nobody."""
    nodes = (node for node, name in attached().items() if name == path)
    return {node: "".join(kernel.lines(f"/sys/block/{Path(node).name}/dev")) for node in nodes}


@same_for_all
def attached() -> dict[str, str]:
    """The nodes of all loop devices with something attached, each with the path of its file. Asks nobody."""
    found = {}
    for entry in sorted(Path("/sys/block").glob("loop*/loop")):
        with suppress(OSError):  # detached meanwhile
            found[f"/dev/{entry.parent.name}"] = kernel.value(entry / "backing_file")
    return found


def look(devices: Mapping[str, str] | None = None) -> Iterator[Loop]:
    """What loop devices say, each with something attached. *devices*: as `attached` gives them; default: all."""
    devices = attached() if devices is None else devices
    told = _answers(devices)
    for node, name in devices.items():
        if node not in told:
            yield Loop(node, name)
        elif told[node]:
            device, inode, mark = told[node]
            yield Loop(node, name, Backing(int(device), int(inode)), bytes.fromhex(mark))


def _answers(devices: Mapping[str, str]) -> dict[str, list[str]]:
    """What each of *devices* says, in words; no word where nothing is attached any more. Not those that say nothing."""
    batches = list(_batches(devices))
    answers = list(_asked(batches))
    doubtful = [[node] for batch, answer in zip(batches, answers, strict=True) if answer is None for node in batch]
    if len(doubtful) > len(batches):  # one of several hangs: which one?
        batches, answers = batches + doubtful, answers + _asked(doubtful)
    _silent.update(
        (batch[0], devices[batch[0]])
        for batch, answer in zip(batches, answers, strict=True)
        if answer is None and len(batch) == 1
    )
    lines = (line.split(" ") for answer in answers if answer for line in answer.rstrip("\n").split("\n"))
    return {node: words for node, *words in lines}


def _batches(devices: Mapping[str, str]) -> Iterator[list[str]]:
    """The devices that can be asked, those on one file system together."""
    systems: dict[str, list[str]] = {}
    for node, name in devices.items():
        if (node, name) not in _silent and os.access(node, os.R_OK, effective_ids=True):
            systems.setdefault(_file_system(name), []).append(node)
    for nodes in systems.values():
        for first in range(0, len(nodes), _AT_ONCE):
            yield nodes[first : first + _AT_ONCE]


def _asked(batches: Sequence[Sequence[str]]) -> list[str | None]:
    return forked_call.in_children([partial(_tell, batch) for batch in batches], SECONDS)


def _tell(nodes: Sequence[str]) -> str:
    return "".join(map(_line, nodes))


def _line(node: str) -> str:
    """The node, the numbers behind it and its mark; the node alone where nothing is attached any more."""
    try:
        info = _status(node)
    except OSError as error:
        return f"{node}\n" if error.errno == errno.ENXIO else ""
    device, inode = struct.unpack_from("QQ", info)
    return f"{node} {device} {inode} {_mark(info).hex()}\n"


def _file_system(path: str) -> str:
    """The number of the file system that *path* lies in, as far as this process sees it. Asks nobody."""
    around = kernel.mounts_around(path)
    return around[-1].number if around else ""


def _leads_to(path: str, file: Backing) -> bool:
    """Whether *path* leads to *file*. Asks the server of the file system that *path* lies in."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return Backing(found.st_dev, found.st_ino) == file


def backing(node: str) -> Backing | None:
    """The file behind loop device *node*, or None when nothing is attached. Asks the store of that file."""
    info = _info(node)
    return Backing(*struct.unpack_from("QQ", info)) if info else None


def uses_direct_io(node: str) -> bool:
    """Whether loop device *node* goes past this machine's page cache. Asks the store of its file."""
    info = _info(node)
    return bool(info and struct.unpack_from("I", info, 52)[0] & _FLAG_DIRECT_IO)


def is_on_a_dead_file(node: str) -> bool:
    """Whether loop device *node* stands on a file of a FUSE daemon that has ended: the kernel cannot look at it."""
    try:
        _status(node)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _mark(info: bytes) -> bytes:
    mark: bytes = struct.unpack_from("64s", info, 56)[0]
    return mark.rstrip(b"\0")


def _info(node: str) -> bytes | None:
    """What `_status` gives, or None where nothing is attached or that is not known."""
    try:
        return _status(node)
    except OSError:
        return None


def _status(node: str) -> bytes:
    """struct loop_info64 of a loop device with something attached (LOOP_GET_STATUS64, loop(4)). Raises OSError."""
    descriptor = os.open(node, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return fcntl.ioctl(descriptor, _GET_STATUS64, bytes(_INFO64_BYTES))
    finally:
        os.close(descriptor)
