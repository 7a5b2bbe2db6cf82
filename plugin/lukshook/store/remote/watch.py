"""One connection to an NBD server that is watched: what goes through is passed on as it is, and answers are counted.

    qemu-storage-daemon  ->  socat  ->  this process  ->  ssh, nbdkit or socat  ->  the server

A server that does not answer for a while, though its machine keeps the line up, counts as gone: then a new connection
is made. Source: the NBD protocol, github.com/NetworkBlockDevice/nbd, doc/proto.md (newstyle; simple and structured
replies; extended headers, on which qemu 8.2 and newer agree with each other).
"""

from __future__ import annotations

import math
import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lukshook.store.remote import connection, export, relay
from lukshook.store.remote.connection import Broken, Writes
from lukshook.store.remote.due import Due
from lukshook.store.remote.export import Export
from lukshook.store.remote.kind import BEHIND, FENCED, UNFLUSHED
from lukshook.store.remote.look import Look
from lukshook.store.remote.pieces import MOST as MOST_OF_PIECE
from lukshook.store.remote.pieces import Pieces
from lukshook.store.remote.relay import Relay
from lukshook.store.remote.stream import MAGIC, Parser, Stream
from lukshook.system import kernel, processes

_REQUEST, _SIMPLE, _CHUNK_REPLY, _OPTION, _OPTION_REPLY, _LONG_REQUEST, _LONG_REPLY = (
    *(b"\x25\x60\x95\x13", b"\x67\x44\x66\x98", b"\x66\x8e\x33\xef"),
    *(b"IHAV", b"\x00\x03\xe8\x89", b"\x21\xe4\x1c\x71", b"\x6e\x8a\x27\x8c"),
)
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _ZEROES, _STATUS = 0, 1, 2, 3, 4, 6, 7
_GO, _SET_CONTEXT, _EXTENDED, _ACK, _SAID_INFO, _SAID_CONTEXT, _DONE = 7, 10, 11, 1, 3, 4, 1
_WRITES = (_WRITE, _TRIM, _ZEROES)
#: The kind of an answer that says which pieces are holes, in a chunk and with an extended header.
_CHUNK_STATUS, _LONG_STATUS = 5, 6
#: Bytes of a request behind what begins each message, and of one with an extended header; of what a server says of an
#: export; of the name under which it says what is a hole, "base:allocation" behind a number of 4 bytes.
_HEADER, _LONG_HEADER, _OF_EXPORT, _OF_CONTEXT = 24, 28, 12, 19
#: The flag of a request that is answered once it is synced.
_SYNC = 1
#: The flag of a request with an extended header whose length is that of the bytes that follow it.
_HAS_PAYLOAD = 1 << 5
#: In the kind of a chunk that says what went wrong.
_ERROR = 1 << 15
#: Seconds: where a round trip takes longer, writes are synced one by one to save the round trip of a flush.
_SLOW_SECONDS = 0.015
#: So many of them behind each flush: a file system writes no more to sync a small file. In a long backup, a hard disk
#: at the far side would have to sync for each of the others; the next flush does that at once.
_FEW = 16
#: Bytes: to ask whether so few are a hole takes as long as to read them.
_SMALL = 1 << 16
#: Seconds in which a tool closes its own connection, once it has said that it failed.
_CLOSE_SECONDS = 0.5


