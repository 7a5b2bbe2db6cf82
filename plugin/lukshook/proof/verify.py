"""`verify`: is the ciphertext on the store what this host wrote? It is compared with the ledger, without the key.

Reading takes long, so the volume's lock is held only while results are noted. A backup can run meanwhile: what it
writes is left out.
"""

from __future__ import annotations

import math
import os
import secrets
import shlex
import time
from array import array
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property

from attrs import evolve, frozen

from lukshook.config import Volume
from lukshook.errors import BadConfiguration, LukshookError, Unavailable
from lukshook.layers.base import Records
from lukshook.ledger import digests, ledger, pieces
from lukshook.ledger.ledger import BAD, DAY, UNKNOWN, Ledger, State
from lukshook.ledger.pieces import Run
from lukshook.ledger.reading import Reader, Stretch
from lukshook.proof import newer
from lukshook.store.image_file import ImageFile, open_image
from lukshook.system import json_files, signals
from lukshook.volume import header_change, ledger_keeping, remote
from lukshook.volume.context import Site
from lukshook.volume.open_layers import stands
from lukshook.volume.work import Work, work_on

#: Results are noted after so many steps of reading, or seconds.
_BATCH = 4096
_BATCH_SECONDS = 5.0
_CHUNK = 65536
#: Bad pieces that are kept for the report; the ledger marks all.
_MOST_SHOWN = 10_000

#: Told how many bytes of how many are done.
Progress = Callable[[int, int], None]


@frozen
class Damage:
    """A bad piece: where it begins and its length, in bytes, and how: "changed", "older" or "unreadable"."""

    offset: int
    length: int
    how: str


@frozen
class Asked:
    """How to verify. *part*: the share of all pieces to read, those first that were not read for the longest time; None
    for all of them. *rate*: bytes a second at most, None for no limit. *restart*: from the beginning, not where an
    interrupted verification stopped.
    """

    part: float | None = None
    rate: int | None = None
    restart: bool = False


@frozen
class Verified:
    """What a verification found. *compared*: bytes, without what was left out or settled. *bad*: damage, the first
    10,000 pieces of *count*.

    *earlier*: pieces that were found damaged before, and were not compared now. *length*: in words how the image's
    length is wrong, or "". *settled*: pieces that may have been written while nothing recorded it, and count as they
    are from now on. *open*: pieces that were left out, because the open volume may have written them. *newer*: the
    image may be newer than the ledger, because the super block is in a damaged piece.
    """

    compared: int
    bad: tuple[Damage, ...]
    count: int
    earlier: int
    length: str
    settled: int
    open: int
    newer: bool = False


def verify(volume: Volume, site: Site, asked: Asked, progress: Progress) -> Verified | None:
    """Compare the image of *volume* with its ledger. A dry run compares too and notes nothing.

    None in a dry run where there is no ledger yet. Raises `BadConfiguration` (no ledger), `Unavailable` (the store does
    not answer; a resize is not complete).
    """
    with ExitStack() as kept:
        kept.enter_context(remote.at_hand(volume, site))
        with work_on(volume, site) as work:
            image = kept.enter_context(open_image(volume.image.image, writable=False))
            _check_settled(work)
            if site.runner.dry and not work.state.ledger.is_dir() and volume.ledger:
                site.runner.note(f"# begins a ledger: mkdir --parents -- {shlex.quote(os.fspath(work.state.ledger))}")
                return None
            with ledger_keeping.writing(work), _ledger(work, image) as book:
                runs = _chosen(book, asked, dry=site.runner.dry)
                run = _Run(volume, site, image, book)
        return run.read(runs, asked, progress)


def _check_settled(work: Work) -> None:
    header_change.check_settled(work.state)
    if work.state.resizing.exists():
        raise Unavailable(
            f"a resize of volume {work.name} is not complete", hint=f"run the same lukshook resize {work.name} again"
        )


def _ledger(work: Work, image: ImageFile) -> Ledger:
    """The ledger; a new one for a volume that has none yet, of which nothing is known."""
    try:
        found = ledger_keeping.load(work.state, writable=not work.runner.dry)
    except json_files.Damaged as error:
        raise Unavailable(
            f"the ledger of volume {work.name} is damaged: {error}",
            hint=f"to begin a new one: mv {work.state.ledger} {work.state.ledger}.damaged",
        ) from error
    if found is not None:
        return found
    if not work.volume.ledger:
        raise BadConfiguration(
            f"volume {work.name} has no ledger to compare with", hint="add to its configuration: ledger = true"
        )
    ledger_keeping.check_length(work.name, work.state.known, image.size)
    pins = work.state.known.pins
    return ledger.begin(work.state.ledger, image.size, str(pins["uuid"]) if pins else "")


