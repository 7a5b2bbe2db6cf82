"""Questions to a daemon of qemu through its monitor: one JSON object a line, each way (qemu's QMP specification).

Whoever reaches a monitor has power over its daemon, so the socket lies in a private folder.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import define, field

from lukshook.errors import Unavailable
from lukshook.system import kernel
from lukshook.system.text import clipped

#: Seconds that a daemon may take to connect, and for each answer: it may wait for writes to the store.
ANSWER_SECONDS = 60.0
#: Bytes; the longest answer that is asked for, the list of nodes, has a few thousand.
_LONGEST = 1 << 20
_AT_ONCE = 1 << 16
#: Characters that a message shows of what a daemon says.
_MOST_SHOWN = 300
_HINT = "close the volume and open it again"


class Rejected(Unavailable):
    """The daemon answered that it cannot do what it was asked."""


@contextmanager
def connect(place: Path, seconds: float = ANSWER_SECONDS) -> Iterator[Monitor]:
    """The monitor whose socket is *place*; each answer may take *seconds*. Raises `Unavailable`.

    A monitor talks to one at a time: others wait for their turn.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        monitor = Monitor(f"the monitor {place}", connection, seconds)
        monitor.reach(place)
        monitor.greet()
        yield monitor


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection that has no name: one for us, one for a daemon to inherit as its monitor."""
    return socket.socketpair()


def over(connection: socket.socket, seconds: float = ANSWER_SECONDS) -> Monitor:
    """The monitor at the other end of *connection*; each answer may take *seconds*. Raises `Unavailable`."""
    monitor = Monitor("the daemon", connection, seconds)
    monitor.greet()
    return monitor


@define
class Monitor:
    """A connection to a monitor. *name*: what it is, in messages. *version*: of its qemu."""

    name: str
    _connection: socket.socket
    _seconds: float
    _heard: bytearray = field(factory=bytearray, init=False)
    version: tuple[int, int] = field(default=(0, 0), init=False)

    def reach(self, place: Path) -> None:
        """Connect to the socket *place*. Raises `Unavailable`."""
        try:
            self._connection.setblocking(False)
            if not kernel.wait_until(lambda: self._is_connected(place), self._seconds):
                raise TimeoutError("it talks to others")
        except OSError as error:
            raise self._silent(error) from error

    def greet(self) -> None:
        """Hear who answers, and leave the mode in which nothing else can be asked. Raises `Unavailable`."""
        try:
            self.version = _version(self._message(time.monotonic() + self._seconds))
        except (OSError, ValueError, RecursionError) as error:
            raise self._silent(error) from error
        self.ask("qmp_capabilities")

    def ask(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """What *command* returns. Raises `Rejected`, `Unavailable`."""
        question = {"execute": command, "arguments": dict(arguments or {})}
        end = time.monotonic() + self._seconds
        try:
            self._connection.settimeout(self._seconds)
            self._connection.sendall(json.dumps(question).encode() + b"\n")
            answer = self._answer(end)
        except (OSError, ValueError, RecursionError) as error:
            raise self._silent(error) from error
        if "return" not in answer:
            raise Rejected(f"qemu cannot do {command}: {_reason(answer)}", hint=_HINT)
        return answer["return"]

    def _is_connected(self, place: Path) -> bool:
        """Whether there was room in the queue of those who wait for their turn (unix(7))."""
        with suppress(BlockingIOError):
            self._connection.connect(os.fspath(place))
            return True
        return False

    def _answer(self, end: float) -> dict[str, object]:
        """The next message that is not an event."""
        while True:
            message = self._message(end)
            if "event" not in message:
                return message

    def _message(self, end: float) -> dict[str, object]:
        found = json.loads(self._line(end))
        if not isinstance(found, dict):
            raise ValueError("it does not send objects")
        return found

    def _line(self, end: float) -> bytes:
        while b"\n" not in self._heard:
            if len(self._heard) > _LONGEST:
                raise ValueError("its answer is too long")
            # Never 0, which would not wait at all.
            self._connection.settimeout(max(end - time.monotonic(), 0.001))
            part = self._connection.recv(_AT_ONCE)
            if not part:
                raise ConnectionResetError(0, "it has hung up")
            self._heard += part
        line, _, rest = bytes(self._heard).partition(b"\n")
        self._heard = bytearray(rest)
        return line

    def _silent(self, error: Exception) -> Unavailable:
        """Give up: an answer that comes too late would be taken for that to the next question."""
        self._connection.close()
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Unavailable(f"{self.name} does not answer: {clipped(why, _MOST_SHOWN)}", hint=_HINT)


def _version(greeting: Mapping[str, object]) -> tuple[int, int]:
    """What a monitor says first. Raises ValueError."""
    match greeting:
        case {"QMP": {"version": {"qemu": {"major": int(major), "minor": int(minor)}}}}:
            return major, minor
    raise ValueError("it is no monitor of qemu")


def _reason(answer: Mapping[str, object]) -> str:
    """What qemu says of an error, on one line."""
    match answer.get("error"):
        case {"desc": str(text)}:
            return clipped(text, _MOST_SHOWN)
    return "no reason given"
