"""The server's side of NBD, as far as one export of one connection needs it.

Source: the NBD protocol, github.com/NetworkBlockDevice/nbd, doc/proto.md ("fixed newstyle", simple replies).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from attrs import frozen

READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3
HAS_FLAGS, READ_ONLY, CAN_FLUSH, CAN_FUA = 1, 2, 4, 8
_OPTION, _REPLY, _REQUEST, _ANSWER = b"IHAVEOPT", 0x3E889045565A9, 0x25609513, 0x67446698
_EXPORT_NAME, _ABORT, _INFO, _GO = 1, 2, 6, 7
_ACK, _SAID_INFO, _INFO_EXPORT, _INFO_BLOCK_SIZE, _UNSUPPORTED = 1, 3, 0, 3, (1 << 31) + 1
#: Fixed newstyle, no zeroes behind the handshake.
_FLAGS = 3
#: Bytes of a block: the least, the best, the most at once; of an option; of a request's header.
_LEAST, _BEST, MOST, _MOST_OPTION, HEADER = 1, 4096, 32 << 20, 1 << 16, 28


class NotNbd(Exception):
    """The client speaks something else."""


@frozen
class Request:
    """*cookie*: what the answer has to carry; *offset* and *length* in bytes."""

    kind: int
    cookie: bytes
    offset: int
    length: int


def greet(hear: Callable[[int], bytes], say: Callable[[bytes], None], size: int, flags: int) -> bool:
    """Negotiate an export of *size* bytes; False where the client wanted nothing more. Raises `NotNbd`, OSError."""
    say(b"NBDMAGIC" + _OPTION + struct.pack(">H", _FLAGS))
    hear(4)
    while True:
        magic, option, length = struct.unpack(">8sII", hear(16))
        if magic != _OPTION or length > _MOST_OPTION:
            raise NotNbd("the client speaks no NBD")
        hear(length)
        if option == _EXPORT_NAME:
            say(struct.pack(">QH", size, flags))
            return True
        for kind, data in _replies(option, size, flags):
            say(struct.pack(">QIII", _REPLY, option, kind, len(data)) + data)
        if option in (_ABORT, _GO):
            return bool(option == _GO)


def _replies(option: int, size: int, flags: int) -> tuple[tuple[int, bytes], ...]:
    if option == _ABORT:
        return ((_ACK, b""),)
    if option not in (_INFO, _GO):
        return ((_UNSUPPORTED, b""),)
    return (
        (_SAID_INFO, struct.pack(">HQH", _INFO_EXPORT, size, flags)),
        (_SAID_INFO, struct.pack(">HIII", _INFO_BLOCK_SIZE, _LEAST, _BEST, MOST)),
        (_ACK, b""),
    )


def request(header: bytes | bytearray) -> Request:
    """What a client asks for. Raises `NotNbd`."""
    magic, _, kind, cookie, offset, length = struct.unpack(">IHH8sQI", header)
    if magic != _REQUEST or (kind in (READ, WRITE) and length > MOST):
        raise NotNbd("the client speaks no NBD")
    return Request(kind, cookie, offset, length)


def answer(cookie: bytes, error: int, data: bytes | bytearray = b"") -> bytes:
    """The answer to a request; *error* 0 for none (errno(3))."""
    return struct.pack(">II8s", _ANSWER, error, cookie) + data
