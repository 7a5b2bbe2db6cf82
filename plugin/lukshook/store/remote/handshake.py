"""What an NBD server says of an export before it is used: its length, and whether it can flush.

Source: the NBD protocol, github.com/NetworkBlockDevice/nbd, doc/proto.md ("fixed newstyle" negotiation).
"""

from __future__ import annotations

import os
import socket
import struct
import time

from attrs import frozen

from lukshook.system import kernel

_MAGIC, _OPTION, _REPLY, _REQUEST = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9, 0x25609513
_GO, _ACK, _INFO, _INFO_EXPORT, _DISCONNECT = 7, 1, 3, 0, 2
_ERROR = 1 << 31
#: Client flags: fixed newstyle, no zeroes behind the handshake.
_FLAGS = 3
_HAS_FLAGS, _READ_ONLY, _FLUSH = 1, 2, 4
#: Seconds between the name of a listener's socket and its listening.
_LISTEN_SECONDS = 10.0
#: Bytes; no reply that we ask for is longer.
_MOST = 1 << 16


@frozen
class Export:
    """*length* in bytes; *flushes*: it can write out on request; *read_only*."""

    length: int
    flushes: bool
    read_only: bool


class NoExport(Exception):
    """The server gave none; the text says why, "" where it only closed the connection."""


def ask(place: str, name: str, seconds: float) -> Export:
    """What the server behind the UNIX socket *place* says of the export *name*. Raises `NoExport`."""
    end = time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            kernel.wait_until(lambda: is_connected(connection, place), _LISTEN_SECONDS)
            return _asked(_Talk(connection, end), name)
        except TimeoutError:
            raise NoExport(f"no answer within {seconds:.0f} s") from None
        except OSError as error:
            raise NoExport("" if isinstance(error, ConnectionError) else error.strerror or "") from error


def is_connected(connection: socket.socket, place: str) -> bool:
    """Connect; False while nobody listens there, though there may be a socket already. Raises OSError."""
    try:
        connection.connect(place)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    return True


class _Talk:
    """A connection whose every answer has to come before *end*."""

    def __init__(self, connection: socket.socket, end: float) -> None:
        self._connection, self._end = connection, end

    def say(self, data: bytes) -> None:
        self._connection.settimeout(max(self._end - time.monotonic(), 0.001))
        self._connection.sendall(data)

    def hear(self, count: int) -> bytes:
        heard = b""
        while len(heard) < count:
            self._connection.settimeout(max(self._end - time.monotonic(), 0.001))
            more = self._connection.recv(count - len(heard))
            if not more:
                raise NoExport("")
            heard += more
        return heard


def _asked(talk: _Talk, name: str) -> Export:
    if talk.hear(16) != _MAGIC + _OPTION:
        raise NoExport("it does not speak NBD, or an old form of it")
    talk.hear(2)
    text = os.fsencode(name)
    talk.say(struct.pack(">I", _FLAGS))
    talk.say(_OPTION + struct.pack(">III", _GO, 6 + len(text), len(text)) + text + struct.pack(">H", 0))
    export = None
    while True:
        kind, data = _reply(talk)
        if kind == _ACK and export is not None:
            break
        if kind == _INFO and len(data) == 12 and data[:2] == struct.pack(">H", _INFO_EXPORT):
            export = _export(data[2:])
        elif kind != _INFO:
            raise NoExport(data.decode(errors="replace") or "it refused the export")
    talk.say(struct.pack(">IHHQQI", _REQUEST, 0, _DISCONNECT, 0, 0, 0))
    return export


def _reply(talk: _Talk) -> tuple[int, bytes]:
    magic, _, kind, length = struct.unpack(">QIII", talk.hear(20))
    if magic != _REPLY or length > _MOST:
        raise NoExport("its answer is not NBD")
    return kind, talk.hear(length)


def _export(data: bytes) -> Export:
    length, flags = struct.unpack(">QH", data)
    flags = flags if flags & _HAS_FLAGS else 0
    return Export(length, bool(flags & _FLUSH), bool(flags & _READ_ONLY))