class Answers:
    """What both directions say: requests that have no answer yet, by cookie, with the bytes that an answer brings.

    *writes*: which of them write, and *synced*: which of those the server syncs before it answers. *since_flush*: how
    many writes were asked for since the last flush was. *due*: until when each has to be answered. *pieces*: what is
    known of the image, None where nobody wants to know.
    """

    def __init__(self, due: Due, known: Pieces | None = None) -> None:
        self._due, self.pieces = due, known
        self._is_piece = False
        self.missing: dict[bytes, int] = {}
        self.writes: set[bytes] = set()
        self.synced: set[bytes] = set()
        self.since_flush = 0
        self._flushes: dict[bytes, int] = {}
        self._with_error: set[bytes] = set()
        self._unsynced, self._flushed = 0, -1  # answers to such writes, and how many of them a flush has covered
        self.export = Export(0)
        self.context = b""
        self.begun = self.failed = self.extended = False
        self.leaving = False
        self.has_written = False

    @property
    def has_unflushed(self) -> bool:
        """Whether the server may still lose a write that it has answered on this connection."""
        return self._unsynced > max(self._flushed, 0)

    @property
    def is_flushed(self) -> bool:
        """Whether the server has stored all that it has ever answered, also on earlier connections."""
        return self._flushed >= self._unsynced

    def from_client(self) -> Parser:
        """Flags, options, requests."""
        yield 4
        while True:
            magic = yield 4
            if magic == _OPTION:
                _, _, length = struct.unpack(">4sII", (yield 12))
            elif magic == _REQUEST:
                _, kind, cookie, offset, length = struct.unpack(">HH8sQI", (yield _HEADER))
                length = self._asked(kind, cookie, offset, length)
            elif magic == _LONG_REQUEST:
                flags, kind, cookie, offset, length = struct.unpack(">HH8sQQ", (yield _LONG_HEADER))
                follows = self._asked(kind, cookie, offset, length)
                length = length if flags & _HAS_PAYLOAD else follows
            else:
                raise Broken("the client speaks no NBD")
            if magic != _OPTION and self._is_piece and self.pieces is not None:
                seen = yield min(length, MOST_OF_PIECE)
                self.pieces.content(cookie, seen)
                length -= len(seen)
            if length:
                yield -length

    def _asked(self, kind: int, cookie: bytes, offset: int, length: int) -> int:
        """Bytes that follow the request."""
        self._is_piece = False
        if kind == _DISCONNECT:
            self.leaving = True
            return 0
        self.missing[cookie] = length if kind == _READ else 0
        carries = length if kind in (_READ, _WRITE) else 0
        self._due.asked(cookie, carries, stores=kind in (*_WRITES, _FLUSH))
        if kind == _FLUSH:
            self._flushes[cookie] = self._unsynced
            self.since_flush = 0
        if kind in _WRITES:
            self.has_written = True
            self.writes.add(cookie)
            self.since_flush += 1
            if self.pieces is not None:
                self._is_piece = self.pieces.asked(cookie, offset, length) and kind == _WRITE
        return length if kind == _WRITE else 0

    def from_server(self) -> Parser:
        """The greeting, answers to options, answers to requests."""
        if (yield 18)[8:12] != _OPTION:
            raise Broken("the server speaks no NBD, or an old form of it")
        while True:
            magic = yield 4
            if magic == _OPTION_REPLY:
                _, option, kind, length = struct.unpack(">4sIII", (yield 16))
                self.begun = self.begun or (option, kind) == (_GO, _ACK)
                self.extended = self.extended or (option, kind) == (_EXTENDED, _ACK)
                if kind == _SAID_INFO and length == _OF_EXPORT:
                    self._told((yield _OF_EXPORT))
                    length = 0
                elif (option, kind, length) == (_SET_CONTEXT, _SAID_CONTEXT, _OF_CONTEXT):
                    self.context = (yield _OF_CONTEXT)[:4]
                    length = 0
            elif magic == _SIMPLE:
                error, cookie = struct.unpack(">I8s", (yield 12))
                self._note_error(cookie, error)
                brings = self.is_done(cookie)
                length = 0 if error else brings
            elif magic in (_CHUNK_REPLY, _LONG_REPLY):
                if magic == _CHUNK_REPLY:
                    flags, kind, cookie, length = struct.unpack(">HH8sI", (yield 16))
                else:
                    flags, kind, cookie, _, length = struct.unpack(">HH8sQQ", (yield _LONG_HEADER))
                self._note_error(cookie, kind & _ERROR)
                if flags & _DONE:
                    self.is_done(cookie)
            else:
                raise Broken("the server speaks no NBD")
            if length:
                yield -length

    def _told(self, info: bytes) -> None:
        """What the server says of the export."""
        kind, length, flags = struct.unpack(">HQH", info)
        if kind == 0:
            self.export = Export.of(length, flags)

    def _note_error(self, cookie: bytes, error: int) -> None:
        self.failed = self.failed or bool(error)
        if error and cookie in self.missing:
            self._with_error.add(cookie)

    def is_done(self, cookie: bytes) -> int:
        """Its answer is here; how many bytes that brings. Raises `Broken` for one that nobody has asked for."""
        if cookie not in self.missing:
            raise Broken("an answer of the server fits no request")
        if cookie in self.writes:
            self.writes.discard(cookie)
            self._unsynced += cookie not in self.synced
            self._note_done(cookie)
            self.synced.discard(cookie)
        self._due.answered(cookie)
        flushed = self._flushes.pop(cookie, -1)
        if cookie not in self._with_error:
            self._flushed = max(self._flushed, flushed)
            if self.pieces is not None and flushed >= 0:
                self.pieces.flushed(flushed)
        self._with_error.discard(cookie)
        return self.missing.pop(cookie)

    def _note_done(self, cookie: bytes) -> None:
        """A write is answered."""
        if self.pieces is None:
            return
        if cookie in self._with_error:
            self.pieces.failed(cookie)
        else:
            self.pieces.answered(cookie, 0 if cookie in self.synced else self._unsynced)


