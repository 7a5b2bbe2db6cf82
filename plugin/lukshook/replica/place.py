"""Where a replica lies, and what is known of it: what all parts of its work need."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from attrs import field, frozen

from lukshook.errors import NotSafe
from lukshook.ledger.columns import STEP, Column
from lukshook.replica.held import WIDTH, Held
from lukshook.replica.journal import DigestOf
from lukshook.store.target import Target, TargetFile
from lukshook.system import signals

#: The digest of a piece of zeros.
HOLE = bytes(WIDTH)
#: What is kept for a piece that cannot be read there: the digest of none.
UNREADABLE = b"\xff" * WIDTH
#: What the kernel says of a bad place of a disk or a file system.
_BAD_PLACE = frozenset({errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EBADMSG, errno.EUCLEAN})
#: Random places that are read to know whether the others can be.
_PLACES = 4
_PART, _JOURNAL, _CLONE, _NOTICE = ".part", ".journal", ".next", ".READ-ME-FIRST"
#: Called with the number of pieces that are done.
Progress = Callable[[int], None]


@frozen(eq=False, repr=False)
class Place:
    """A replica lies at *target*, of which *held* is known. *digest_of*: the ledger's; *piece*: bytes of a piece."""

    target: Target
    held: Held
    digest_of: DigestOf
    piece: int
    progress: Progress = field(default=lambda done: None)

    @property
    def name(self) -> str:
        """The name of the replica in its folder."""
        return self.target.name

    @property
    def part(self) -> str:
        """The name of what is being written and not decided on."""
        return self.name + _PART

    @property
    def journal(self) -> str:
        """The name of a change that is decided on."""
        return self.name + _JOURNAL

    @property
    def clone(self) -> str:
        """The name of a clone of the replica, which a change is applied to."""
        return self.name + _CLONE

    @property
    def notice(self) -> str:
        """The name of what says that the replica is mixed."""
        return self.name + _NOTICE

    @contextmanager
    def column(self) -> Iterator[Column]:
        """The digest of every piece that the target has."""
        column = self.held.digests()
        try:
            yield column
        finally:
            column.close()

    def open_or_make(self, name: str) -> TargetFile:
        """A file there, to be written."""
        try:
            return self.target.open(name, writable=True)
        except FileNotFoundError:
            return self.target.create(name)

    def has(self, file: TargetFile, number: int, digest: bytes) -> bool:
        """Whether the piece *number* of *file*, which is read, is the one of *digest*."""
        length = min(self.piece, file.size - number * self.piece)
        if length <= 0:
            return digest == HOLE
        content = read_if_possible(file, number * self.piece, length)
        return content is not None and len(content) == length and self.digest_of(content) == digest


def read_if_possible(file: TargetFile, offset: int, length: int) -> bytes | None:
    """What lies there; None in a bad place of a disk. Raises OSError, also where nothing can be read any more."""
    try:
        return file.read(offset, length)
    except OSError as error:
        if error.errno not in _BAD_PLACE or not _answers(file):
            raise
        return None


def _answers(file: TargetFile) -> bool:
    """Whether the beginning of *file*, or one of some random places, can be read."""
    size = file.size
    for place in (0, *random.sample(range(size), min(_PLACES, size))):
        with suppress(OSError):
            file.read(place, 1)
            return True
    return False


def neighbours(name: str) -> tuple[str, ...]:
    """The names that lie beside a replica for a time."""
    return tuple(name + suffix for suffix in (_PART, _JOURNAL, _CLONE, _NOTICE))


def digests(column: Column, count: int) -> Iterator[tuple[int, bytes]]:
    """Each of *count* pieces and its digest in *column*."""
    for first in range(0, count, STEP):
        number = min(STEP, count - first)
        found = column.get(first, number)
        for index in range(number):
            signals.check()
            yield first + index, found[index * WIDTH : (index + 1) * WIDTH]


def not_kept(shown: str, why: str) -> NotSafe:
    """What is raised where *shown*, read back, is not what was written."""
    return NotSafe(
        f"the store has not kept what was written to {shown}: {why}", hint="run the same command again; check the disk"
    )
