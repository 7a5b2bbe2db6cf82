"""Taking a stream of messages apart, which comes in pieces of any size."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NoReturn

#: Bytes of what begins each message of NBD, once there is an export.
MAGIC = 4

#: Takes a stream apart: gives how many bytes it wants to see next, or, negative, how many it does not care for.
Parser = Generator[int, bytes, NoReturn]


def _as_it_is(seen: bytes) -> bytes:
    return seen


class Stream:
    """Feeds a parser. *edit*: what is passed on in place of each piece that the parser sees."""

    def __init__(self, parser: Parser, edit: Callable[[bytes], bytes] = _as_it_is) -> None:
        self._parser, self._wanted, self._held = parser, next(parser), bytearray()
        self._edit = edit

    @property
    def is_between(self) -> bool:
        """Whether all that has come is passed on, up to the end of a message."""
        return self._wanted == MAGIC

    def feed(self, data: bytes) -> bytes:
        """What has come; what to pass on, which is never a part of a piece that is seen. Raises `Broken`."""
        at, passed = 0, bytearray()
        while at < len(data):
            count = min(abs(self._wanted) - len(self._held), len(data) - at)
            if self._wanted < 0:
                self._wanted += count
                passed += data[at : at + count]
            else:
                self._held += data[at : at + count]
            at += count
            if self._wanted == 0 or len(self._held) == self._wanted:
                seen = bytes(self._held)
                self._held.clear()
                passed += self._edit(seen)
                self._wanted = self._parser.send(seen)
        return bytes(passed)
