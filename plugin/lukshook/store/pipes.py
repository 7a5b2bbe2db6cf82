"""What a client of ours says to a server and hears of it, through the pipes of a tool, with bounds on the time."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import BinaryIO

from lukshook.system import signals

#: Seconds without any progress until a server counts as lost; for what may take it long: to sync, to free a large file.
SILENCE, PATIENCE = 90.0, 900.0
#: Bytes a second that are the least: who gives one byte now and then would hold us for ever.
_LEAST = 1024


class Pipes:
    """One conversation. *silence*: seconds without any progress after which it counts as lost.

    *stops*: a signal is raised while we wait. What did not end well makes it `lost`: behind half a message nothing can
    be said or heard.
    """

    def __init__(self, requests: BinaryIO, answers: BinaryIO, silence: float = SILENCE, *, stops: bool = False) -> None:
        self._requests, self._answers = requests.fileno(), answers.fileno()
        self._silence, self._stops = silence, stops
        self.lost = False
        os.set_blocking(self._requests, False)

    def say(self, data: bytes) -> None:
        """Send all of *data*. Raises OSError."""
        rest = memoryview(data)
        with self._whole():
            end = time.monotonic() + self._silence + len(data) / _LEAST
            while rest:
                self._wait([], [self._requests], self._silence, end)
                rest = rest[os.write(self._requests, rest) :]

    def hear(self, count: int, patience: float | None = None) -> bytes:
        """So many bytes. *patience*: in place of the seconds of silence. Raises OSError."""
        silence = self._silence if patience is None else patience
        heard = bytearray()
        with self._whole():
            end = time.monotonic() + silence + count / _LEAST
            while len(heard) < count:
                self._wait([self._answers], [], silence, end)
                more = os.read(self._answers, count - len(heard))
                if not more:
                    raise ConnectionResetError(errno.ECONNRESET, "the server has ended the connection")
                heard += more
        return bytes(heard)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Nothing comes after what is broken off inside."""
        if self.lost:
            raise ConnectionResetError(errno.ECONNRESET, "the connection to the server was lost")
        self.lost = True
        yield
        self.lost = False

    def _wait(self, readable: list[int], writable: list[int], silence: float, end: float) -> None:
        seconds = max(min(silence, end - time.monotonic()), 0)
        with signals.allowed() if self._stops else nullcontext():
            ready = select.select(readable, writable, [], seconds)
        if not any(ready):
            why = f"has not answered for {silence:.0f} s" if seconds == silence else "answers too slowly"
            raise TimeoutError(errno.ETIMEDOUT, f"the server {why}")
