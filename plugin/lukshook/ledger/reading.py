"""Reading pieces of an image past the page cache, and their digests: several at a time, in a fixed amount of memory.

A store that is gone makes a read hang in the kernel. So threads read that a process need not wait for when it ends.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator

from attrs import frozen

from lukshook.errors import Unavailable
from lukshook.ledger.digests import HOLE, digest
from lukshook.ledger.pieces import Run
from lukshook.ledger.pieces import count as pieces_of
from lukshook.system import files, signals
from lukshook.system.command import descriptor_path

#: Bytes that one thread reads at once: large reads are faster, but a slow store would not answer several in time.
_LEAST, _MOST = 1 << 20, 8 << 20
#: Seconds: steps that take less are made larger, and steps that take more are made small again.
_QUICK, _SLOW = 0.2, 2.0
#: Steps that are kept in order: some of them may be holes, which need no buffer.
_MOST_STEPS = 64
#: Seconds until a store that does not answer is given up; one that answers slowly, as a disk does where it is bad, is
#: waited for.
SECONDS = 120.0
#: What the kernel says of a store or a connection that is gone, and not of a bad place on a disk.
_GONE = frozenset(
    {
        *(errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNABORTED, errno.ECONNRESET, errno.ECONNREFUSED, errno.EPIPE),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ETIMEDOUT, errno.ENOLINK),
        *(errno.ESTALE, errno.ENODEV, errno.ENXIO),
    }
)
#: Random places that are read to know whether a store answers.
_PLACES = 4
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


@frozen
class Stretch:
    """*number* pieces from *first* on: their digests, None for one that cannot be read; no digests for a hole."""

    first: int
    number: int
    digests: tuple[bytes | None, ...] | None

    def part(self, begin: int, number: int) -> Stretch:
        """*number* of its pieces, without the first *begin*."""
        kept = None if self.digests is None else self.digests[begin : begin + number]
        return Stretch(self.first + begin, number, kept)

    def joined(self) -> bytes | None:
        """The digests one after the other, or None where a piece cannot be read."""
        if self.digests is None:
            return HOLE * self.number
        found = [one for one in self.digests if one is not None]
        return b"".join(found) if len(found) == self.number else None

    def each(self) -> Iterator[tuple[int, bytes | None]]:
        """Each piece with its digest."""
        found = self.digests if self.digests is not None else itertools.repeat(HOLE, self.number)
        return zip(range(self.first, self.first + self.number), found, strict=True)


@frozen
class Reader:
    """What is read, and how: an open image of *size* bytes in pieces of *piece* bytes, with the ledger's *secret*.

    *steady*: in small steps, for somebody who limits how fast it is read.
    """

    image: int
    size: int
    piece: int
    secret: bytes
    steady: bool = False

    def content(self, piece: int) -> bytes:
        """What is in *piece*, as the store has it now; shorter where the image ends early. Raises OSError."""
        begin = piece * self.piece
        descriptor = files.past_the_cache(descriptor_path(self.image))
        try:
            with mmap.mmap(-1, self.piece) as buffer:
                found = files.read_past_the_cache(descriptor, buffer, begin)
                return buffer[: min(found, self.size - begin)]
        finally:
            os.close(descriptor)

    def answers(self) -> bool:
        """Whether the store reads anything: the beginning, or one of some random places that are no holes.

        A disk that was pulled and a server that was given up say of every place what a bad disk says of one (EIO).
        """
        number = pieces_of(min(self.size, os.lseek(self.image, 0, os.SEEK_END)), self.piece)
        places = (0, *(_next_data(self, one) for one in random.sample(range(number), min(_PLACES, number))))
        return any(None not in (one.digests or ()) for piece in places for one in self.read(((piece, 1),)))

    def read(self, pieces: Iterable[Run]) -> Iterator[Stretch]:
        """Read *pieces*, in order; those of a hole are not read (lseek(2), SEEK_DATA).

        Raises `Unavailable` when the store does not answer, OSError when the image cannot be opened again.
        """
        descriptor = files.past_the_cache(descriptor_path(self.image))
        try:
            yield from _in_order(self, descriptor, pieces)
        finally:
            os.close(descriptor)


def _parts(reader: Reader, pieces: Iterable[Run], pace: _Pace) -> Iterator[tuple[int, int, bool]]:
    """First piece, number of pieces, and whether they have to be read: holes are given whole, data in steps."""
    for first, number in pieces:
        at, end = first, first + number
        while at < end:
            data = min(_next_data(reader, at), end)
            if data > at:
                yield at, data - at, False
            elif data < end:
                data = min(at + max(pace.step // reader.piece, 1), end)
                yield at, data - at, True
            at = data


def _next_data(reader: Reader, first: int) -> int:
    """The first piece from *first* on that has data in it; the first that is not all there where no data follows."""
    try:
        return os.lseek(reader.image, first * reader.piece, os.SEEK_DATA) // reader.piece
    except OSError as error:
        if error.errno != errno.ENXIO:  # a store or a device that cannot tell
            return first
    end = os.lseek(reader.image, 0, os.SEEK_END)
    return max(end // reader.piece if end < reader.size else pieces_of(reader.size, reader.piece), first)


def _in_order(reader: Reader, descriptor: int, pieces: Iterable[Run]) -> Iterator[Stretch]:
    """Keep twice as many steps running as there are processors: half of them wait for the disk."""
    pace = _Pace(_LEAST if reader.steady else _MOST)
    parts = _parts(reader, pieces, pace)
    running: deque[_Step] = deque()
    buffers = [mmap.mmap(-1, _MOST) for _ in range(min(2 * len(os.sched_getaffinity(0)), 8))]
    while True:
        while buffers and len(running) < _MOST_STEPS and (part := next(parts, None)) is not None:
            first, number, is_data = part
            running.append(_Step(reader, descriptor, first, number, buffers.pop() if is_data else None, pace))
        if not running:
            return
        done = running.popleft()
        yield done.result()
        if done.buffer is not None:
            pace.learn(done.seconds)
            buffers.append(done.buffer)


class _Pace:
    """How many bytes the next *step* reads: few at first, more while the store is quick, *most* of all.

    *heard*: when the store has answered last, whatever it said, by time.monotonic().
    """

    def __init__(self, most: int) -> None:
        self.step, self._most = _LEAST, most
        self.heard = time.monotonic()

    def learn(self, seconds: float) -> None:
        """A step took *seconds*."""
        if seconds > _SLOW:
            self.step = _LEAST
        elif seconds < _QUICK:
            self.step = min(2 * self.step, self._most)


class _Step:
    """Pieces in a row: a thread of their own reads them where they are not in a hole."""

    def __init__(
        self, reader: Reader, descriptor: int, first: int, number: int, buffer: mmap.mmap | None, pace: _Pace
    ) -> None:
        self.reader, self.descriptor, self.buffer, self._pace = reader, descriptor, buffer, pace
        self.first, self.number = first, number
        self._found: list[bytes | None] = []
        self._gone = ""
        self.seconds = 0.0
        self._thread: threading.Thread | None = None
        if buffer is not None:
            self._thread = threading.Thread(target=self._read, args=(buffer,), daemon=True)
            self._thread.start()

    def result(self) -> Stretch:
        if self._thread is None:
            return Stretch(self.first, self.number, None)
        if self._is_silent(self._thread):
            raise Unavailable(
                f"the store does not answer within {SECONDS:.0f} s", hint="is the server or network down?"
            )
        if self._gone:
            raise Unavailable(f"the store does not answer: {self._gone}", hint="is the server or network down?")
        return Stretch(self.first, self.number, tuple(self._found))

    def _is_silent(self, thread: threading.Thread) -> bool:
        """Wait for *thread*, as long as the store answers any; whether it does not."""
        asked = time.monotonic()
        while thread.is_alive() and (left := max(asked, self._pace.heard) + SECONDS - time.monotonic()) > 0:
            with signals.allowed():
                thread.join(left)
        return thread.is_alive()

    def _read(self, buffer: mmap.mmap) -> None:
        began = time.monotonic()
        with memoryview(buffer) as view:
            if self._fill(view, 0, self.number):
                self._found = [self._digest(view, at) for at in range(self.number)]
            else:  # some of them may be there
                self._found = [self._digest(view, at) if self._fill(view, at, 1) else None for at in range(self.number)]
        self.seconds = time.monotonic() - began

    def _fill(self, view: memoryview, at: int, number: int) -> bool:
        """Read *number* pieces at once, without the first *at* of them; whether they are all there."""
        size, begin = self.reader.piece, (self.first + at) * self.reader.piece
        with view[at * size : (at + number) * size] as place:
            try:
                found = files.read_past_the_cache(self.descriptor, place, begin)
                return found >= min(len(place), self.reader.size - begin)
            except OSError as error:
                if error.errno in _GONE:
                    self._gone = error.strerror or str(error)
                return False
            finally:
                self._pace.heard = time.monotonic()

    def _digest(self, view: memoryview, at: int) -> bytes:
        size, begin = self.reader.piece, at * self.reader.piece
        with view[begin : begin + min(size, self.reader.size - self.first * size - begin)] as content:
            return digest(self.reader.secret, content)
