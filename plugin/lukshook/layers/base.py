"""What all layers share: what one opening is about, and the shape of a layer."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeVar

from attrs import Factory, field, frozen

from lukshook.errors import Refused
from lukshook.luks import header
from lukshook.luks.header import Copy, Header
from lukshook.store import liveness
from lukshook.store.image_file import SYNC_SECONDS, ImageFile
from lukshook.system.command import Command, Runner, change
from lukshook.system.secret import Secret


class Trust(Protocol):
    """What this host knows of a volume, and whether what the store shows agrees with it."""

    def judge(self, copy: Copy, size: int) -> Header:
        """The header in *copy* of a volume of *size* bytes, if it is sane and known. Asked before the key is read."""
        ...

    def vouch(self, header: Header, key: Secret) -> None:
        """Check that the header was written by a holder of the key. Raises `Refused`."""
        ...

    def history(self, uuid: str, written: int | None) -> None:
        """Check that the file system is the known one, and not older than when it was closed last. Raises `Refused`."""
        ...

    def extent(self, size: int | None) -> None:
        """Check that the image holds all *size* bytes of its file system; None: as many as known. Raises `Refused`."""
        ...


def unheard(message: str) -> None:
    """A warning that is not shown."""


def uncounted(written: int | None) -> None:
    """A count of what was ever written that nothing compares with."""


@frozen(eq=False, repr=False)
class Recording:
    """What a ledger asks of an opening: that a layer records where the image is written.

    *folder*: this host's private folder for the record, on a local disk. *piece*: bytes; one bit for each piece is
    enough. *fresh*: begin a new record; otherwise an earlier opening was not closed cleanly, and a layer that still has
    the record of that opening continues it.
    """

    folder: Path
    piece: int
    fresh: bool


class Records(Enum):
    """What a layer's record of writes covers."""

    NOTHING = "nothing"
    THIS_OPENING = "this opening"
    SINCE_CLEAN_CLOSE = "all openings since the last clean close"


#: Stands in the label of another copy of a volume, and in no name of a volume.
COPY = "@"

#: Bytes of the image: where they begin, and how many.
Extent = tuple[int, int]


@frozen(eq=False, repr=False)
class Opening:
    """One opening of one volume, as every layer sees it.

    *key* asks the key source, so it is called as late as possible; *key_from* says how a person would produce the
    key. *run_folder* is private to us; things are shown and mounted there. *warn* tells the user what does not stop
    the opening. *image* is the open image that all layers work on; None where nothing is opened (a dry run,
    `Layer.find`). *recording*: what a ledger wants to know; None without one, and for what only reads. *label* names
    what the kernel shows of this opening, where *volume* is for messages: another copy of a volume has its own.
    *header*: the header that is judged and used in place of the image's own, None for that. *doubted*: the store has
    lost writes, so what calls itself clean need not be. *counted*: told the file system's count of what was ever
    written, None where that is not sure, before anything can change it.
    """

    volume: str
    runner: Runner
    run_folder: Path
    key: Callable[[], Secret]
    key_from: str
    trust: Trust
    read_only: bool = False
    warn: Callable[[str], None] = unheard
    image: ImageFile | None = None
    recording: Recording | None = None
    label: str = field(default=Factory(lambda self: self.volume, takes_self=True))
    header: Copy | None = None
    doubted: bool = False
    counted: Callable[[int | None], None] = uncounted

    @property
    def is_copy(self) -> bool:
        """Whether this is another copy of the volume, which may be open beside it."""
        return COPY in self.label

    def header_in(self, descriptor: int) -> Copy:
        """The header to judge and use: the one in *descriptor*, unless there is another. Raises as `header.copy`."""
        return self.header or header.copy(descriptor)

    def the_image(self) -> ImageFile:
        """The open image."""
        if self.image is None:
            raise RuntimeError("nothing is open in this opening")
        return self.image

    def descriptor_of(self, below: str) -> int:
        """A new descriptor of the file that a layer stands on: of the image as it was judged, else of a file of ours.

        It has an flock(2) of its own, and the caller closes it. Raises OSError.
        """
        image = self.the_image()
        if below == os.fspath(image.path):
            return image.again(writable=not self.read_only)
        return os.open(below, (os.O_RDONLY if self.read_only else os.O_RDWR) | os.O_NOFOLLOW | os.O_CLOEXEC)


