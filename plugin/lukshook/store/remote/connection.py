"""What the processes that serve one connection share: pipes, the tool, what they leave behind, and the log."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from attrs import evolve, frozen

from lukshook.store.remote.kind import EARLIER, LATE, LOST, OWN_WORDS, WRITING, WRITTEN
from lukshook.system import journald, json_files
from lukshook.system.command import conversation, read

CLIENT_IN, CLIENT_OUT, ERRORS = 0, 1, 2
#: Bytes that are read at once; that wait to be sent until no more are taken.
CHUNK, MOST_WAITING = 1 << 18, 4 << 20
#: Seconds until a tool has ended that has closed its output.
_LAST_WORDS_SECONDS = 20.0
#: What ssh(1) and the kernel say where they gave up a line on which nothing came any more.
_GAVE_UP = ("Timeout, server", "timed out")
#: Bytes of what is said that are looked at.
_MOST_SAID = 1 << 14


class Broken(Exception):
    """The connection cannot be used any more; the text says why. *silent*: it may still carry what was sent."""

    def __init__(self, why: str, *, silent: bool = False) -> None:
        super().__init__(why)
        self.silent = silent


@frozen
class Tool:
    """The program that makes a connection: what it hears and says.

    *ended*: how it has ended, within so many seconds; *own*: the file with its own words, where it has one.
    """

    requests: BinaryIO
    answers: BinaryIO
    ended: Callable[[float], int | None]
    own: Path

    @property
    def server(self) -> tuple[int, int]:
        """Descriptors to write to and read from the server."""
        return self.requests.fileno(), self.answers.fileno()

    def status(self) -> int:
        """The exit status with which it has refused, 0 where it did not."""
        return max(self.ended(_LAST_WORDS_SECONDS) or 0, 0)

    def was_cut(self) -> bool:
        """Whether it was killed, or gave a silent line up: then what it has sent may still arrive.

        Where the far side has closed, that takes nothing more. The far side can write to our standard error, but
        neither take words from it nor change how the tool ends: whatever it writes can only make this true.
        """
        with suppress(OSError):
            self.requests.close()  # for one that stays as long as somebody may talk to it
        status = self.ended(_LAST_WORDS_SECONDS)
        if status is None or status < 0:
            return True
        said = _end_of(self.own) + _end_of(Path(f"/proc/self/fd/{ERRORS}"))
        return any(words in said for words in _GAVE_UP)


@contextmanager
def tool(words: Sequence[str], folder: Path, environment: dict[str, str]) -> Iterator[Tool]:
    """Start the tool by *words*, and end it. *folder*: our private one.

    ssh(1) mixes what the far side says with what it says itself; its own words go to a file (`OWN_WORDS`). The kernel
    kills the tool when we are killed (setpriv(1)); it has the folder open, so that it would be found (`OwnFolder`).
    """
    own = Path(os.path.realpath(folder), f"ssh.{os.getpid()}.log")
    argv = ("setpriv", "--pdeathsig", "KILL", *(str(own) if word == OWN_WORDS else word for word in words))
    inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        starts = evolve(read(*argv), environment=environment, fds=(inside,))
        with conversation(starts, errors=ERRORS) as (requests, answers, ended):
            yield Tool(requests, answers, ended, own)
    finally:
        os.close(inside)
        with suppress(OSError):  # too much was said already (`kind.connecting`)
            os.write(ERRORS, _end_of(own).encode(errors="replace"))
        own.unlink(missing_ok=True)


def _end_of(file: Path) -> str:
    """The last of what was said; a server can say any amount."""
    with suppress(OSError), file.open("rb") as opened:
        opened.seek(max(opened.seek(0, os.SEEK_END) - _MOST_SAID, 0))
        return opened.read(_MOST_SAID).decode(errors="replace")
    return ""


def some(descriptor: int) -> bytes:
    """What is there to be read; b"" at the end."""
    with suppress(ConnectionError):
        return os.read(descriptor, CHUNK)
    return b""


def pass_on(buffer: bytearray, descriptor: int) -> None:
    """Write what goes at once of *buffer*, and take it out."""
    with suppress(BlockingIOError):
        del buffer[: os.write(descriptor, buffer[:CHUNK])]


def note_written(folder: Path) -> None:
    """Before the first write of a connection. *folder*: our private one. Raises OSError."""
    (folder / WRITTEN).touch()


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
            if any((self._folder / note).exists() for note in (WRITING, EARLIER)):
                (self._folder / LATE).touch()
            (self._folder / WRITING).touch()

    def end(self, *, late: bool) -> None:
        """The connection is over. *late*: with writes under way that may still arrive."""
        if self.begun and not late:
            (self._folder / WRITING).unlink(missing_ok=True)


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
