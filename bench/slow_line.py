"""A line with a delay and a rate, as a relay between two TCP ports: not every kernel has netem (tc-netem(8)).

Kinder than a real line: nothing is lost, and there is no slow start. What is under way is limited, as TCP's window is.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

#: Bytes that one direction has under way at most.
_WINDOW = 4 << 20
_PART = 1 << 16


@dataclass(frozen=True)
class Line:
    """*seconds*: there and back. *rate*: bytes in a second, each way."""

    seconds: float
    rate: float


class _Direction:
    """What flows one way: parts with the time at which each arrives."""

    def __init__(self, line: Line, source: socket.socket, target: socket.socket) -> None:
        self._line, self._source, self._target = line, source, target
        self._parts: queue.Queue[tuple[float, bytes]] = queue.Queue(_WINDOW // _PART)
        for work in (self._take, self._give):
            threading.Thread(target=work, daemon=True).start()

    def _take(self) -> None:
        free = 0.0  # when the line has sent what it was given
        with suppress(OSError):
            while part := self._source.recv(_PART):
                free = max(free, time.monotonic()) + len(part) / self._line.rate
                self._parts.put((free + self._line.seconds / 2, part))
        self._parts.put((0.0, b""))

    def _give(self) -> None:
        with suppress(OSError):
            while True:
                due, part = self._parts.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not part:
                    break
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
            here, _ = server.accept()
            there = socket.create_connection(("127.0.0.1", port))
            for end in (here, there):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _Direction(line, here, there)
            _Direction(line, there, here)
