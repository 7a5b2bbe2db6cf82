"""The loop device: makes a block device of a file. Once the layers above stand it is let go of, and goes with them."""

from __future__ import annotations

import os

from attrs import frozen

from lukshook import kernel
from lukshook.command import Command, CommandFailed, Runner, change, read
from lukshook.errors import Busy, Unavailable
from lukshook.layers.base import Opening

NAME = "loop"
TOOLS: tuple[str, ...] = ("losetup",)
#: Seconds in which the kernel lets go of a loop device whose last user is gone.
_GONE_SECONDS = 30.0


@frozen
class Spec:
    """Nothing to choose: direct I/O is used wherever the store can do it."""


@frozen
class Handle:
    """An attached loop device: its node, and the file system and inode number of the backing file."""

    path: str
    device: int
    inode: int
    direct_io: bool

    @property
    def backing(self) -> kernel.Backing:
        """The backing file in the kernel's words."""
        return kernel.Backing(self.device, self.inode)


def open_commands(spec: Spec, below: str, opening: Opening) -> tuple[Command, ...]:
    """One losetup; `--nooverlap`, because two loop devices on one file destroy each other's data (losetup(8))."""
    return (_attach(below, opening, direct_io=True),)


def _attach(below: str, opening: Opening, *, direct_io: bool) -> Command:
    options = ["--find", "--show", "--nooverlap"]
    if direct_io:
        options.append("--direct-io=on")
    if opening.read_only:
        options.append("--read-only")
    return change("losetup", *options, "--", below)


def close_commands(handle: Handle) -> tuple[Command, ...]:
    """Detach; on a device in use that only marks it to go with its last user (losetup(8), util-linux 2.37)."""
    return (change("losetup", "--detach", handle.path, ok=(0, 1)),)


def expect(spec: Spec, below: str, opening: Opening) -> str:
    """The loop device that is free now."""
    return opening.runner.run(read("losetup", "--find")).out.strip()


def open(spec: Spec, below: str, opening: Opening) -> Handle:  # noqa: A001
    """Attach, with direct I/O where the store can do it. Raises `Unavailable`."""
    found = os.stat(below)
    file = kernel.Backing(found.st_dev, found.st_ino)
    others = kernel.loops_of(file)
    if others:
        raise Unavailable(
            f"{below} is attached to {others[0]} already, not by us",
            hint=f"whoever did that has to let go of it: losetup --detach {others[0]}",
        )
    node, direct_io = _attached(below, opening)
    handle = Handle(node, file.device, file.inode, direct_io)
    if not inspect(handle):
        raise Unavailable(f"{node} does not stand on {below}", hint="the image was exchanged while it was opened")
    return handle


def _attached(below: str, opening: Opening) -> tuple[str, bool]:
    try:
        return opening.runner.run(_attach(below, opening, direct_io=True)).out.strip(), True
    except CommandFailed:
        pass  # stores such as tmpfs and some network file systems have no direct I/O
    try:
        return opening.runner.run(_attach(below, opening, direct_io=False)).out.strip(), False
    except CommandFailed as error:
        raise Unavailable(
            f"no loop device for {below}: {error.result.reason}",
            hint="loop devices need root, /dev/loop-control and the loop module",
        ) from error


def release(handle: Handle, runner: Runner) -> None:
    """Let the loop device go with its last user, so that not even kill -9 leaves one behind."""
    for command in close_commands(handle):
        runner.run(command)


def close(handle: Handle, runner: Runner) -> None:
    """Detach and wait until the backing file is let go of. Raises `Busy`."""
    if not inspect(handle):
        return
    for command in close_commands(handle):
        runner.run(command)
    if not kernel.wait_until(lambda: not inspect(handle), _GONE_SECONDS):
        raise Busy(f"{handle.path} is still in use", hint="something opened the device itself; lsof names it")


def size(handle: Handle) -> int:
    """Bytes the device has now: it does not see by itself that its file has grown. Raises OSError."""
    return kernel.block_size(handle.path)


def grow_commands(handle: Handle) -> tuple[Command, ...]:
    """Let the device see the file's new size (LOOP_SET_CAPACITY)."""
    return (change("losetup", "--set-capacity", handle.path),)


def inspect(handle: Handle) -> bool:
    """Whether the device still stands on that very file."""
    return kernel.backing(handle.path) == handle.backing


def find(spec: Spec, below: str, opening: Opening) -> Handle | None:
    """A loop device on our file."""
    try:
        found = os.stat(below)
    except OSError:
        return None
    nodes = kernel.loops_of(kernel.Backing(found.st_dev, found.st_ino))
    return Handle(nodes[0], found.st_dev, found.st_ino, False) if nodes else None