@frozen(eq=False, repr=False)  # those of the layers have their own
class LayerSpec(ABC):
    """What the user asked of one layer. *below* is the path that the layer stands on."""

    @property
    def transparent(self) -> bool:
        """Whether it shows the layer above what is below: where it is missing, that one stands on what is below."""
        return False

    @abstractmethod
    def open_commands(self, below: str, opening: Opening) -> tuple[Command, ...]:
        """The commands `open` runs; pure."""

    @abstractmethod
    def expect(self, below: str, opening: Opening) -> LayerHandle | None:
        """The handle that `open` would give, as far as it is known before opening; for dry runs."""

    @abstractmethod
    def open(self, below: str, opening: Opening) -> LayerHandle | None:
        """Open, ask the kernel what really happened, and return what is now true. Leaves nothing when it raises.

        None where a transparent layer is not wanted in this opening.
        """

    @abstractmethod
    def find(self, below: str, opening: Opening) -> LayerHandle | None:
        """What is open but not in the record (a process killed between a step and its record), or None."""

    @property
    def place(self) -> Path | None:
        """The path that the user configured for the layer, at which its handle stands, or None."""
        return None

    def at(self, mountpoint: Path) -> LayerSpec | None:
        """The same with another mount point; None for a layer that has none."""
        return None

    def check_tools(self, runner: Runner) -> None:
        """Check that the programs of the layer can be trusted with a volume. Raises `Unavailable`."""
        return

    def can_record(self, runner: Runner) -> bool:
        """Whether the layer can record where the image is written, as far as that is known before opening.

        Raises `Unavailable` where it could, but something is missing; a layer that never records says no.
        """
        return False


@frozen(eq=False, repr=False)
class LayerHandle(ABC):
    """What is open of one layer: only strings and numbers, so that the record keeps it as JSON.

    *path* is what the layer above stands on: a file, a device, or for the topmost the mount point. A layer that has
    nothing to do at one of these steps leaves it as it is here.
    """

    path: str

    @property
    def number(self) -> str:
        """The device number, "major:minor", of a layer that has written it down, else ""."""
        return ""

    @property
    def whole(self) -> bool:
        """Whether what was written last is in it: one that was not closed cleanly shows less while it is read-only."""
        return True

    @property
    def records(self) -> Records:
        """What `written` covers; a layer that does not record covers nothing."""
        return Records.NOTHING

    def written(self, runner: Runner) -> tuple[Extent, ...]:
        """Where the image was written, as far as `records` says. It may name more than was written, never less.

        Also while the volume is in use; then for what has reached this layer. In a closing it is asked when the layers
        above are closed, right before `close`. Raises `LukshookError` when the record cannot be read: then
        everything counts as written.
        """
        return ()

    def close_commands(self) -> tuple[Command, ...]:
        """The commands `close` runs; pure."""
        return ()

    def release_commands(self) -> tuple[Command, ...]:
        """The commands `release` stands for, for dry runs; pure."""
        return ()

    def release(self, runner: Runner) -> None:
        """Called once the layers above stand: release what they hold anyway, so that it disappears with them."""
        return

    def settle(self, runner: Runner) -> str:
        """Make sure that nothing more is written and all data has left us; what was lost, in words, or "".

        Called from the top before anything is closed. Raises `Busy` while a process may still write.
        """
        return ""

    def unblock(self, above: str, runner: Runner) -> None:
        """Called before anything is asked about the layers: where that would wait for ever, let it fail instead.

        *above*: what stands on it. Raises `Unavailable`.
        """
        return

    @abstractmethod
    def close(self, runner: Runner) -> None:
        """Undo `open`; what is gone is fine. Raises `Busy` (nothing undone), `NotSafe` (undone, but data lost)."""

    @abstractmethod
    def inspect(self) -> bool:
        """Whether what the handle says is still so: the same device, inode, identity."""


#: What is open of a volume, by the name of the layer, from the bottom up.
Handles = Mapping[str, LayerHandle]

_Kind = TypeVar("_Kind", bound=LayerHandle)


def handle_of(handles: Handles, kind: type[_Kind]) -> _Kind:
    """The one among *handles* that is of a *kind*. Raises LookupError where there is none."""
    for handle in handles.values():
        if isinstance(handle, kind):
            return handle
    raise LookupError(f"no {kind.__module__} is open")


def private_place(opening: Opening) -> Command:
    """The command that makes our private folder; for dry runs."""
    return change("mkdir", "--parents", "--mode=700", "--", os.fspath(opening.run_folder))


def damaged(volume: str, reason: str, *, read_only: bool) -> Refused:
    """That the file system of *volume* was found, and cannot be mounted for what is in it: *reason*.

    Read-only its journal is not replayed, so that one that was not closed looks the same.
    """
    repair = "copy the image first, then repair by hand: docs/recovery.md"
    again = f"open and close it once read-write (lukshook open {volume}); if that fails too, {repair}"
    return Refused(
        f"volume {volume} cannot be mounted, its file system is damaged: {reason}", hint=again if read_only else repair
    )


def write_out(descriptor: int, path: str) -> None:
    """Make sure that the file *path* is on the store. Raises OSError, `TimedOut` when the store dies meanwhile."""
    liveness.call(os.fsync, descriptor, change("sync", "--", path, timeout=SYNC_SECONDS))
