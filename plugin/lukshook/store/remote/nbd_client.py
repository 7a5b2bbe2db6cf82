"""A conversation with an NBD server through pipes: reading and writing without a local device.

Python's module for libnbd comes with distributions alone, each for its own Python; an installation by pipx does not
find it. The tools of libnbd and qemu need a process for each range that is read or written.

Source: the NBD protocol, github.com/NetworkBlockDevice/nbd, doc/proto.md ("fixed newstyle" negotiation; simple
replies).
"""

from __future__ import annotations

import errno
import itertools
import os
import struct

from lukshook.store.pipes import PATIENCE, Pipes
from lukshook.store.remote.export import Export
from lukshook.system import signals

_MAGIC, _OPTION, _OPTION_REPLY = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
_GO, _ACK, _INFO, _INFO_EXPORT = 7, 1, 3, 0
#: Client flags: fixed newstyle, no zeroes behind the negotiation.
_FLAGS = 3
_REQUEST, _REPLY = 0x25609513, 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH, _ZEROES = 0, 1, 2, 3, 6
#: Replies to our option until there is an export, and bytes of one; servers give a few of a few bytes.
_MOST_REPLIES, _MOST_SAID = 64, 1 << 16
#: What a server may say went wrong ("Error values"); its numbers mean that on every system.
_ERRORS = {
    1: errno.EPERM,
    5: errno.EIO,
    12: errno.ENOMEM,
    22: errno.EINVAL,
    28: errno.ENOSPC,
    75: errno.EOVERFLOW,
    95: errno.ENOTSUP,
    108: errno.ESHUTDOWN,
}
#: Requests without an answer at most, and bytes that one of them carries; bytes of zeros that one asks for.
_MOST_ASKED, _MOST_CARRIED, _MOST_ZEROS = 16, 1 << 20, 1 << 25


class NoExport(Exception):
    """The server gave none; the text says why."""


class Nbd:
    """The export *name* in use. Every method raises OSError; for a write that fails, it may be a later one that does.

    Where there is no such export, `NoExport` is raised.
    """

    def __init__(self, pipes: Pipes, name: str) -> None:
        self._pipes = pipes
        self._cookies = itertools.count(1)
        self._asked: set[int] = set()
        self.export = _chosen(pipes, name)

    def read(self, offset: int, length: int) -> bytes:
        """What lies there, all of it."""
        parts = range(offset, offset + length, _MOST_CARRIED)
        return b"".join(self._read(at, min(_MOST_CARRIED, offset + length - at)) for at in parts)

    def _read(self, offset: int, length: int) -> bytes:
        self._settle(0)
        self._ask(_READ, offset, length)
        self._answer()
        return self._pipes.hear(length)

    def write(self, offset: int, content: bytes | memoryview) -> None:
        """Write all of *content* there; whether that succeeds may not be known before `flush`."""
        for at in range(0, len(content), _MOST_CARRIED):
            part = bytes(content[at : at + _MOST_CARRIED])
            self._settle(_MOST_ASKED - 1)
            self._ask(_WRITE, offset + at, len(part), part)

    def clear(self, offset: int, length: int) -> None:
        """Make the bytes there zeros; the server writes them where it can."""
        if not self.export.zeroes:
            for at in range(offset, offset + length, _MOST_CARRIED):
                signals.check()
                self.write(at, bytes(min(_MOST_CARRIED, offset + length - at)))
        else:
            for at in range(offset, offset + length, _MOST_ZEROS):
                signals.check()
                self._settle(0)
                self._ask(_ZEROES, at, min(_MOST_ZEROS, offset + length - at))
        self._settle(0)

    def flush(self) -> None:
        """Wait until all that was written is stored, as the server says."""
        self._settle(0)
        self._ask(_FLUSH, 0, 0)
        self._answer(PATIENCE)

    def leave(self) -> None:
        """Say that we go, to a server that has answered all; there is no answer to that."""
        if not self._asked and not self._pipes.lost:
            self._ask(_DISCONNECT, 0, 0)

    def _ask(self, kind: int, offset: int, length: int, content: bytes = b"") -> None:
        cookie = next(self._cookies)
        self._asked.add(cookie)  # before: behind a request that is sent in part, nothing else can be said
        self._pipes.say(struct.pack(">IHHQQI", _REQUEST, 0, kind, cookie, offset, length) + content)

    def _settle(self, most: int) -> None:
        """Hear answers until no more than *most* are missing."""
        while len(self._asked) > most:
            self._answer()

    def _answer(self, patience: float | None = None) -> None:
        magic, code, cookie = struct.unpack(">IIQ", self._pipes.hear(16, patience))
        if magic != _REPLY or cookie not in self._asked:
            raise OSError(errno.EPROTO, "an answer of the server fits no request")
        self._asked.discard(cookie)
        if code:
            meant = _ERRORS.get(code, errno.EIO)
            raise OSError(meant, f"the server has said: {os.strerror(meant)}")


def _chosen(pipes: Pipes, name: str) -> Export:
    """Begin to use the export *name*. Raises `NoExport`, OSError."""
    if pipes.hear(16) != _MAGIC + _OPTION:
        raise NoExport("it does not speak NBD, or an old form of it")
    pipes.hear(2)
    text = os.fsencode(name)
    pipes.say(struct.pack(">I", _FLAGS))
    pipes.say(_OPTION + struct.pack(">III", _GO, 6 + len(text), len(text)) + text + struct.pack(">H", 0))
    export = None
    for _ in range(_MOST_REPLIES):
        kind, data = _reply(pipes)
        if kind == _ACK and export is not None:
            return export
        if kind == _INFO and len(data) == 12 and data[:2] == struct.pack(">H", _INFO_EXPORT):
            export = Export.of(*struct.unpack(">QH", data[2:]))
        elif kind != _INFO:
            raise NoExport(data.decode(errors="replace") or "it refused the export")
    raise NoExport("it said much of the export, and did not give it")


def _reply(pipes: Pipes) -> tuple[int, bytes]:
    magic, _, kind, length = struct.unpack(">QIII", pipes.hear(20))
    if magic != _OPTION_REPLY or length > _MOST_SAID:
        raise NoExport("its answer is not NBD")
    return kind, pipes.hear(length)
