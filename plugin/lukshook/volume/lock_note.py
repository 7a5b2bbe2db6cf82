"""Who has a volume's lock, and how far its work is: a note in the lock file, for those that wait for it."""

from __future__ import annotations

import os
from contextlib import suppress

from attrs import frozen

from lukshook.system import kernel
from lukshook.system.text import clipped

#: Bytes of the note. It is written by one call and always as long, so none is read half old, half new.
_BYTES = 256
_MOST_SHOWN = 120


@frozen(repr=False)
class Holder:
    """The process *pid* and its command, and what it tells of its work, "" for nothing."""

    pid: int
    command: str
    doing: str

    @property
    def shown(self) -> str:
        """In words."""
        return f"{self.command} (pid {self.pid})" + (f", {self.doing}" if self.doing else "")


def write(lock: int, doing: str = "") -> None:
    """Note in the open file *lock* that we have it, and what we are *doing*. Nothing where there is no room for it."""
    pid = os.getpid()
    note = f"{pid} {kernel.started(pid)} {doing or '-'}".encode()[:_BYTES]
    with suppress(OSError):
        os.pwrite(lock, note.ljust(_BYTES), 0)


def read(lock: int) -> Holder | None:
    """Who has noted that it has *lock*; None for one that has ended: a tool that it has started may hold it yet."""
    try:
        pid, started, doing = os.pread(lock, _BYTES, 0).decode(errors="replace").rstrip(" ").split(" ", 2)
        if kernel.started(int(pid)) != int(started):
            return None
    except (OSError, ValueError):
        return None
    return Holder(int(pid), command_of(int(pid)), "" if doing == "-" else clipped(doing, _MOST_SHOWN))


def command_of(pid: int) -> str:
    """The words of lukshook's command line, without the interpreter; of another program its name."""
    words = kernel.words(pid)
    ours = next((number for number, word in enumerate(words) if os.path.basename(word) == "lukshook"), None)  # noqa: PTH119
    return kernel.command(pid) if ours is None else clipped(" ".join(("lukshook", *words[ours + 1 :])), _MOST_SHOWN)
