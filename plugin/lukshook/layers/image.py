"""The image: a regular file on the store, or a block device. Checked, never changed, by opening."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from attrs import field, frozen

from lukshook.errors import LukshookError, NotSafe, Refused
from lukshook.layers.base import LayerHandle, LayerSpec, Opening
from lukshook.store import image_file
from lukshook.store.image_file import Identity, ImageFile, open_image
from lukshook.system.command import Command, Runner

TOOLS: tuple[str, ...] = ()
FILLS = ("fallocate", "sparse", "zero")


@frozen
class Spec(LayerSpec):
    """*image*: path of the image. *size*: of a new image, for `create`. *fill*: how a new image gets its blocks."""

    image: Path
    size: str | None = None
    fill: str = field(default="fallocate")

    @property
    def place(self) -> Path:
        """The image, as what was opened is called."""
        return image_file.node_of(self.image)

    def open_commands(self, below: str, opening: Opening) -> tuple[Command, ...]:
        """Looking needs no tool."""
        return ()

    def expect(self, below: str, opening: Opening) -> Handle:
        """The image's own path."""
        return Handle(os.fspath(self.image), 0, 0, 0, False)

    def open(self, below: str, opening: Opening) -> Handle:
        """Note which image was opened. Raises `Refused` where it is empty."""
        return handle_of(opening.the_image())

    def find(self, below: str, opening: Opening) -> Handle | None:
        """The image, if it is there; it is not opened for that."""
        try:
            found = image_file.look(self.image)
        except (OSError, LukshookError):
            return None
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
            return None
        which = image_file.identity(found)
        return Handle(os.fspath(self.image), which.device, which.inode, found.st_size, stat.S_ISBLK(found.st_mode))


@frozen
class Handle(LayerHandle):
    """An image that was there: its path, file system and inode number, and size in bytes. *block*: a block device."""

    path: str
    device: int
    inode: int
    size: int
    block: bool

    def close(self, runner: Runner) -> None:
        """Make sure that all that was written is on the store. Raises `NotSafe`."""
        try:
            image = open_image(Path(self.path), writable=False)
        except LukshookError as error:
            raise NotSafe(
                f"the image {self.path} is gone: {error.message}",
                hint="the store went away during the backup; check it with: lukshook check NAME",
            ) from error
        with image:
            if image.identity != Identity(self.device, self.inode):
                raise NotSafe(
                    f"the image {self.path} was replaced while it was open",
                    hint="the backup went into the file that was there before",
                )
            _sync(image)

    def inspect(self) -> bool:
        """Whether the very same image is still at its path."""
        try:
            found = image_file.look(Path(self.path))
        except (OSError, LukshookError):
            return False
        return image_file.identity(found) == Identity(self.device, self.inode)


def handle_of(image: ImageFile) -> Handle:
    """What is true of an open image. Raises `Refused` where it is empty."""
    size, found = image.size, image.identity
    if not size:
        raise Refused(
            f"the image {image.path} is empty", hint="restore it, or make a new one with: lukshook create NAME"
        )
    return Handle(os.fspath(image.path), found.device, found.inode, size, image.block)


def _sync(image: ImageFile) -> None:
    try:
        image.sync()
    except OSError as error:
        raise NotSafe(
            f"the store did not accept all data of {image.path}: {error.strerror}",
            hint="the last backup is not safely stored; free space or repair the store and run it again",
        ) from error