def _chosen(book: Ledger, asked: Asked, *, dry: bool) -> tuple[Run, ...]:
    if asked.part is not None:
        return tuple(_oldest(book, asked.part))
    start = 0 if asked.restart or book.state.began is None else book.state.position
    if start == 0 and not dry:
        book.save(evolve(book.state, began=time.time(), position=0, left_out=False))
    return ((start, book.count - start),) if start < book.count else ()


def _oldest(book: Ledger, part: float) -> Iterator[Run]:
    """That share of all pieces that were not read for the longest time, in the order of the image.

    Up to half of them are those that were found damaged, which may be right again.
    """
    days, damaged = Counter[int](), Counter[int]()
    for _, marks in _all_marks(book):
        for mark in marks:
            (damaged if mark & BAD else days)[_day(mark)] += 1
    number = math.ceil(book.count * part)
    again = min(damaged.total(), max(-(-number // 2), number - days.total()))
    first_of, again_of = _Turn(days, number - again), _Turn(damaged, again)
    for first, marks in _all_marks(book):
        for index, mark in enumerate(marks):
            if (again_of if mark & BAD else first_of).takes(_day(mark)):
                yield first + index, 1


def _day(mark: int) -> int:
    """The day in *mark*; 0, as for what was never read, for one that is still to come: the clock was wrong."""
    day = mark & DAY
    return 0 if day > ledger.today() else day


class _Turn:
    """Whose turn it is: *number* of the pieces that *days* counts, the oldest first, asked for one after the other.

    Of those of one day they are taken in a row from a random place on: where the clock stands still, each has its turn.
    """

    def __init__(self, days: Counter[int], number: int) -> None:
        self._last, self._left = -1, number
        for self._last in sorted(days):
            if days[self._last] >= self._left:
                break
            self._left -= days[self._last]
        self._all = days[self._last]
        self._at = -secrets.randbelow(self._all) if self._all else 0

    def takes(self, day: int) -> bool:
        """Whether the next piece, of that *day*, is one of them."""
        if day != self._last:
            return day < self._last
        self._at += 1
        return (self._at - 1) % self._all < self._left


def _all_marks(book: Ledger) -> Iterator[tuple[int, array[int]]]:
    for first in range(0, book.count, _CHUNK):
        yield first, book.marks(first, min(_CHUNK, book.count - first))


class _Run:
    """One verification: it reads without the volume's lock, and notes results with it."""

    def __init__(self, volume: Volume, site: Site, image: ImageFile, book: Ledger) -> None:
        self.volume, self.site, self.image = volume, site, image
        self.secret, self.began = book.state.secret, book.state.began
        self.generation = book.state.generation
        self.reader = book.reader(image.descriptor)
        self.length = book.state.wrong_length(image.size)
        self.bytes = self.settled = self.open = self.count = self.again = 0
        self.newer = False
        self.bad: list[Damage] = []

    def read(self, runs: tuple[Run, ...], asked: Asked, progress: Progress) -> Verified:
        """Read and compare *runs*."""
        total, whole = pieces.total(runs) * self.reader.piece, asked.part is None
        pace = _Pace(asked.rate)
        batch: list[Stretch] = []
        try:
            for stretch in evolve(self.reader, steady=asked.rate is not None).read(pieces.merged(runs)):
                batch.append(stretch)
                self.bytes += stretch.number * self.reader.piece
                progress(min(self.bytes, total), total)
                pace.keep(0 if stretch.digests is None else stretch.number * self.reader.piece)
                if len(batch) >= _BATCH or pace.is_due():
                    self._note(batch, whole=whole)
                    batch = []
                    pace.noted()
        finally:
            self._note(batch, whole=whole)
        earlier = self._end(whole=whole)
        compared, bad = self.bytes - (self.settled + self.open) * self.reader.piece, tuple(self.bad)
        return Verified(compared, bad, self.count, earlier, self.length, self.settled, self.open, self.newer)

    def _note(self, batch: list[Stretch], *, whole: bool) -> None:
        """Note in the ledger what *batch* has shown."""
        if not batch:
            return
        if any(None in (stretch.digests or ()) for stretch in batch):  # of a store that is gone, no piece can be read
            remote.check_answers(self.volume, self.site)
            _check_reads(self.reader, self.volume)
        with self._work() as work, ledger_keeping.writing(work), self._book(work) as book:
            self._check_named()
            judge = _Judge(work, book, self.image, self.generation)
            for stretch in batch:
                self._compare(judge, stretch)
            state = book.state
            if whole:
                position = batch[-1].first + batch[-1].number
                state = evolve(state, position=position, left_out=state.left_out or judge.open > 0)
            if judge.settled and not work.runner.dry:
                book.commit(judge.settled, state)
            elif not work.runner.dry:
                book.save(state)
            self.settled += len(judge.settled)
            self.open += judge.open
            self.again += judge.again
            self.generation = state.generation

    def _work(self) -> AbstractContextManager[Work]:
        """With the volume's lock: to note results, which writes nothing to the image."""
        return work_on(self.volume, self.site, writes=False)

    def _check_named(self) -> None:
        """Check that the image at its path is the one that is read: another may be trusted by now."""
        if not self.image.is_named(self.image.path.name):
            raise Unavailable(
                f"the image {self.volume.image.shown} was moved or replaced while it was read",
                hint="run the same command again",
            )

    def _compare(self, judge: _Judge, stretch: Stretch) -> None:
        """Compare in chunks: most are as they should be, and a hole may be as long as the image."""
        for begin in range(0, stretch.number, _CHUNK):
            signals.check()
            number = min(_CHUNK, stretch.number - begin)
            found = stretch.part(begin, number).joined()
            if found is not None and judge.all_good(stretch.first + begin, found):
                continue
            for piece, digest in stretch.part(begin, number).each():
                how = judge.piece(piece, digest)
                if how:
                    self._add(piece, how)

    def _add(self, piece: int, how: str) -> None:
        self.count += 1
        if len(self.bad) < _MOST_SHOWN:
            begin = piece * self.reader.piece
            self.bad.append(Damage(begin, min(self.reader.piece, self.reader.size - begin), how))

    def _end(self, *, whole: bool) -> int:
        """Note how it ended, and that the whole image was read. Gives how many pieces were found damaged before."""
        with self._work() as work, ledger_keeping.writing(work), self._book(work) as book:
            noted = sum(1 for _ in book.bad())
            self.newer = self._is_bad(book, newer.piece_of_super_block(work, book))
            if work.runner.dry:
                return noted - self.again
            earlier = max(noted - self.count, 0)
            damaged = self.length or self.count or earlier
            state = evolve(book.state, result=ledger.DAMAGED if damaged else ledger.INTACT)
            book.save(self._completed(state) if whole else state)
            return earlier

    def _is_bad(self, book: Ledger, piece: int | None) -> bool:
        if piece is None:
            return False
        return bool(book.marks(piece, 1)[0] & BAD) or any(one.offset == piece * self.reader.piece for one in self.bad)

    def _completed(self, state: State) -> State:
        """*state* after a verification of all pieces; where some were left out, the whole image was not verified."""
        verified = state.verified if state.left_out or self.open else self.began
        return evolve(state, verified=verified, began=None, position=0, left_out=False)

    def _book(self, work: Work) -> Ledger:
        found = ledger_keeping.load(work.state, writable=not work.runner.dry)
        if found is None or found.state.secret != self.secret:
            raise Unavailable(
                f"the ledger of volume {work.name} was replaced meanwhile", hint="run the same command again"
            )
        return found


class _Judge:
    """Compares pieces with the ledger, while the volume's lock is held.

    *generation*: of the ledger before they were read. A piece that nobody knows may have been written since if the
    volume is open, or was closed in between.
    *settled*: pieces that count as they are; *open*: how many were left out; *again*: how many of those compared were
    found damaged before.
    """

    def __init__(self, work: Work, book: Ledger, image: ImageFile, generation: int) -> None:
        self.work, self.book, self.image = work, book, image
        self.changing = book.state.writing or book.state.generation != generation
        self.day = ledger.today()
        self.settled: list[tuple[int, bytes]] = []
        self.open = self.again = 0

    def all_good(self, first: int, found: bytes) -> bool:
        """Note that the pieces from *first* on are as they should be, if that is so for all of them."""
        number = len(found) // digests.LENGTH
        if self.book.digests(first, number) != found:
            return False
        marks = self.book.marks(first, number)
        keep = UNKNOWN if self.changing and max(marks) & UNKNOWN else 0
        self.again += sum(1 for mark in marks if mark & BAD) if max(marks) >= BAD else 0
        self._mark(first, array("H", ((mark & keep) | self.day for mark in marks) if keep else (self.day,) * number))
        return True

    def _mark(self, first: int, marks: array[int]) -> None:
        if not self.work.runner.dry:
            self.book.mark(first, marks)

    def piece(self, piece: int, found: bytes | None) -> str:
        """How *piece* is bad, or "" where it is not."""
        known, mark = self.book.digests(piece, 1), self.book.marks(piece, 1)[0]
        if found == known:
            self.all_good(piece, known)
            return ""
        if found is not None and (self._is_uncertain(mark) or self._may_be_written(piece)):
            self._leave(piece, found)
            return ""
        again = self._read_again(piece)
        if again == known:
            self.all_good(piece, known)
            return ""
        self.again += bool(mark & BAD)
        if again is None:  # it may have gone meanwhile
            _check_reads(self.book.reader(self.image.descriptor), self.work.volume)
        self._mark(piece, array("H", ((mark & UNKNOWN) | BAD | self.day,)))
        if again is None:
            return "unreadable"
        return "older" if again == self.book.earlier(piece) and again != digests.HOLE else "changed"

    def _leave(self, piece: int, found: bytes) -> None:
        """A piece that may have been written: it counts as it is, unless it may still change."""
        if self.changing:
            self.open += 1
        else:
            self.settled.append((piece, found))

    def _is_uncertain(self, mark: int) -> bool:
        """Whether nobody knows what belongs there. What was found damaged does not count as it is for that."""
        return bool(mark & UNKNOWN) and (self.changing or not mark & BAD)

    def _may_be_written(self, piece: int) -> bool:
        return self.book.state.writing and self._written.have(piece)

    @cached_property
    def _written(self) -> _Pieces:
        return _Pieces(_written(self.work, self.book))

    def _read_again(self, piece: int) -> bytes | None:
        """What is in *piece* now: a volume may have been closed between the first reading and this one."""
        for stretch in self.book.reader(self.image.descriptor).read(((piece, 1),)):
            return next(iter(stretch.each()))[1]
        return None


def _check_reads(reader: Reader, volume: Volume) -> None:
    """Check that the store can read anything: one that is gone has no damage. Raises `Unavailable`."""
    if not reader.answers():
        raise Unavailable(
            f"the store of {volume.image.shown} answers every read with an error",
            hint="is the disk or the server gone? no damage was noted; when it is back, run the same command again",
        )


@frozen
class _Pieces:
    """The pieces in some runs, in order; None for all pieces."""

    runs: tuple[Run, ...] | None

    def have(self, piece: int) -> bool:
        """Whether *piece* is among them."""
        if self.runs is None:
            return True
        at = bisect(self.runs, piece, key=lambda run: run[0]) - 1
        return at >= 0 and piece < sum(self.runs[at])


def _written(work: Work, book: Ledger) -> tuple[Run, ...] | None:
    """The pieces that the open volume may have written, as its layers say; None where that is not known.

    Asking them takes steps that change something (`layers/dirty_bitmap.py`, `layers/era.py`), so a dry run does not.
    """
    record = work.record.load()
    layers = record.layers if record is not None and record.complete and stands(record) else ()
    handle = next((one for _, one in layers if one.records is not Records.NOTHING), None)
    if handle is None or work.runner.dry or (book.state.unclean and handle.records is not Records.SINCE_CLEAN_CLOSE):
        return None
    try:
        extents = handle.written(work.runner)
    except LukshookError:
        return None
    return pieces.runs(extents, book.state.size, book.state.piece)


class _Pace:
    """Keeps to a rate in bytes a second, and says when results are to be noted."""

    def __init__(self, rate: int | None) -> None:
        self._rate, self._done = rate, 0
        self._started = self._noted = time.monotonic()

    def keep(self, done: int) -> None:
        """Wait until *done* bytes more are not too fast."""
        self._done += done
        early = self._done / self._rate - (time.monotonic() - self._started) if self._rate else 0.0
        with signals.allowed():
            if early > 0:
                time.sleep(early)

    def is_due(self) -> bool:
        """Whether the last results were noted some seconds ago."""
        return time.monotonic() - self._noted > _BATCH_SECONDS

    def noted(self) -> None:
        """Results are noted now. Noting may take longer than those seconds, so they begin when it is done."""
        self._noted = time.monotonic()
