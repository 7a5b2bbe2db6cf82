"""The image: a regular file on the store, or a block device. Checked, never changed, by opening."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

from lukshook.errors import LukshookError, NotSafe, Refused
from lukshook.layers import loop_device
from lukshook.layers.base import LayerHandle, LayerSpec, Opening
from lukshook.store import image_file, liveness
from lukshook.store.image_file import Identity, ImageFile, open_image
from lukshook.system.command import Command, Runner

if TYPE_CHECKING:
    from lukshook.store.remote.kind import Store

TOOLS: tuple[str, ...] = ()
FILLS = ("fallocate", "sparse", "zero")


@frozen(repr=False)
class Spec(LayerSpec):
    """*image*: path of the image. *size*: of a new image, for `create`. *fill*: how a new image gets its blocks.

    *remote*: where the image really is, if that is another machine; it appears at *image* while it is used. *patience*:
    seconds that writing waits while the connection to it is down.
    """

    image: Path
    size: str | None = None
    fill: str = field(default="fallocate")
    remote: Store | None = None
    patience: float = 600.0

    @property
    def place(self) -> Path:
        """The image, as what was opened is called."""
        return image_file.node_of(self.image)

    @property
    def shown(self) -> str:
        """What the user calls the image: its path or its URL."""
        return self.remote.url if self.remote else os.fspath(self.image)

    @property
    def tools(self) -> tuple[str, ...]:
        """The programs that its place needs on this machine."""
        if self.remote is None:
            return ()
        from lukshook.store.remote import attachment  # noqa: PLC0415 - only for remote images

        return (*attachment.TOOLS, *self.remote.tools)

    @property
    def is_given(self) -> bool:
        """Whether lukshook can use the image only as it is there: it can neither make nor name one."""
        return self.remote is not None and not self.remote.abilities.create

    def probe(self, runner: Runner) -> None:
        """Check that the store answers, before anything touches it. Raises `Unavailable`.

        A remote one is not asked: what touches its image waits for *patience*, and not for ever.
        """
        if self.remote is None:
            liveness.probe(self.image, runner)

    def local_locks(self) -> str:
        """Why a lock on the image may not reach other hosts, or ""."""
        if self.remote is None:
            return liveness.local_locks(self.image)
        why = self.remote.abilities.weakness
        return f"{self.remote.url.partition(':')[0]}, {why}" if why else ""

    def open_commands(self, below: str, opening: Opening) -> tuple[Command, ...]:
        """Looking needs no tool."""
        return ()

    def expect(self, below: str, opening: Opening) -> Handle:
        """The image's own path."""
        return Handle(os.fspath(self.image), 0, 0, 0, False)

    def open(self, below: str, opening: Opening) -> Handle:
        """Note which image was opened. Raises `Refused` where it is empty, `Unavailable` where others have it open."""
        image = opening.the_image()
        handle = handle_of(image)
        loop_device.check_unattached(image)
        return handle

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


@frozen(repr=False)
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
