"""The loop device: makes a block device of a file. Once the layers above stand it is let go of, and goes with them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from attrs import frozen

from lukshook.errors import Busy, Unavailable
from lukshook.layers import loop_device
from lukshook.layers.base import LayerHandle, LayerSpec, Opening
from lukshook.store import liveness
from lukshook.store.image_file import LOCKED, locked_by_others
from lukshook.system import kernel, loops
from lukshook.system.command import Command, Runner, change, descriptor_path
from lukshook.system.loops import Backing

TOOLS: tuple[str, ...] = ("losetup",)
#: linux/fs.h.
_BLKRASET = 0x1262
#: Sectors of 512 bytes that are read ahead where the file system lies right on the device: 768 KiB, the fastest tried.
#: With the usual 128 KiB the daemon below waits between requests; Linux 6.18 takes 2.5 MiB, slow in some rounds.
_READ_AHEAD = 1536
#: Seconds in which the kernel lets go of a loop device whose last user is gone.
_GONE_SECONDS = 30.0


@frozen(repr=False)
class Spec(LayerSpec):
    """Nothing to choose: direct I/O is used wherever the store can do it."""

    def open_commands(self, below: str, opening: Opening) -> tuple[Command, ...]:
        """What a person would type; `open` does the same with the image's lock in the kernel's hands (`_attached`).

        Which device is free is known only when it is taken: a link in our private folder leads to it from then on.
        """
        read_only = " --read-only" if opening.read_only else ""
        attach = f'ln -sfn -- "$(losetup --find --show --nooverlap --direct-io=on{read_only} -- "$1")" "$2"'
        return (change("sh", "-c", attach, "sh", below, _link(opening)),)

    def expect(self, below: str, opening: Opening) -> Handle:
        """The link to the loop device."""
        return Handle(_link(opening), 0, 0, True)

    def open(self, below: str, opening: Opening) -> Handle:
        """Lock the image and attach it, with direct I/O where the store can do it. Raises `Unavailable`."""
        for command in self.open_commands(below, opening):
            opening.runner.note(str(command))
        image = _past_the_cache(opening.descriptor_of(below), below)
        try:
            found = os.fstat(image)
            _lock(image, below, opening)
            node = _attached(image, below, opening)
            _read_ahead(node, opening)
        finally:
            os.close(image)
        return Handle(node, found.st_dev, found.st_ino, loops.uses_direct_io(node))

    def find(self, below: str, opening: Opening) -> Handle | None:
        """A loop device on our file with our mark."""
        try:
            found = os.stat(below, follow_symlinks=False)
        except OSError:
            return None
        there = loops.on(Backing(found.st_dev, found.st_ino))
        ours = next((loop.node for loop in there if loop.mark == loop_device.mark(opening)), None)
        return Handle(ours, found.st_dev, found.st_ino, loops.uses_direct_io(ours)) if ours else None


@frozen(repr=False)
class Handle(LayerHandle):
    """An attached loop device: its node, and the file system and inode number of the backing file."""

    path: str
    device: int
    inode: int
    direct_io: bool

    @property
    def backing(self) -> Backing:
        """The backing file in the kernel's words."""
        return Backing(self.device, self.inode)

    def close_commands(self) -> tuple[Command, ...]:
        """Detach; on a device in use that only marks it to go with its last user (losetup(8), util-linux 2.37)."""
        if self.path.startswith("/dev/"):
            return (change("losetup", "--detach", self.path, ok=(0, 1)),)
        return (change("sh", "-c", 'losetup --detach "$(readlink -- "$1")" && rm -- "$1"', "sh", self.path),)

    def release_commands(self) -> tuple[Command, ...]:
        """As closing does it."""
        return self.close_commands()

    def release(self, runner: Runner) -> None:
        """Let the loop device go with its last user, so that not even kill -9 leaves one behind.

        On a device in use that only marks it, so it cannot hang and needs no tool.
        """
        for command in self.close_commands():
            runner.note(str(command))
        try:
            loop_device.let_go(self.path)
        except OSError as error:
            raise Unavailable(
                f"{self.path} could not be released: {error.strerror}",
                hint="the command for that is: losetup --detach " + self.path,
            ) from error

    def close(self, runner: Runner) -> None:
        """Detach and wait until the backing file is let go of. Raises `Busy`, `TimedOut`."""
        if not _stands(self):
            return
        for command in self.close_commands():
            runner.note(str(command))
            _detach(self, command)
        if not kernel.wait_until(lambda: not _stands(self), _GONE_SECONDS):
            raise Busy(f"{self.path} is still in use", hint="another process has the device open; lsof shows it")

    def inspect(self) -> bool:
        """Whether the device still stands on that very file."""
        return loops.backing(self.path) == self.backing


