"""`heal`: put good pieces of a replica in the place of damaged ones.

The ledger says which pieces of the image are damaged, and whether a piece of the replica is the right one. So it does
not matter how old the replica is, or who keeps it. Nothing else of the image is touched.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import closing

from attrs import frozen

from lukshook.config import Volume
from lukshook.errors import NotSafe, Refused
from lukshook.ledger.columns import STEP
from lukshook.ledger.digests import HOLE, LENGTH
from lukshook.ledger.ledger import UNKNOWN, Ledger
from lukshook.ledger.pieces import Run, merged, whole
from lukshook.ledger.reading import Stretch
from lukshook.proof import newer
from lukshook.proof.copy import Progress, target_at
from lukshook.proof.runs import Runs
from lukshook.proof.source import Source, source
from lukshook.replica.place import read_if_possible
from lukshook.store.target import TargetFile
from lukshook.system import signals
from lukshook.volume.context import Site
from lukshook.volume.work import Work, work_on


@frozen
class Healed:
    """What was found: runs of pieces of *piece* bytes. *healed*: those that have been repaired, or would be in a dry
    run; *lost*: those that the replica has not either. *unknown*: how many pieces the ledger does not know.
    """

    healed: tuple[Run, ...]
    lost: tuple[Run, ...]
    unknown: int
    piece: int


def heal(
    volume: Volume, site: Site, origin: str, progress: Progress, *, partly: bool = False, even_newer: bool = False
) -> Healed:
    """Compare the closed image of *volume* with its ledger, and replace what is damaged by pieces from *origin*.

    Nothing is written in a dry run, nor where the replica has not all that is damaged, unless *partly*. Raises
    `Refused` (the image is longer than it was, or it may be newer than the ledger and not *even_newer*), `Unavailable`
    (open, or not closed cleanly), `NotSafe`.
    """
    with work_on(volume, site) as work:
        if not even_newer:
            _check_not_newer(work)
        return _heal(work, origin, progress, partly=partly)


def _check_not_newer(work: Work) -> None:
    with source(work, writable=not work.runner.dry) as found:
        doubtful, written = newer.has_other_super_block(work, found), found.book.state.written
    if doubtful and work.runner.dry:
        work.runner.note("# the image may be newer than what this host knows; with the key, heal would look at that")
    elif doubtful:
        newer.check_not_newer(work, written)


def _heal(work: Work, origin: str, progress: Progress, *, partly: bool) -> Healed:
    volume, site = work.volume, work.site
    with (
        source(work, writable=True) as found,
        target_at(origin, volume, site, writable=False) as target,
        closing(target.open(target.name, writable=False)) as replica,
    ):
        _check_not_longer(found)
        seen = _look(found, replica, progress)
        good, lost = seen.good.found, seen.lost.found
        if good and not site.runner.dry and (partly or not lost):
            _write(found, replica, good)
        if not site.runner.dry:
            _note_right(found)
        return Healed(good, lost, seen.unknown, found.book.state.piece)


def _check_not_longer(found: Source) -> None:
    extra = found.image.size - found.book.state.size
    if extra > 0:
        raise Refused(
            f"{found.shown} is {extra} bytes longer than this host left it",
            hint=f"what is behind its end is not ours: truncate it to {found.book.state.size} bytes",
        )


class _Seen:
    """The damaged pieces: those that the replica has *good*, and those that it has not."""

    def __init__(self) -> None:
        self.good, self.lost = Runs(), Runs()
        self.unknown = 0


def _look(found: Source, replica: TargetFile, progress: Progress) -> _Seen:
    """Read all of the image."""
    seen, book = _Seen(), found.book
    for stretch in found.reader.read(whole(book.state.size, book.state.piece)):
        signals.check()
        progress(stretch.first * book.state.piece, book.state.size)
        for piece in _differing(book, stretch):
            if book.marks(piece, 1)[0] & UNKNOWN:
                seen.unknown += 1
            elif _good_piece(found, replica, piece) is None:
                seen.lost.add(piece)
            else:
                seen.good.add(piece)
    return seen


def _differing(book: Ledger, stretch: Stretch) -> Iterator[int]:
    """The pieces of *stretch*, which may be a hole as long as the image, that are not as in the ledger."""
    for begin in range(0, stretch.number, STEP):
        number = min(STEP, stretch.number - begin)
        want = book.digests(stretch.first + begin, number)
        has = (HOLE,) * number if stretch.digests is None else stretch.digests[begin : begin + number]
        if stretch.digests is None and want == HOLE * number:
            continue
        for index, digest in enumerate(has):
            if digest != want[index * LENGTH : (index + 1) * LENGTH]:
                yield stretch.first + begin + index


def _good_piece(found: Source, replica: TargetFile, piece: int) -> bytes | None:
    """What belongs in *piece*, if the replica has it."""
    state = found.book.state
    offset = piece * state.piece
    length = min(state.piece, state.size - offset)
    content = read_if_possible(replica, offset, length)
    if content is None or len(content) < length:
        return None
    return content if found.digest_of(content) == found.book.digests(piece, 1) else None


def _write(found: Source, replica: TargetFile, good: tuple[Run, ...]) -> None:
    """Write the good pieces, wait until they are safe, and read them back. Raises `NotSafe`."""
    piece_bytes, descriptor = found.book.state.piece, found.image.descriptor
    try:
        if found.image.size < found.book.state.size:
            os.ftruncate(descriptor, found.book.state.size)
        for piece in itertools.chain.from_iterable(range(first, first + number) for first, number in good):
            content = _good_piece(found, replica, piece)
            if content is None:
                raise NotSafe("the replica has changed meanwhile", hint="run the same command again")
            _put(descriptor, content, piece * piece_bytes)
        found.image.sync()
    except OSError as error:
        raise NotSafe(
            f"{found.shown} could not be written: {error.strerror}", hint="run the same command again"
        ) from error
    for stretch in found.reader.read(good):
        for piece, digest in stretch.each():
            if digest != found.book.digests(piece, 1):
                raise NotSafe(
                    f"the store has not kept the piece at byte {piece * piece_bytes} of {found.shown}",
                    hint="is the disk failing?",
                )


def _note_right(found: Source) -> None:
    """Pieces that were found damaged, and are right now, whoever has put them right, count as damaged no more."""
    book = found.book
    bad = merged((piece, 1) for piece in book.bad())
    read = itertools.chain.from_iterable(stretch.each() for stretch in found.reader.read(bad))
    book.found_right([piece for piece, digest in read if digest == book.digests(piece, 1)])
    book.save(book.state)


def _put(descriptor: int, content: bytes, offset: int) -> None:
    rest = memoryview(content)
    while rest:
        done = os.pwrite(descriptor, rest, offset)
        offset, rest = offset + done, rest[done:]
