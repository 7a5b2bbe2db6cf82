"""One connection to an NBD server that is watched: what goes through is passed on as it is, and answers are counted.

    qemu-storage-daemon  ->  socat  ->  this process  ->  ssh, nbdkit or socat  ->  the server

A server that does not answer for a while, though its machine keeps the line up, counts as gone: then a new connection
is made. Source: the NBD protocol, github.com/NetworkBlockDevice/nbd, doc/proto.md (newstyle; simple and structured
replies).
"""

from __future__ import annotations

import os
import select
import signal
import struct
import sys
import time
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lukshook.store.remote import connection
from lukshook.store.remote.connection import CLIENT_IN, CLIENT_OUT, ERRORS, MOST_WAITING, STARTS, Broken, Writes
from lukshook.system.command import conversation, read

#: Seconds until a server has given its export.
_SETUP_SECONDS = 60
_REQUEST, _SIMPLE, _CHUNK_REPLY, _OPTION, _OPTION_REPLY = (
    *(b"\x25\x60\x95\x13", b"\x67\x44\x66\x98", b"\x66\x8e\x33\xef"),
    *(b"IHAV", b"\x00\x03\xe8\x89"),
)
_READ, _WRITE, _DISCONNECT, _GO, _ACK, _DONE = 0, 1, 2, 7, 1, 1

#: Takes a stream apart: gives how many bytes it wants to see next, or, negative, how many it does not care for.
Parser = Generator[int, bytes, NoReturn]


class Answers:
    """What both directions say: requests that have no answer yet, by cookie, with the bytes that an answer brings."""

    def __init__(self) -> None:
        self.missing: dict[bytes, int] = {}
        self.writes: set[bytes] = set()
        self.begun = False
        self.leaving = False
        self.has_written = False

    def from_client(self) -> Parser:
        """Flags, options, requests."""
        yield 4
        while True:
            magic = yield 4
            if magic == _OPTION:
                _, _, length = struct.unpack(">4sII", (yield 12))
            elif magic == _REQUEST:
                _, kind, cookie, _, length = struct.unpack(">HH8sQI", (yield 24))
                length = self._asked(kind, cookie, length)
            else:
                raise Broken("the client speaks no NBD")
            if length:
                yield -length

    def _asked(self, kind: int, cookie: bytes, length: int) -> int:
        """Bytes that follow the request."""
        if kind == _DISCONNECT:
            self.leaving = True
            return 0
        self.missing[cookie] = length if kind == _READ else 0
        if kind != _WRITE:
            return 0
        self.has_written = True
        self.writes.add(cookie)
        return length

    def from_server(self) -> Parser:
        """The greeting, answers to options, answers to requests."""
        if (yield 18)[8:12] != _OPTION:
            raise Broken("the server speaks no NBD, or an old form of it")
        while True:
            magic = yield 4
            if magic == _OPTION_REPLY:
                _, option, kind, length = struct.unpack(">4sIII", (yield 16))
                self.begun = self.begun or (option, kind) == (_GO, _ACK)
            elif magic == _SIMPLE:
                error, cookie = struct.unpack(">I8s", (yield 12))
                brings = self._answered(cookie)
                length = 0 if error else brings
            elif magic == _CHUNK_REPLY:
                flags, _, cookie, length = struct.unpack(">HH8sI", (yield 16))
                if flags & _DONE:
                    self._answered(cookie)
            else:
                raise Broken("the server speaks no NBD")
            if length:
                yield -length

    def _answered(self, cookie: bytes) -> int:
        if cookie not in self.missing:
            raise Broken("an answer of the server fits no request")
        self.writes.discard(cookie)
        return self.missing.pop(cookie)


class Stream:
    """Feeds a parser."""

    def __init__(self, parser: Parser) -> None:
        self._parser, self._wanted, self._held = parser, next(parser), bytearray()

    def feed(self, data: bytes) -> None:
        """What has come. Raises `Broken`."""
        at = 0
        while at < len(data):
            count = min(abs(self._wanted) - len(self._held), len(data) - at)
            if self._wanted < 0:
                self._wanted += count
            else:
                self._held += data[at : at + count]
            at += count
            if self._wanted == 0 or len(self._held) == self._wanted:
                seen = bytes(self._held)
                self._held.clear()
                self._wanted = self._parser.send(seen)


