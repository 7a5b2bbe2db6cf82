"""A replica and how it changes: at any moment, and after any kill or power cut, it is or becomes one whole state.

A first copy is written to NAME.part, read back, and renamed. A change goes into NAME.part too, as a journal; that is
read back and renamed to NAME.journal, which decides on the change; then it is applied and removed. What this host knows
of it (`held`) is written down before each of these steps, so the next run knows what it may find.

Where a store does not keep what it has synced, nothing can promise that; what is read back shows some of it.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress

from attrs import field, frozen

from lukshook.errors import Exists, NotSafe, Refused, Unavailable
from lukshook.ledger.columns import STEP, Column
from lukshook.replica import journal, notice
from lukshook.replica.held import WIDTH, Held
from lukshook.replica.journal import BATCH, Change, DigestOf, Head, Record, Written
from lukshook.replica.read_ahead import ahead
from lukshook.store.target import Target, TargetFile
from lukshook.system import clock, signals

_HOLE = bytes(WIDTH)
_PART, _JOURNAL, _CLONE, _NOTICE = ".part", ".journal", ".next", ".READ-ME-FIRST"
#: What the column has for a piece of a first copy that may be half there; no digest is that.
_BEING_WRITTEN = b"\xff" * WIDTH
#: Of the pieces that a change replaces, how many are looked at before: is the replica still what it was?
_LOOKS = 16
#: Called with the number of pieces that are done.
Progress = Callable[[int], None]


@frozen(eq=False, repr=False)
class Replica:
    """A replica at *target*, of which *held* is known. *digest_of*: the ledger's; *piece*: bytes of a piece.

    Its methods raise OSError where the target fails, `Refused` for what lies there and is not ours, and `NotSafe` for
    what the target has not kept. The next run continues.
    """

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
    def _clone(self) -> str:
        return self.name + _CLONE

    @property
    def _notice(self) -> str:
        return self.name + _NOTICE

    def recover(self) -> bool:
        """Finish what an earlier run has decided on, and remove what it has not; whether there was anything to finish.

        Raises `Refused` for a journal that is damaged, or that this host has not decided on; `Unavailable` for a first
        copy that was removed.
        """
        held, waiting = self.held.holding, self.target.exists(self.journal)
        if held.step == "reading":
            raise Refused(
                f"{self.target.shown} was not read to its end when it was to be taken over",
                hint="read it again: --adopt",
            )
        if held.step == "decided" and held.mixed and not self._is_decided_on():
            self.held.save(step="adopted")  # the name of the journal has not outlived a power cut
            return False
        if held.step == "adopted":
            return False
        if held.step == "naming":
            self._finish_naming()
        elif waiting:
            self._check_journal()
            self._carry_over()
        elif held.step == "applying":
            raise Refused(
                f"the journal of {self.target.shown} was removed before the copy was complete: the copy is mixed",
                hint=f"put {self.journal} back, or read all of the copy and send what differs: --adopt",
            )
        elif held.step:  # "decided": the rename has not outlived a power cut; "applied": its removal has
            self._remove_neighbours()
        else:
            self._remove_neighbours()
            return False
        return True

    def plan(self, size: int) -> None:
        """The next change gives it *size* bytes. `recover` comes before: no journal is there then that counts."""
        self.target.plan(size, self.part)

    def _remove_neighbours(self) -> None:
        for name in (self._clone, self._notice):
            if self.target.exists(name):
                self.target.unlink(name)
        if self.held.holding.step:
            self.held.save(step="")

    # A change of a replica that is there

    def update(self, changes: Iterable[Change], size: int, generation: int) -> int:
        """Make the replica what *changes*, which rise in number, and *size* say; bytes that were sent.

        `recover` comes before. What *changes* raises leaves the replica as it was.
        """
        held = self.held.holding
        head = Head(self.piece, self.held.id, held.state, held.state + 1, generation, size)
        try:
            sent = self._write_journal(head, changes)
        except Refused:
            self.target.unlink(self.part)
            raise
        if sent:
            self._carry_over()
        else:
            for name in (self.part, self.journal):
                self.target.unlink(name)
            self._remove_neighbours()
        self.held.save(last_copy=clock.now(), sent=sent, generation=generation, mixed=False)
        return sent

    def _write_journal(self, head: Head, changes: Iterable[Change]) -> int:
        """Write the journal and decide on it; bytes sent, 0 for a change of nothing, which needs no journal."""
        with closing(self._open_or_make(self.part)) as file:
            written = journal.write(file, head, self.held.key, ahead(self._looked_at(changes)), self.digest_of)
            if not written.pieces and head.size == self.held.holding.size:
                return 0
            file.sync()
            self._check_kept(file, written)
        self.held.save(step="decided", journal=written.mac.hex(), journal_size=written.size)
        self.target.rename(self.part, self.journal)
        self.target.sync_folder()
        return written.sent

    def _open_or_make(self, name: str) -> TargetFile:
        try:
            return self.target.open(name, writable=True)
        except FileNotFoundError:
            return self.target.create(name)

    def _looked_at(self, changes: Iterable[Change]) -> Iterator[Change]:
        """*changes*; for the first of them it is checked that the replica still has what they replace."""
        with closing(self.target.open(self.name, writable=True)) as file, self._column() as column:
            if file.size != self.held.holding.size:
                raise self._another(f"it has {file.size} instead of {self.held.holding.size} bytes")
            for looks, change in enumerate(self._with_first(file, column, changes)):
                if looks < _LOOKS and not self._has(file, change.number, column.get(change.number, 1)):
                    raise self._another(f"its piece {change.number} is not what was copied")
                self.progress(change.number)
                yield change

    def _with_first(self, file: TargetFile, column: Column, changes: Iterable[Change]) -> Iterator[Change]:
        """*changes*, and the first piece among them where `_apply` clears that: as it is, if it does not change."""
        rest, digest = iter(changes), column.get(0, 1)
        first = next(rest, None)
        if first is None:
            return
        if first.number and digest != _HOLE and not self.target.shows_neighbours:
            content = file.read(0, self.piece)
            yield Change(0, digest, lambda: content)
        yield first
        yield from rest

    def _another(self, why: str) -> Refused:
        return Refused(
            f"{self.target.shown} is not as the last copy left it: {why}",
            hint="it was changed, damaged, or replaced by an older state; "
            f"to read all of it and send what differs: lukshook copy NAME {self.target.shown} --adopt",
        )

    def _has(self, file: TargetFile, number: int, digest: bytes) -> bool:
        length = min(self.piece, file.size - number * self.piece)
        if length <= 0:
            return digest == _HOLE
        content = file.read(number * self.piece, length)
        return len(content) == length and self.digest_of(content) == digest

    def _check_kept(self, file: TargetFile, written: Written) -> None:
        try:
            found = journal.check(file, written.size, self.held.key, self.digest_of)
        except journal.Damaged as error:
            raise _not_kept(f"{self.target.shown}.part", str(error)) from error
        if found != written.mac:
            raise _not_kept(f"{self.target.shown}.part", "it is another one")

    def _check_journal(self) -> None:
        """Check that what lies there is the journal that was decided on last. Raises `Refused`."""
        shown, held = f"{self.target.shown}.journal", self.held.holding
        try:
            with closing(self.target.open(self.journal, writable=False)) as file:
                is_last = self._may_be_last(journal.head(file)) and held.journal == self._checked(file).hex()
        except journal.Damaged as error:
            raise Refused(
                f"{shown} is damaged: {error}",
                hint="the copy may be mixed; keep the file, and make a new copy at another path",
            ) from error
        if not is_last:
            raise Refused(
                f"{shown} is not the change that was decided on last: somebody has put an older one there",
                hint="move it away, then: lukshook verify NAME --copy TARGET",
            )

    def _is_decided_on(self) -> bool:
        """Whether the journal there is the last one; after `adopt`, an earlier one may still have its name."""
        if self.target.exists(self.journal):
            with suppress(Refused):
                self._check_journal()
                return True
        return False

    def _may_be_last(self, head: Head) -> bool:
        """Whether a journal that begins so may be the last one, which may be carried over already."""
        if (head.id, head.piece, head.after) != (self.held.id, self.piece, head.before + 1):
            raise journal.Damaged("it is not about this copy")
        return self.held.holding.state in (head.before, head.after)

    def _checked(self, file: TargetFile) -> bytes:
        return journal.check(file, self.held.holding.journal_size, self.held.key, self.digest_of)

    def _records(self, source: TargetFile) -> Iterator[Record]:
        """Those of the journal that was decided on last."""
        return journal.records(source, self.held.holding.journal_size, self.held.key)

    # Carrying a journal over

    def _carry_over(self) -> None:
        """Make the replica what its journal says, which was checked, and remove the journal."""
        with closing(self.target.open(self.journal, writable=False)) as source:
            head = journal.head(source)
            try:
                if self._applied_to_clone(source):
                    self.held.save(step="applying")
                    self.target.rename(self._clone, self.name)
                    self.target.sync_folder()
                else:
                    self._write_notice()
                    self.held.save(step="applying")
                    self._apply(self.name, source)
                self._note(source, head)
            except journal.Damaged as error:
                raise Refused(
                    f"{self.target.shown}.journal has changed while it was used: {error}",
                    hint="who else can write there? the copy may be mixed",
                ) from error
        self.target.unlink(self.journal)
        self.target.unlink(self._notice)
        self.target.sync_folder()
        self.held.save(step="")

    def _applied_to_clone(self, source: TargetFile) -> bool:
        """Whether there is a clone that has all that the journal says; there is none where it has no room."""
        self.target.unlink(self._clone)
        if not self.target.clone(self.name, self._clone):
            return False
        try:
            self._apply(self._clone, source)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.target.unlink(self._clone)
            return False
        return True

    def _write_notice(self) -> None:
        """One that is there stays: the replica may be mixed already."""
        text = notice.text(self.name, self.journal)
        with closing(self._open_or_make(self._notice)) as file:
            file.write(0, text)
            file.resize(len(text))
            file.sync()
        self.target.sync_folder()

    def _apply(self, name: str, source: TargetFile) -> None:
        """Write what the journal *source* has into *name*, and read it back.

        Where people do not see what lies beside it, nothing opens it while it is mixed: its first piece, which has the
        header, goes before all others, and comes back after them.
        """
        head = journal.head(source)
        count = -(-head.size // head.piece)
        with closing(self.target.open(name, writable=True)) as file:
            is_cleared = not self.target.shows_neighbours and self._clear_first(file, source)
            file.resize(head.size)
            for numbers in (range(1, count), range(1)) if is_cleared else (range(count),):
                self._write_pieces(file, source, numbers)

    def _clear_first(self, file: TargetFile, source: TargetFile) -> bool:
        """Clear the first piece, if the journal *source* brings it back."""
        first = next(self._records(source), None)
        if first is None or first.number:
            return False
        file.clear(0, min(self.piece, file.size))
        file.sync()
        return True

    def _write_pieces(self, file: TargetFile, source: TargetFile, numbers: range) -> None:
        head = journal.head(source)
        for count, record in enumerate(self._records_of(source, numbers), 1):
            offset = record.number * head.piece
            if not record.length:
                file.clear(offset, head.length(record.number))
            elif not file.take(source, record.at, offset, record.length):
                file.write(offset, source.read(record.at, record.length))
            self.progress(record.number)
            if not count % BATCH:
                file.sync()
        file.sync()
        for record in self._records_of(source, numbers):
            if not self._has(file, record.number, record.digest):
                raise _not_kept(self.target.shown, f"piece {record.number} is another one")

    def _records_of(self, source: TargetFile, numbers: range) -> Iterator[Record]:
        """Those of the pieces *numbers* in the journal *source*; what is behind them is not read."""
        for record in self._records(source):
            if record.number >= numbers.stop:
                return
            if record.number in numbers:
                yield record

    def _note(self, source: TargetFile, head: Head) -> None:
        """Note that the target has what the journal says; the second time it is the same."""
        with self._column() as column:
            column.limit(-(-head.size // head.piece))
            for record in self._records(source):
                column.put(record.number, record.digest)
            column.sync()
        self.held.save(step="applied", state=head.after, generation=head.generation, size=head.size, mixed=False)

    # A first copy

    def first(self, changes: Iterable[Change], size: int, generation: int) -> int:
        """Make the replica of all pieces that are not zeros, and of those that `digests` has; bytes sent.

        `recover` comes before. What an interrupted run has sent is not sent again. Raises `Exists`.
        """
        self._check_free()
        with self._column() as column, closing(self._first_part(column)) as file:
            file.resize(size)
            column.limit(-(-size // self.piece))
            sent = self._fill(file, column, changes)
            self._check_all(file, column)
        self.target.sync_folder()  # so that its name outlives a power cut
        self.held.save(step="naming", generation=generation, size=size)
        self._finish_naming()
        self.held.save(last_copy=clock.now(), sent=sent)
        return sent

    def _check_free(self) -> None:
        for name in (self.name, self.journal):
            if self.target.exists(name):
                raise Exists(
                    f"{name} is already there beside {self.target.shown}",
                    hint="if it is a copy of this volume, take it over: --adopt; otherwise name another path",
                )

    def _first_part(self, column: Column) -> TargetFile:
        """What an earlier run has left, or a new file; without what the column does not know, and without a header."""
        try:
            file = self.target.open(self.part, writable=True)
        except FileNotFoundError:
            column.limit(0)
            return self.target.create(self.part)
        if self.held.is_blank:
            file.resize(0)
        elif column.get(0, 1) != _HOLE:
            column.put(0, _BEING_WRITTEN)
            column.sync()
            file.clear(0, min(self.piece, file.size))
            file.sync()
        return file

    def _fill(self, file: TargetFile, column: Column, changes: Iterable[Change]) -> int:
        """Write the pieces that *column* does not have. It says so before they are written, and what they are after."""
        sent = 0
        for batch in _batches(changes):
            for change in batch:
                column.put(change.number, _BEING_WRITTEN)
            column.sync()
            for change in ahead(batch):
                sent += self._put(file, change)
                self.progress(change.number)
            file.sync()
            for change in batch:
                column.put(change.number, change.digest)
        column.sync()
        return sent

    def _put(self, file: TargetFile, change: Change) -> int:
        offset = change.number * self.piece
        if change.digest == _HOLE:
            file.clear(offset, min(self.piece, file.size - offset))
            return 0
        content = change.load()
        file.write(offset, content)
        return len(content)

    def _check_all(self, file: TargetFile, column: Column) -> None:
        """Read back what *column* has. Raises `NotSafe`; the pieces that are wrong are sent again then."""
        wrong = 0
        for number, digest in _digests(column, -(-file.size // self.piece)):
            if digest != _HOLE and not self._has(file, number, digest):
                column.put(number, _HOLE)
                wrong += 1
        if wrong:
            raise _not_kept(f"{self.target.shown}.part", f"{wrong} pieces are others")

    def _finish_naming(self) -> None:
        if self.target.exists(self.part):
            if self.target.exists(self.name) and any(True for _ in self.wrong_pieces()):
                self._check_free()
            self.target.rename(self.part, self.name)  # also where a store has kept both names in a power cut
        elif not self.target.exists(self.name):
            self.held.forget_pieces()
            self.held.save(step="")
            raise Unavailable(
                f"the copy {self.target.shown} was removed", hint="make it again: run the same command again"
            )
        self.target.sync_folder()
        self.held.save(step="", state=1)

    # Looking at a replica

    def adopt(self, wanted: int) -> None:
        """Read what lies there, and take it for what the target holds; the next change makes it right.

        Only *wanted* bytes are read: that change cuts off what is behind them, which can be any amount.
        """
        if self.held.holding.step != "reading":
            self.held.save(step="reading", mixed=True)
            self.target.unlink(self.part)
        self.held.forget_pieces()
        with closing(self.target.open(self.name, writable=True)) as file, self._column() as column:
            size = file.size
            for number in self._data_pieces(file, min(size, wanted)):
                content = file.read(number * self.piece, min(self.piece, size - number * self.piece))
                column.put(number, self.digest_of(content))
                self.progress(number)
            column.sync()
        self._give_up_journal()
        self.plan(wanted)
        self.held.save(step="adopted", journal="", state=self.held.holding.state + 1, size=size, generation=0)

    def _give_up_journal(self) -> None:
        """It counts no more. The next one replaces it; where there is no room for both, it becomes the next part."""
        if not self.target.shows_neighbours and self.target.exists(self.journal):
            self.target.rename(self.journal, self.part)
            self.target.sync_folder()

    def _data_pieces(self, file: TargetFile, size: int) -> Iterator[int]:
        """The pieces that are no holes, in the first *size* bytes."""
        data = _Data(file)
        for number in range(-(-size // self.piece)):
            signals.check()
            if data.begins(number * self.piece) < (number + 1) * self.piece:
                yield number

    def length(self) -> int:
        """Bytes of what lies there."""
        with closing(self.target.open(self.name, writable=False)) as file:
            return file.size

    def wrong_pieces(self) -> Iterator[int]:
        """Read all of the replica; the numbers of the pieces that are not what was copied."""
        size = self.held.holding.size
        with closing(self.target.open(self.name, writable=False)) as file, self._column() as column:
            file.sync()
            data = _Data(file)
            for number, digest in _digests(column, -(-size // self.piece)):
                self.progress(number)
                offset = number * self.piece
                length = min(self.piece, size - offset)
                if digest == _HOLE and offset + length <= min(data.begins(offset), file.size):
                    continue
                content = file.read(offset, length)
                if len(content) < length or self.digest_of(content) != digest:
                    yield number

    @contextmanager
    def _column(self) -> Iterator[Column]:
        column = self.held.digests()
        try:
            yield column
        finally:
            column.close()


class _Data:
    """Where the data of a file lie, asked in rising order."""

    def __init__(self, file: TargetFile) -> None:
        self._file = file
        self._next = -1

    def begins(self, offset: int) -> int:
        """Where the next byte that is no hole may lie, from *offset* on."""
        if self._next < offset:
            self._next = self._file.data(offset)
        return self._next


def _batches(changes: Iterable[Change]) -> Iterator[list[Change]]:
    """*changes*, some at a time; last of all the first piece, which has the header: nothing opens what has none."""
    first, rest = [], iter(changes)
    while batch := list(itertools.islice(rest, BATCH)):
        first += [change for change in batch if not change.number]
        yield [change for change in batch if change.number]
    yield first


def neighbours(name: str) -> tuple[str, ...]:
    """The names that lie beside a replica for a time."""
    return tuple(name + suffix for suffix in (_PART, _JOURNAL, _CLONE, _NOTICE))


def _digests(column: Column, count: int) -> Iterator[tuple[int, bytes]]:
    """Each piece and its digest in *column*."""
    for first in range(0, count, STEP):
        number = min(STEP, count - first)
        found = column.get(first, number)
        for index in range(number):
            signals.check()
            yield first + index, found[index * WIDTH : (index + 1) * WIDTH]


def _not_kept(shown: str, why: str) -> NotSafe:
    return NotSafe(
        f"the store has not kept what was written to {shown}: {why}", hint="run the same command again; check the disk"
    )
