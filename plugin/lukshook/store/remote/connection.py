"""What the processes that serve one connection share: pipes, what they leave in the private folder, and the log."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from lukshook.store.remote.kind import LATE, LOST, WRITING
from lukshook.system import journald, json_files

CLIENT_IN, CLIENT_OUT, ERRORS = 0, 1, 2
#: Bytes that are read at once; that wait to be sent until no more are taken.
CHUNK, MOST_WAITING = 1 << 18, 4 << 20
#: Runs a tool, and says how that ended.
STARTS = '"$@"; echo "ended $?" >&2'
#: Seconds until a tool has said why it ended.
_LAST_WORDS_SECONDS = 20.0
#: What ssh(1) and the kernel say where they gave up a line on which nothing came any more.
_GAVE_UP = ("Timeout, server", "timed out")
#: Bytes of what a tool says that are looked at.
_MOST_SAID = 1 << 14
#: The least exit status of sh(1) for a tool that a signal has ended.
_BY_SIGNAL = 128
_OF_SSH = 255


class Broken(Exception):
    """The connection cannot be used any more; the text says why. *silent*: it may still carry what was sent."""

    def __init__(self, why: str, *, silent: bool = False) -> None:
        super().__init__(why)
        self.silent = silent


def some(descriptor: int) -> bytes:
    """What is there to be read; b"" at the end."""
    with suppress(ConnectionError):
        return os.read(descriptor, CHUNK)
    return b""


def pass_on(buffer: bytearray, descriptor: int) -> None:
    """Write what goes at once of *buffer*, and take it out."""
    with suppress(BlockingIOError):
        del buffer[: os.write(descriptor, buffer[:CHUNK])]


class Writes:
    """Whether an earlier connection may still carry writes that come after newer ones. *folder*: our private one.

    For servers that let a new connection in while an old one is not over.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.begun = False

    def begin(self) -> None:
        """Before each write."""
        if not self.begun:
            self.begun = True
            if (self._folder / WRITING).exists():
                (self._folder / LATE).touch()
            (self._folder / WRITING).touch()

    def end(self, *, late: bool) -> None:
        """The connection is over. *late*: with writes under way that may still arrive."""
        if self.begun and not late:
            (self._folder / WRITING).unlink(missing_ok=True)


def was_cut(folder: Path) -> bool:
    """Whether the tool that made the connection was killed, or gave a silent line up.

    Then what it has sent may still arrive. Where the far side has closed, it takes nothing more. Waits until the tool
    has said how it ended.
    """
    end = time.monotonic() + _LAST_WORDS_SECONDS
    while time.monotonic() < end:
        said = _end_of(folder / "said")
        ended = [line[6:] for line in said.split("\n") if line.startswith("ended ")]
        if ended:
            killed = ended[-1].isdigit() and _BY_SIGNAL <= int(ended[-1]) != _OF_SSH
            return killed or any(words in said for words in _GAVE_UP)
        time.sleep(0.05)
    return True


def _end_of(file: Path) -> str:
    """The last of what was said; a server can say any amount."""
    with file.open("rb") as opened:
        opened.seek(max(opened.seek(0, os.SEEK_END) - _MOST_SAID, 0))
        return opened.read(_MOST_SAID).decode(errors="replace")


def tell_lost(folder: Path, why: str) -> None:
    """Once the connection was in use: say so in the log, and leave a note."""
    with suppress(FileExistsError, OSError):
        descriptor = os.open(folder / LOST, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.close(descriptor)
        _log(folder, f"is lost: {why}; writing waits", journald.ERROR)


def tell_back(folder: Path) -> None:
    """The connection is in use: say so in the log, where it was lost before."""
    with suppress(OSError):
        since = time.time() - os.stat(folder / LOST).st_mtime
        (folder / LOST).unlink()
        _log(folder, f"is back after {max(since, 0):.0f} s", journald.INFO)


def _log(folder: Path, what: str, priority: int) -> None:
    try:
        url = str(json_files.load(folder / "noted").get("url", ""))
    except (OSError, json_files.Damaged):
        url = "the image"
    volume = Path(os.path.realpath(folder)).name.removesuffix(".remote")
    journald.write(f"{volume}: the connection to {url} {what}", priority, {"LUKSHOOK_VOLUME": volume})
