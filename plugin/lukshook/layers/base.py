"""What all layers share: what one opening is about, and the shape of a layer."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from attrs import frozen

from lukshook import store
from lukshook.command import Command, Runner, change
from lukshook.errors import BadConfiguration, Denied, Refused, Unavailable
from lukshook.header import Copy, Header
from lukshook.secret import Secret

#: Seconds for writing out a file of the store, after the volume in it was written out.
_SYNC_SECONDS = 1800.0


class Trust(Protocol):
    """What this host knows of a volume, and whether what the store shows agrees with it."""

    def judge(self, copy: Copy, size: int) -> Header:
        """The header in *copy* of a volume of *size* bytes, if it is sane and known. Asked before the key is read."""
        ...

    def vouch(self, header: Header, key: Secret) -> None:
        """See that the header was written by somebody who has the key. Raises `Refused`."""
        ...

    def history(self, uuid: str, written: int | None) -> None:
        """See that the file system is the known one, and not older than when it was closed last. Raises `Refused`."""
        ...

    def extent(self, size: int | None) -> None:
        """See that the image holds all *size* bytes of its file system; None: as many as known. Raises `Refused`."""
        ...


def unheard(message: str) -> None:
    """A warning where nobody listens."""


@frozen
class Opening:
    """One opening of one volume, as every layer sees it.

    *key* asks the key source, so it is called as late as possible; *key_from* says how a person would produce the
    key. *run_folder* is private to us and gone after a reboot. *warn* tells the user what does not stop the opening.
    """

    volume: str
    runner: Runner
    run_folder: Path
    key: Callable[[], Secret]
    key_from: str
    trust: Trust
    read_only: bool = False
    warn: Callable[[str], None] = unheard


class Layer(Protocol):
    """The vocabulary of a layer file. *below* is the path the layer stands on, *spec* what the user asked for."""

    NAME: str
    #: The programs the layer starts, for `check`.
    TOOLS: tuple[str, ...]
    Handle: Any
    Spec: Any

    def open_commands(self, spec: Any, below: str, opening: Opening) -> tuple[Command, ...]:
        """The commands `open` runs; pure."""
        ...

    def close_commands(self, handle: Any) -> tuple[Command, ...]:
        """The commands `close` runs; pure."""
        ...

    def expect(self, spec: Any, below: str, opening: Opening) -> str:
        """The path the next layer will stand on, as far as it can be told before opening; for dry runs."""
        ...

    def open(self, spec: Any, below: str, opening: Opening) -> Any:
        """Open, ask the kernel what really happened, and return what is now true. Leaves nothing when it raises."""
        ...

    def release(self, handle: Any, runner: Runner) -> None:
        """Called once the layers above stand: let go of what they hold anyway, so that it goes when they go."""
        ...

    def settle(self, handle: Any, runner: Runner) -> str:
        """See that nothing more is written, and that all that was has left us; what was lost, in words, or "".

        Called from the top before anything is closed. Raises `Busy` while somebody may still write.
        """
        ...

    def close(self, handle: Any, runner: Runner) -> None:
        """Undo `open`; what is gone is fine. Raises `Busy` (nothing undone), `NotSafe` (undone, but data lost)."""
        ...

    def inspect(self, handle: Any) -> bool:
        """Whether what the handle says is still so: the same device, inode, identity."""
        ...

    def find(self, spec: Any, below: str, opening: Opening) -> Any | None:
        """What stands though nobody wrote it down (a process killed between a step and its record), or None."""
        ...


def keep(handle: Any, runner: Runner) -> None:
    """The `release` of a layer that has nothing to let go of."""


def settled(handle: Any, runner: Runner) -> str:
    """The `settle` of a layer that nobody writes to but the one above."""
    return ""


def no_commands(handle: Any) -> tuple[Command, ...]:
    """The `close_commands` of a layer that has nothing to undo."""
    return ()


def damaged(volume: str, reason: str, *, read_only: bool) -> Refused:
    """That the file system of *volume* was found, and cannot be mounted for what is in it: *reason*.

    Read-only its journal is not replayed, so that one that was not closed looks the same.
    """
    repair = "copy the image first, then repair by hand: docs/recovery.md"
    again = f"open and close it once for writing (lukshook open {volume}); if that fails too, {repair}"
    return Refused(
        f"volume {volume} cannot be mounted, its file system is damaged: {reason}", hint=again if read_only else repair
    )


def write_out(descriptor: int, path: str) -> None:
    """See that all of the file *path* is on the store. Raises OSError, `TimedOut` when the store dies meanwhile."""
    store.call(os.fsync, descriptor, change("sync", "--", path, timeout=_SYNC_SECONDS))


def may_be_device(path: Path) -> bool:
    """Whether a device is meant by *path*. What lies on a store is a file, whatever the store has put there."""
    return Path(os.path.normpath(path)).is_relative_to("/dev")


def open_image(path: Path, *, writable: bool) -> int:
    """A descriptor of the image, links not followed.

    Raises `Unavailable`, `Denied`, `BadConfiguration`, `Refused` (a block device where none is meant).
    """
    mode = os.O_RDWR if writable else os.O_RDONLY
    try:
        descriptor = os.open(path, mode | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        gone = path if path.parent.is_dir() else f"{path}, and its folder too,"
        raise Unavailable(
            f"the image {gone} is not there",
            hint="is the store mounted? a new image is made by: lukshook create NAME",
        ) from error
    except PermissionError as error:
        raise Denied(
            f"the image {path} cannot be opened: permission denied",
            hint="run as root, or as the image's owner with the userspace engine",
        ) from error
    except OSError as error:
        if path.is_symlink():
            raise BadConfiguration(
                f"the image {path} is a symbolic link",
                hint="a link on a store one does not trust can lead anywhere: name the file itself",
            ) from error
        if path.is_dir():
            raise BadConfiguration(f"the image {path} is a folder", hint="name a file in it") from error
        raise Unavailable(
            f"the image {path} cannot be opened: {error.strerror}", hint="is the store mounted and writable?"
        ) from error
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind) or (stat.S_ISBLK(kind) and may_be_device(path)):
        return descriptor
    os.close(descriptor)
    if stat.S_ISBLK(kind):
        raise Refused(
            f"the image {path} is a block device, and not in /dev",
            hint="a store can put one there that leads to a disk of this machine; name a device of yours as /dev/...",
        )
    raise BadConfiguration(
        f"the image {path} is neither a regular file nor a block device",
        hint="a pipe or device on a store one does not trust can hang or do harm: name the file itself",
    )
