"""What stands between the client and a server, on one connection: it passes on, and leaves a server that is silent.

A subclass knows the protocols. The client is on standard input and output.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lukshook.store.remote import connection
from lukshook.store.remote.connection import CLIENT_IN, CLIENT_OUT, ERRORS, MOST_WAITING, Broken, Tool, Writes
from lukshook.store.remote.due import Due

#: Seconds until the server has let us in and given its export.
_SETUP_SECONDS = 60


class Refusal(Exception):
    """There is no connection; the text says why. *status*: our own exit status."""

    def __init__(self, why: str, status: int = 1) -> None:
        super().__init__(why)
        self.status = status


class Relay(ABC):
    """Passes on between the client and *server*, descriptors to write to and read from.

    *silence*: seconds without any answer, while one is missing, after which the server counts as gone; 0 for never.
    Each request also has a time of its own: a subclass notes it in *due*.
    """

    def __init__(self, server: tuple[int, int], silence: float) -> None:
        self._ask, self._hear = server
        self._silence = silence
        self.to_client, self.to_server = bytearray(), bytearray()
        self.leaving = False
        self.due = Due(silence)
        self._last = self.due.now
        self._stepped = time.monotonic()

    @property
    @abstractmethod
    def is_busy(self) -> bool:
        """Whether an answer of the server is missing."""

    @property
    @abstractmethod
    def is_writing(self) -> bool:
        """Whether the answer to a write is missing."""

    @property
    def has_begun(self) -> bool:
        """Whether the client uses the export."""
        return True

    @abstractmethod
    def take_requests(self, data: bytes) -> None:
        """What the client says. Raises `Broken`."""

    @abstractmethod
    def take_answers(self, data: bytes) -> None:
        """What the server says. Raises `Broken`."""

    def has_room(self) -> bool:
        """Whether more requests are taken."""
        return len(self.to_server) < MOST_WAITING

    def serve(self) -> None:
        """Until the client leaves, and all that it wanted is done. Raises `Broken` where the server leaves, OSError."""
        for descriptor in (CLIENT_IN, CLIENT_OUT, self._ask, self._hear):
            os.set_blocking(descriptor, False)
        while not self.leaving or self.is_busy or self.to_server or self.to_client:
            self._step()

    def _step(self) -> None:
        readers = [self._hear] if len(self.to_client) < MOST_WAITING else []
        readers += [CLIENT_IN] if self.has_room() and not self.leaving else []
        writers = [*([CLIENT_OUT] if self.to_client else []), *([self._ask] if self.to_server else [])]
        waits = self.is_busy and self._silence > 0
        wait = self.due.wait(self._last + self._silence - self.due.now) if waits else None
        ready, writable, _ = select.select(readers, writers, [], wait)
        if self._hear in readers:  # else it is the client that does not hear us
            self.due.passed(time.monotonic() - self._stepped)
        self._stepped = time.monotonic()
        if self._hear in ready:
            self._hear_server()
        if CLIENT_IN in ready:
            self._hear_client()
        if self._ask in writable:
            self._ask_server()
        if CLIENT_OUT in writable:
            self._tell_client()
        if waits and self.is_busy:
            self._check_in_time()

    def _check_in_time(self) -> None:
        if self.due.now >= self._last + self._silence:
            raise Broken(f"no answer within {self._silence:.0f} s", silent=True)
        if self.due.is_late():
            raise Broken("a request has no answer, though the server says something now and then", silent=True)

    def _hear_server(self) -> None:
        data = connection.some(self._hear)
        if not data:
            raise Broken("the server has ended the connection")
        self._last = self.due.now
        self.take_answers(data)

    def _ask_server(self) -> None:
        try:
            connection.pass_on(self.to_server, self._ask)
        except OSError as error:  # it may still say something, but hears nothing any more
            raise Broken("the server has ended the connection") from error

    def _hear_client(self) -> None:
        data = connection.some(CLIENT_IN)
        self.leaving = self.leaving or not data
        if not self.is_busy:
            self._last = self.due.now
        self.take_requests(data)

    def _tell_client(self) -> None:
        try:
            connection.pass_on(self.to_client, CLIENT_OUT)
        except OSError:  # it is gone; what it wanted written is written all the same
            self.to_client.clear()
            self.leaving = True


def serve(relay: Relay, tool: Tool, folder: Path, writes: Writes | None) -> None:
    """Serve, and say when the connection is lost. Raises as `Relay.serve`, and `Refusal` before there was an export.

    *writes*: of this connection, where writes that were sent may come after those of the next one.
    """
    late = False
    try:
        relay.serve()
    except Broken as broken:
        late = (broken.silent or tool.was_cut()) and relay.is_writing
        if not relay.has_begun:
            raise Refusal(str(broken), tool.status() or 1) from broken
        if not relay.leaving:
            connection.tell_lost(folder, str(broken))
        raise
    except BaseException:  # such as an answer that is cut short: how the tool ends is not known
        late = relay.is_writing
        raise
    finally:
        if writes is not None:
            writes.end(late=late)


def run(work: Callable[[], None]) -> None:
    """The whole of a process that serves one connection: what has ended it is said, and is the exit status."""
    signal.signal(signal.SIGALRM, _too_late)
    signal.alarm(_SETUP_SECONDS)
    try:
        work()
    except (Broken, Refusal, OSError) as error:
        with suppress(OSError):
            os.write(ERRORS, f"{error}\n".encode(errors="replace"))
        sys.exit(error.status if isinstance(error, Refusal) else 1)


def is_served() -> None:
    """There is an export: from now on, only silence ends it."""
    signal.alarm(0)


def _too_late(number: int, frame: FrameType | None) -> NoReturn:
    raise Refusal(f"the server gave no export within {_SETUP_SECONDS} s")
