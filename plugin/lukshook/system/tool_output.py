"""What a child says through pipes: all of it is read, so that the child never waits for us, and not all is kept."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Mapping
from typing import Protocol

from attrs import define, field, frozen

#: Bytes that are kept of the beginning, which is what is parsed, and of the end, where a tool says why it failed.
MOST_KEPT = 1 << 20
_AT_ONCE = 1 << 16


class TooMuch(Exception):
    """More was said than is taken."""


class Ear(Protocol):
    """What takes in the output of a child."""

    def take(self, part: bytes) -> None:
        """Take in the next *part*. Raises `TooMuch`."""
        ...


@define(eq=False, repr=False)
class Kept:
    """The beginning and the end of what a child says, up to *most* bytes of each; what lies between is dropped."""

    most: int = MOST_KEPT
    first: bytearray = field(factory=bytearray)
    last: bytearray = field(factory=bytearray)

    def take(self, part: bytes) -> None:
        """Keep the next *part* as far as there is room."""
        room = self.most - len(self.first)
        self.first += part[:room]
        self.last = (self.last + part[room:])[-self.most :]

    def text(self) -> str:
        """What is kept, decoded as Python decodes paths: a tool shows names of files."""
        return os.fsdecode(bytes(self.first + self.last))


@frozen(eq=False, repr=False)
class Whole:
    """All that a child says, which has to be *most* bytes or less."""

    most: int
    content: bytearray = field(factory=bytearray, repr=False)

    def take(self, part: bytes) -> None:
        """Keep the next *part*. Raises `TooMuch`."""
        if len(self.content) + len(part) > self.most:
            raise TooMuch
        self.content.extend(part)


def listen(pipes: Mapping[int, Ear], seconds: float | None) -> None:
    """Read every pipe until its other end is closed. Raises TimeoutError after *seconds*, and `TooMuch`."""
    end = None if seconds is None else time.monotonic() + seconds
    with selectors.PollSelector() as waiting:
        for descriptor in pipes:
            waiting.register(descriptor, selectors.EVENT_READ)
        while waiting.get_map():
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            for key, _ in waiting.select(left):
                part = os.read(key.fd, _AT_ONCE)
                if part:
                    pipes[key.fd].take(part)
                else:
                    waiting.unregister(key.fd)