class Watch(Relay):
    """Passes on as it is, and counts answers. *writes*: None where a connection that is over can carry nothing more.

    *is_cut_off*: for a tool that stays when the server has left.

    Where the server can, it syncs writes before it answers them: one that is not fenced each of them, so that its
    restart loses nothing that was answered; over a slow line the first ones behind each flush, so that the next flush
    has nothing to do any more and is answered here. A file system waits for two of them each time that a file is
    synced, one after the other.

    A server that is not fenced may come back with another image. So before the client has a connection, what is known
    of the image is read there, and compared.
    """

    def __init__(
        self,
        server: tuple[int, int],
        folder: Path,
        silence: float,
        writes: Writes | None,
        is_cut_off: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(server, silence)
        self._folder, self._writes, self._is_cut_off = folder, writes, is_cut_off
        self.answers = Answers(self.due, None if writes is None else Pieces())
        self._looks: Look | None = None
        self._held = b""
        self._client = Stream(self.answers.from_client(), self._to_server)
        self._server = Stream(self.answers.from_server(), self._to_client)
        self._magic = b""
        self._answered: list[tuple[bytes, bytes]] = []
        self._asked_at: float | None = None
        self._trip = math.inf
        self._most_synced = 0.0
        self._told = self._has_noted = False

    @property
    def is_busy(self) -> bool:
        """Whether an answer of the server is missing."""
        return bool(self.answers.missing) or self._looks is not None

    @property
    def is_writing(self) -> bool:
        """Whether the answer to a write is missing."""
        return bool(self.answers.writes)

    @property
    def has_begun(self) -> bool:
        """Whether the client uses the export."""
        return self.answers.begun

    def has_room(self) -> bool:
        """Whether more requests are taken."""
        return self._looks is None and super().has_room()

    def take_answers(self, data: bytes) -> None:
        """From the server to the client."""
        if self._looks is not None:
            self._look_on(self._looks, data)
            return
        if self._asked_at is not None:
            self._trip = min(self._trip, time.monotonic() - self._asked_at)
        said = self._server.feed(data)
        if self.answers.failed and self._is_cut_off():
            raise Broken("the server has ended the connection")
        self.answers.failed = False
        if self.answers.begun and not self._told:
            self._look(said)
            return
        self.to_client += said
        self._note_pieces()
        self._answer()

    def _look(self, said: bytes) -> None:
        """The server has given its export, by what it *said*. The client hears that once the image is known."""
        self._held = said
        look = Look(self._folder, self.answers.export, self.answers.pieces, extended=self.answers.extended)
        self.to_server += look.requests
        if look.is_done:
            self._begin()
        else:
            self._looks = look

    def _look_on(self, look: Look, data: bytes) -> None:
        look.take(data)
        if look.is_done:
            self._looks = None
            self._begin()

    def _begin(self) -> None:
        """The client gets its export."""
        self.to_client += self._held
        self._told, self._asked_at = True, None
        if self.answers.export.syncs and self._writes is not None:
            self._most_synced = math.inf
        elif self.answers.export.syncs and self._trip >= _SLOW_SECONDS:
            self._most_synced = _FEW
        export.note(self._folder, self.answers.export)
        relay.is_served()
        connection.tell_back(self._folder)

    def _note_pieces(self) -> None:
        if self.answers.pieces is not None:
            self.answers.pieces.note_begin(self._folder)

    def take_requests(self, data: bytes) -> None:
        """From the client to the server."""
        if not self._told:
            self._asked_at = time.monotonic()
        said = self._client.feed(data)
        self.leaving = self.leaving or self.answers.leaving
        if self.answers.has_written:
            self._begin_writing()
        self._note_pieces()
        self.to_server += said
        self._answer()

    def _begin_writing(self) -> None:
        if not self._has_noted:
            self._has_noted = True
            connection.note_written(self._folder)
        if self._writes is not None:
            self._writes.begin()

    def _to_server(self, seen: bytes) -> bytes:
        """What goes to the server in place of *seen*, a piece of what the client says."""
        if seen in (_REQUEST, _LONG_REQUEST):
            self._magic = seen  # it goes with what follows, or not at all
            return b""
        if len(seen) not in (_HEADER, _LONG_HEADER):
            return seen
        own = self._own_answer(seen)
        if own:
            self._answered.append((seen[4:12], own))
            return b""
        flags, kind, cookie = struct.unpack_from(">HH8s", seen)
        if kind in _WRITES and self.answers.since_flush < self._most_synced:
            self.answers.synced.add(cookie)
            seen = struct.pack(">H", flags | _SYNC) + seen[2:]
        return self._magic + seen

    def _own_answer(self, seen: bytes) -> bytes:
        """The answer to a request, without its magic number, that needs no server; else b"".

        That is a flush that has nothing to do, and the question whether a small piece is a hole: to read it takes no
        longer than to ask, and qemu's server asks before each read.
        """
        is_long = self._magic == _LONG_REQUEST
        _, kind, cookie, offset, length = struct.unpack(">HH8sQQ" if is_long else ">HH8sQI", seen)
        if kind == _FLUSH and self.answers.is_flushed:
            if is_long:
                return struct.pack(">4sHH8sQQ", _LONG_REPLY, _DONE, 0, cookie, offset, 0)
            return struct.pack(">4sI8s", _SIMPLE, 0, cookie)
        if kind == _STATUS and length <= _SMALL and self.answers.context:
            said = self.answers.context
            if is_long:
                said += struct.pack(">IQQ", 1, length, 0)
                return struct.pack(">4sHH8sQQ", _LONG_REPLY, _DONE, _LONG_STATUS, cookie, offset, len(said)) + said
            said += struct.pack(">II", length, 0)
            return struct.pack(">4sHH8sI", _CHUNK_REPLY, _DONE, _CHUNK_STATUS, cookie, len(said)) + said
        return b""

    def _to_client(self, seen: bytes) -> bytes:
        """What goes to the client in place of *seen*: answers of our own go before the begin of another one."""
        return self._own_answers() + seen if len(seen) == MAGIC else seen

    def _answer(self) -> None:
        """Give our own answers, unless a part of one of the server is to come."""
        if self._server.is_between:
            self.to_client += self._own_answers()

    def _own_answers(self) -> bytes:
        answered, self._answered = self._answered, []
        for cookie, _ in answered:
            self.answers.is_done(cookie)
        return b"".join(answer for _, answer in answered)


def main() -> None:
    """The words are: our private folder; the silence in seconds; what is behind; and those that start the tool."""
    folder, silence, how, *words = sys.argv[1:]
    relay.run(lambda: _watch(Path(folder), float(silence), how, words))


def _watch(folder: Path, silence: float, how: str, words: list[str]) -> None:
    writes = None if how == FENCED else Writes(folder)
    with connection.tool(words, folder, {}) as tool:
        watch = Watch(tool.server, folder, silence, writes, _has_no_socket if how == BEHIND else lambda: False)
        try:
            relay.serve(watch, tool, folder, writes)
        except Broken:
            if writes is not None and watch.answers.has_unflushed:
                (folder / UNFLUSHED).touch()
            raise
        finally:
            if watch.answers.pieces is not None:
                watch.answers.pieces.note_all(folder)


def _has_no_socket() -> bool:
    """Whether what we have started has lost its connection to the server: it talks to us through pipes."""
    tools = [pid for pid, _ in processes.family(os.getpid())]
    return kernel.wait_until(lambda: not any(_sockets(pid) for pid in tools), _CLOSE_SECONDS)


def _sockets(pid: int) -> list[str]:
    return [name for name in kernel.open_names(pid) if name.startswith("socket:")]