def _link(opening: Opening) -> str:
    return os.fspath(opening.run_folder / f"{opening.label}.loop")


def _past_the_cache(image: int, below: str) -> int:
    """*image*, or in its place a descriptor of the same file that is opened for direct I/O, where the store wants that.

    Elsewhere the device asks for direct I/O by itself, and would take its block size from a file that is opened so.
    """
    if not liveness.is_direct_when_opened(Path(below)):
        return image
    try:
        access = fcntl.fcntl(image, fcntl.F_GETFL) & os.O_ACCMODE
        return os.open(descriptor_path(image), access | os.O_DIRECT | os.O_CLOEXEC)
    finally:
        os.close(image)


def _lock(image: int, below: str, opening: Opening) -> None:
    """Lock out other hosts and other configurations, as far as the store's locks reach.

    flock(2) belongs to the open file, and the loop device keeps this very one: so the lock lasts exactly as long as
    the device stands, whatever becomes of us.
    """
    try:
        fcntl.flock(image, (fcntl.LOCK_SH if opening.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except LOCKED as error:
        raise locked_by_others(below) from error
    except OSError as error:
        opening.runner.note(f"the store of {below} does not support locks: {error.strerror}")


def _attached(image: int, below: str, opening: Opening) -> str:
    """The node of a loop device that stands on the open file *image*."""
    flags = loop_device.DIRECT_IO | (loop_device.READ_ONLY if opening.read_only else 0)
    attached = loop_device.attach(image, below, flags, opening)
    os.close(attached.descriptor)
    return attached.node


def _read_ahead(node: str, opening: Opening) -> None:
    """Only for speed, so that it may fail: where the kernel refuses, it reads ahead what it likes."""
    try:
        loop_device.ioctl(node, _BLKRASET, _READ_AHEAD)
    except OSError as error:
        opening.runner.note(f"blockdev --setra {_READ_AHEAD} {node}: {error.strerror}")


def _detach(handle: Handle, typed: Command) -> None:
    """Let go of the device as *typed* would; a store that may die is waited for by a child, which opens it by itself.

    The last one to close the device does the work: a descriptor of ours would bring that back to us.
    """
    devices = os.open("/dev", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        liveness.call(lambda _: loop_device.let_go(handle.path), devices, typed)
    except OSError as error:
        if _stands(handle):
            raise Busy(f"{handle.path} could not be detached: {error.strerror}") from error
    finally:
        os.close(devices)


def _stands(handle: Handle) -> bool:
    """Whether there is something to detach: a device whose file is dead tells no more which file that was."""
    return handle.inspect() or loops.is_on_a_dead_file(handle.path)


def size(handle: Handle) -> int:
    """Bytes the device has now: it does not see by itself that its file has grown. Raises OSError."""
    return kernel.block_size(handle.path)


def grow_commands(handle: Handle) -> tuple[Command, ...]:
    """Let the device see the file's new size (LOOP_SET_CAPACITY)."""
    return (change("losetup", "--set-capacity", handle.path),)
