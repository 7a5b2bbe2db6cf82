"""Reading from an NBD server on a connection that its client does not have yet.

Source: the NBD protocol, github.com/NetworkBlockDevice/nbd, doc/proto.md (simple and structured replies, and those with
extended headers, as the client has chosen them).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from lukshook.store.remote.connection import Broken
from lukshook.store.remote.stream import Parser, Stream

_REQUEST, _LONG_REQUEST, _SIMPLE, _CHUNK, _LONG_CHUNK = 0x25609513, 0x21E41C71, 0x67446698, 0x668E33EF, 0x6E8A278C
_READ, _DONE, _NOTHING, _DATA, _HOLE, _ERROR = 0, 1, 0, 1, 2, 1 << 15
#: Bytes of an error that a server says in words, at most.
_MOST_SAID = 1 << 13


class Reading:
    """The pieces *wanted* (offset, length), all at once. *extended*: the client has chosen extended headers.

    *found*: what lies there, by offset; *failed*: the server cannot read some of it.
    """

    def __init__(self, wanted: Iterable[tuple[int, int]], *, extended: bool) -> None:
        self._wanted = {struct.pack(">8s", b"look %03d" % at): one for at, one in enumerate(wanted)}
        self._extended = extended
        self._missing = {cookie: bytearray(length) for cookie, (_, length) in self._wanted.items()}
        self.found: dict[int, bytes] = {}
        self.failed = False
        self._stream = Stream(self._answers())

    @property
    def is_done(self) -> bool:
        """Whether all answers are here."""
        return not self._missing

    @property
    def requests(self) -> bytes:
        """What the server is asked."""
        form, magic = (">IHH8sQQ", _LONG_REQUEST) if self._extended else (">IHH8sQI", _REQUEST)
        return b"".join(struct.pack(form, magic, 0, _READ, cookie, *one) for cookie, one in self._wanted.items())

    def take(self, data: bytes) -> None:
        """What the server says. Raises `Broken` for what answers nothing."""
        self._stream.feed(data)

    def _answers(self) -> Parser:
        while True:
            magic = int.from_bytes((yield 4), "big")
            if magic == _SIMPLE:
                error, cookie = struct.unpack(">I8s", (yield 12))
                content = self._content(cookie)
                if not error:
                    content[:] = yield len(content)
                self._done(cookie, failed=bool(error))
            elif magic in (_CHUNK, _LONG_CHUNK):
                if magic == _CHUNK:
                    flags, kind, cookie, length = struct.unpack(">HH8sI", (yield 16))
                else:
                    flags, kind, cookie, _, length = struct.unpack(">HH8sQQ", (yield 28))
                if length > _MOST_SAID:
                    raise Broken("an answer of the server fits no request")
                self._chunk(kind, cookie, (yield length) if length else b"")
                if flags & _DONE:
                    self._done(cookie, failed=False)
            else:
                raise Broken("the server speaks no NBD")

    def _content(self, cookie: bytes) -> bytearray:
        if cookie not in self._missing:
            raise Broken("an answer of the server fits no request")
        return self._missing[cookie]

    def _chunk(self, kind: int, cookie: bytes, data: bytes) -> None:
        """A part of what lies there."""
        content = self._content(cookie)
        self.failed = self.failed or bool(kind & _ERROR)
        if kind & _ERROR or kind == _NOTHING:
            return
        at = int.from_bytes(data[:8], "big") - self._wanted[cookie][0]
        part = data[8:] if kind == _DATA else bytes(min(int.from_bytes(data[8:], "big"), len(content) + 1))
        if kind not in (_DATA, _HOLE) or not 0 <= at <= len(content) - len(part):
            raise Broken("an answer of the server fits no request")
        content[at : at + len(part)] = part

    def _done(self, cookie: bytes, *, failed: bool) -> None:
        self.failed = self.failed or failed
        self.found[self._wanted[cookie][0]] = bytes(self._content(cookie))
        del self._missing[cookie]
