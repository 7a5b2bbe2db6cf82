"""A closed image with its ledger, as what is copied from, or healed: which pieces it has, and what is in them."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from attrs import frozen

from lukshook import size
from lukshook.errors import BadConfiguration, Refused, Unavailable
from lukshook.ledger.columns import STEP, Column
from lukshook.ledger.digests import HOLE, LENGTH, digest
from lukshook.ledger.ledger import UNKNOWN, Ledger
from lukshook.ledger.reading import Reader
from lukshook.replica.journal import Change
from lukshook.store.image_file import LOCKED, ImageFile, locked_by_others, open_image
from lukshook.system import json_files
from lukshook.volume import closing, copies, header_change, ledger_keeping
from lukshook.volume.work import Work

_MARK = b"lukshook copies"


def mark_of(book: Ledger) -> str:
    """What tells whether digests that were kept elsewhere are of this ledger; it tells nothing of its secret."""
    return digest(book.secret, memoryview(_MARK)).hex()


@frozen(eq=False)
class Source:
    """An open *image* and its ledger *book*, of the volume *name*. *shown*: what the user calls the image."""

    name: str
    image: ImageFile
    book: Ledger
    shown: str

    @property
    def reader(self) -> Reader:
        """What reads pieces of the image."""
        return self.book.reader(self.image.descriptor)

    def digest_of(self, content: bytes) -> bytes:
        """The digest of a piece."""
        return digest(self.book.secret, memoryview(content))

    def differing(self, column: Column | None) -> Iterator[tuple[int, bytes, bytes, bool]]:
        """The pieces that *column* has otherwise, or that are unknown; None for a column of zeros.

        Each with its digest in the ledger, that in the column, and whether it is unknown.
        """
        for first in range(0, self.book.count, STEP):
            number = min(STEP, self.book.count - first)
            has = column.get(first, number) if column else bytes(number * LENGTH)
            want, marks = self.book.digests(first, number), self.book.marks(first, number)
            if want == has and max(marks) < UNKNOWN:
                continue
            for index, mark in enumerate(marks):
                at = slice(index * LENGTH, (index + 1) * LENGTH)
                unknown = bool(mark & UNKNOWN)
                if unknown or want[at] != has[at]:
                    yield first + index, want[at], has[at], unknown

    def changes(self, column: Column) -> Iterator[Change]:
        """The pieces that *column* has otherwise, each checked against the ledger when it is read. Raises `Refused`.

        What the ledger does not know is copied as it is.
        """
        for piece, want, has, unknown in self.differing(column):
            found = self.digest_of(self._content(piece)) if unknown else want
            if found == HOLE and not unknown:
                self._checked(piece, HOLE)
            if found != has:
                yield Change(piece, found, partial(self._checked, piece, found))

    def _content(self, piece: int) -> bytes:
        try:
            content = self.reader.content(piece)
        except OSError as error:
            raise self._damaged(piece, f"cannot be read: {error.strerror}") from error
        if len(content) < min(self.book.state.piece, self.book.state.size - piece * self.book.state.piece):
            raise self._damaged(piece, "is not all there")
        return content

    def _checked(self, piece: int, want: bytes) -> bytes:
        content = self._content(piece)
        if self.digest_of(content) != want:
            raise self._damaged(piece, "is not what this host wrote")
        return content

    def _damaged(self, piece: int, how: str) -> Refused:
        place = piece * self.book.state.piece
        return Refused(
            f"{self.shown} is damaged: the piece at byte {place} {how}; nothing was copied",
            hint=f"how much is damaged: lukshook verify {self.name}; "
            f"from another copy: lukshook heal {self.name} --from TARGET",
        )


@contextmanager
def source(work: Work, *, path: Path | None = None, writable: bool = False) -> Iterator[Source]:
    """The closed image of the volume, or the snapshot *path* of it, with its ledger; nobody opens it meanwhile.

    A *path* that leads to the image itself is no snapshot. Raises `Unavailable` (open, not closed cleanly),
    `BadConfiguration` (no ledger).
    """
    image_path = work.volume.image.image
    if path is not None and copies.is_same(path, image_path):
        path = None
    if path is None and (work.record.load() is not None or closing.may_be_open(work.volume, work.site)):
        other = "" if writable else "; or copy a snapshot of it: --image FILE"
        raise Unavailable(f"volume {work.name} is open", hint=f"close it first: lukshook close {work.name}{other}")
    with open_image(path or image_path, writable=writable) as image, book_of(work) as book:
        if path is None:
            _check_settled(work, book)
            _lock(image, exclusive=writable)
        yield Source(work.name, image, book, work.volume.image.shown if path is None else str(path))


def check_length(found: Source) -> None:
    """Check that the image has the length that the ledger knows. Raises `Refused`."""
    length, known = found.image.size, found.book.state.size
    if length != known:
        raise Refused(
            f"{found.shown} is not as this host wrote it: it has {size.show_instead(length, known)}",
            hint=f"how much is damaged: lukshook verify {found.name}",
        )


def book_of(work: Work) -> Ledger:
    """The ledger of the volume. Raises `Unavailable`, `BadConfiguration` where there is none."""
    try:
        book = ledger_keeping.load(work.state, writable=not work.runner.dry)
    except json_files.Damaged as error:
        raise Unavailable(
            f"the ledger of volume {work.name} is damaged: {error}", hint=f"see: lukshook verify {work.name}"
        ) from error
    if book is None:
        first = "" if work.volume.ledger else "add to its configuration: ledger = true; then "
        raise BadConfiguration(
            f"volume {work.name} has no ledger, which tells good pieces from bad ones",
            hint=f"{first}run: lukshook verify {work.name}",
        )
    return book


def _check_settled(work: Work, book: Ledger) -> None:
    header_change.check_settled(work.state)
    if work.state.resizing.exists():
        raise Unavailable(
            f"a resize of volume {work.name} is not complete", hint=f"run the same lukshook resize {work.name} again"
        )
    if book.state.writing:
        raise Unavailable(
            f"volume {work.name} was not closed cleanly since it was written",
            hint=f"open and close it once: lukshook run {work.name} -- true",
        )


def _lock(image: ImageFile, *, exclusive: bool) -> None:
    """Keep others away that lock the image when they open it (flock(2)); a store without locks has none to keep."""
    try:
        fcntl.flock(image.descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except LOCKED as error:
        raise locked_by_others(str(image.path)) from error
    except OSError:
        return
