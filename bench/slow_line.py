"""A line with a delay and a rate, as a relay between two TCP ports: not every kernel has netem (tc-netem(8)).

Kinder than a real line: nothing is lost, there is no slow start, and a connection stands at once, which takes a round
trip elsewhere. What is under way is limited, as TCP's window is.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

#: Bytes that one direction has under way at most.
_WINDOW = 4 << 20
_PART = 1 << 16


@dataclass(frozen=True)
class Traffic:
    """What went over a line: *connections*, bytes to the far side and from it, and the longest chain of round trips.

    A round trip counts as one of a chain where it begins after the answer of the one before has come.
    """

    connections: int
    sent: int
    received: int
    trips: int

    def since(self, earlier: Traffic) -> Traffic:
        """What has come on top of *earlier*."""
        return Traffic(
            self.connections - earlier.connections,
            self.sent - earlier.sent,
            self.received - earlier.received,
            self.trips - earlier.trips,
        )


@dataclass
class _Side:
    """One end of a line. *clock*: how many crossings of the line lie before what it says now (Lamport's clock).

    *received*: bytes; *free*: when the line has taken all that this end has said.
    """

    clock: int = 0
    received: int = 0
    free: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def sent(self, seconds: float) -> float:
        """When the line has carried what takes it so many *seconds*; all connections share it."""
        with self.lock:
            self.free = max(self.free, time.monotonic()) + seconds
            return self.free


@dataclass(frozen=True)
class Line:
    """*seconds*: there and back. *rate*: bytes in a second, each way. It counts what goes over it (`traffic`)."""

    seconds: float
    rate: float
    _near: _Side = field(default_factory=_Side)
    _far: _Side = field(default_factory=_Side)
    _opened: list[int] = field(default_factory=list)

    @property
    def traffic(self) -> Traffic:
        """All that has gone over it until now."""
        return Traffic(len(self._opened), self._far.received, self._near.received, self._near.clock // 2)

    def connect(self, near: socket.socket, far: socket.socket) -> None:
        """Let two sockets talk over the line."""
        self._opened.append(near.fileno())
        _Direction(self, (near, self._near), (far, self._far))
        _Direction(self, (far, self._far), (near, self._near))


class _Direction:
    """What flows one way: parts with the time at which each arrives, and the clock of its sender."""

    def __init__(self, line: Line, source: tuple[socket.socket, _Side], target: tuple[socket.socket, _Side]) -> None:
        self._line = line
        self._source, self._from = source
        self._target, self._to = target
        self._parts: queue.Queue[tuple[float, int, bytes]] = queue.Queue(_WINDOW // _PART)
        for work in (self._take, self._give):
            threading.Thread(target=work, daemon=True).start()

    def _take(self) -> None:
        with suppress(OSError):
            while part := self._source.recv(_PART):
                clock, sent = self._from.clock, self._from.sent(len(part) / self._line.rate)
                self._parts.put((sent + self._line.seconds / 2, clock, part))
        self._parts.put((0.0, 0, b""))

    def _give(self) -> None:
        with suppress(OSError):
            while True:
                due, clock, part = self._parts.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not part:
                    break
                self._to.clock = max(self._to.clock, clock + 1)
                self._to.received += len(part)
                self._target.sendall(part)
        for end in (self._target, self._source):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def slow(line: Line, port: int) -> Iterator[int]:
    """A port of this host that leads to *port* over *line*."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server, line, port), daemon=True).start()
        yield server.getsockname()[1]


def _accept(server: socket.socket, line: Line, port: int) -> None:
    with suppress(OSError):
        while True:
            near, _ = server.accept()
            far = socket.create_connection(("127.0.0.1", port))
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.connect(near, far)