class Watch:
    """Passes on between the client and *server*, descriptors to write to and read from.

    *silence*: seconds without an answer to anything.
    """

    def __init__(self, server: tuple[int, int], folder: Path, silence: float, writes: Writes | None) -> None:
        self._ask, self._hear = server
        self._folder, self._silence, self._writes = folder, silence, writes
        self.answers = Answers()
        self._client, self._server = Stream(self.answers.from_client()), Stream(self.answers.from_server())
        self._to_client, self._to_server = bytearray(), bytearray()
        self._last = time.monotonic()
        self._told = False

    def serve(self) -> None:
        """Until one of both leaves. Raises `Broken` where that is the server, OSError."""
        for descriptor in (CLIENT_IN, CLIENT_OUT, self._ask, self._hear):
            os.set_blocking(descriptor, False)
        while not (self.answers.leaving and not self.answers.missing and not self._to_server):
            self._step()

    def _step(self) -> None:
        missing = self.answers.missing
        readers = [self._hear] if len(self._to_client) < MOST_WAITING else []
        readers += [CLIENT_IN] if len(self._to_server) < MOST_WAITING and not self.answers.leaving else []
        writers = [*([CLIENT_OUT] if self._to_client else []), *([self._ask] if self._to_server else [])]
        wait = max(self._last + self._silence - time.monotonic(), 0) if missing else None
        ready, writable, _ = select.select(readers, writers, [], wait)
        if self._hear in ready:
            self._take_answers()
        if CLIENT_IN in ready:
            self._take_requests()
        if self._ask in writable:
            connection.pass_on(self._to_server, self._ask)
        if CLIENT_OUT in writable:
            self._pass_to_client()
        if missing and time.monotonic() >= self._last + self._silence:
            raise Broken(f"no answer within {self._silence:.0f} s", silent=True)

    def _take_answers(self) -> None:
        data = connection.some(self._hear)
        if not data:
            raise Broken("the server has ended the connection")
        self._last = time.monotonic()
        self._server.feed(data)
        self._to_client += data
        if self.answers.begun and not self._told:
            self._told = True
            signal.alarm(0)
            connection.tell_back(self._folder)

    def _take_requests(self) -> None:
        data = connection.some(CLIENT_IN)
        if not data:
            self.answers.leaving = True
        if not self.answers.missing:
            self._last = time.monotonic()
        self._client.feed(data)
        if self.answers.has_written and self._writes is not None:
            self._writes.begin()
        self._to_server += data

    def _pass_to_client(self) -> None:
        try:
            connection.pass_on(self._to_client, CLIENT_OUT)
        except OSError:  # it is gone; what it wanted written is written all the same
            self._to_client.clear()
            self.answers.leaving = True


def main() -> None:
    """The words are: our private folder; the silence in seconds; "fenced" or "open"; and those that start the tool.

    A server that is fenced lets a connection in only once an earlier one is over.
    """
    folder, silence, fenced, *words = sys.argv[1:]
    try:
        _watch(Path(folder), float(silence), fenced == "fenced", words)
    except (Broken, OSError) as error:
        os.write(ERRORS, f"{error}\n".encode(errors="replace"))
        sys.exit(1)


def _watch(folder: Path, silence: float, fenced: bool, words: list[str]) -> None:
    signal.signal(signal.SIGALRM, _too_late)
    signal.alarm(_SETUP_SECONDS)
    writes = None if fenced else Writes(folder)
    with conversation(read("sh", "-c", STARTS, "sh", *words), errors=ERRORS) as (requests, answers):
        watch = Watch((requests.fileno(), answers.fileno()), folder, silence, writes)
        late = False
        try:
            watch.serve()
        except Broken as broken:
            late = (broken.silent or connection.was_cut(folder)) and bool(watch.answers.writes)
            if watch.answers.begun and not watch.answers.leaving:
                connection.tell_lost(folder, str(broken))
            raise
        finally:
            if writes is not None:
                writes.end(late=late)


def _too_late(number: int, frame: FrameType | None) -> NoReturn:
    raise Broken(f"the server gave no export within {_SETUP_SECONDS} s")
