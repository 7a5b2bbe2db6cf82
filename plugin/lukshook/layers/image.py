"""The image: a regular file on the store, or a block device. Checked, never changed, by opening."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from attrs import field, frozen

from lukshook.command import Command, Runner
from lukshook.errors import LukshookError, NotSafe, Refused
from lukshook.layers.base import Opening, keep, no_commands, open_image, settled, write_out

NAME = "image"
TOOLS: tuple[str, ...] = ()
FILLS = ("fallocate", "sparse", "zero")


@frozen
class Spec:
    """*image*: path of the image. *size*: of a new image, for `create`. *fill*: how a new image gets its blocks."""

    image: Path
    size: str | None = None
    fill: str = field(default="fallocate")


@frozen
class Handle:
    """An image that was there: its path, file system and inode number, and size in bytes. *block*: a block device."""

    path: str
    device: int
    inode: int
    size: int
    block: bool


close_commands = no_commands
release = keep
settle = settled


def open_commands(spec: Spec, below: str, opening: Opening) -> tuple[Command, ...]:
    """Looking needs no tool."""
    return ()


def expect(spec: Spec, below: str, opening: Opening) -> str:
    """The image's own path."""
    return os.fspath(spec.image)


def open(spec: Spec, below: str, opening: Opening) -> Handle:  # noqa: A001
    """See that the image is there, is a file or block device, and can be read and written.

    Raises `Unavailable`, `Denied`, `BadConfiguration` (a link, a folder, a pipe).
    """
    descriptor = open_image(spec.image, writable=not opening.read_only)
    try:
        return _handle(spec.image, descriptor)
    finally:
        os.close(descriptor)


def _handle(path: Path, descriptor: int) -> Handle:
    found = os.fstat(descriptor)
    block = stat.S_ISBLK(found.st_mode)
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if not size:
        raise Refused(f"the image {path} is empty", hint="restore it, or make a new one with: lukshook create NAME")
    return Handle(os.fspath(path), found.st_rdev if block else found.st_dev, found.st_ino, size, block)


def close(handle: Handle, runner: Runner) -> None:
    """Make sure that all that was written is on the store. Raises `NotSafe`."""
    try:
        descriptor = os.open(handle.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise NotSafe(
            f"the image {handle.path} is gone: {error.strerror}",
            hint="the store went away during the backup; check it with: lukshook check NAME",
        ) from error
    try:
        found = os.fstat(descriptor)
        if (found.st_rdev if handle.block else found.st_dev, found.st_ino) != (handle.device, handle.inode):
            raise NotSafe(
                f"the image {handle.path} was exchanged while it was open",
                hint="what was backed up went into the file that lay there before",
            )
        write_out(descriptor, handle.path)
    except OSError as error:
        raise NotSafe(
            f"the store did not take all of {handle.path}: {error.strerror}",
            hint="the last backup is not safely stored; free space or repair the store and run it again",
        ) from error
    finally:
        os.close(descriptor)


def inspect(handle: Handle) -> bool:
    """Whether the very same image is still at its path."""
    try:
        found = os.stat(handle.path, follow_symlinks=False)
    except OSError:
        return False
    return handle.inode == found.st_ino and handle.device == (found.st_rdev if handle.block else found.st_dev)


def find(spec: Spec, below: str, opening: Opening) -> Handle | None:
    """The image, if it is there: opening it leaves nothing behind."""
    try:
        descriptor = open_image(spec.image, writable=False)
    except LukshookError:
        return None
    try:
        return _handle(spec.image, descriptor)
    except Refused:
        return None
    finally:
        os.close(descriptor)
