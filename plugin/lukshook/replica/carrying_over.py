"""A change that is decided on: what its journal says is written into the replica, or a clone of it, and noted."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import closing

from lukshook.errors import Refused
from lukshook.replica import journal, notice
from lukshook.replica.journal import BATCH, Head, Record
from lukshook.replica.place import Place, not_kept
from lukshook.store.target import TargetFile


def carry_over(place: Place) -> None:
    """Make the replica what its journal says, which was checked, and remove the journal."""
    with closing(place.target.open(place.journal, writable=False)) as source:
        head = journal.head(source)
        try:
            if _applied_to_clone(place, source):
                place.held.save(step="applying")
                place.target.rename(place.clone, place.name)
                place.target.sync_folder()
            else:
                _write_notice(place)
                place.held.save(step="applying")
                _apply(place, place.name, source)
            _note(place, source, head)
        except journal.Damaged as error:
            raise Refused(
                f"{place.target.shown}.journal has changed while it was used: {error}",
                hint="who else can write there? the copy may be mixed",
            ) from error
    place.target.unlink(place.journal)
    place.target.unlink(place.notice)
    place.target.sync_folder()
    place.held.save(step="")


def _applied_to_clone(place: Place, source: TargetFile) -> bool:
    """Whether there is a clone that has all that the journal says; there is none where it has no room."""
    place.target.unlink(place.clone)
    if not place.target.clone(place.name, place.clone):
        return False
    try:
        _apply(place, place.clone, source)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place.target.unlink(place.clone)
        return False
    return True


def _write_notice(place: Place) -> None:
    """One that is there stays: the replica may be mixed already."""
    text = notice.text(place.name, place.journal)
    with closing(place.open_or_make(place.notice)) as file:
        file.write(0, text)
        file.resize(len(text))
        file.sync()
    place.target.sync_folder()


def _apply(place: Place, name: str, source: TargetFile) -> None:
    """Write what the journal *source* has into *name*, and read it back.

    Where people do not see what lies beside it, nothing opens it while it is mixed: its first piece, which has the
    header, goes before all others, and comes back after them.
    """
    head = journal.head(source)
    count = -(-head.size // head.piece)
    with closing(place.target.open(name, writable=True)) as file:
        is_cleared = not place.target.shows_neighbours and _clear_first(place, file, source)
        file.resize(head.size)
        for numbers in (range(1, count), range(1)) if is_cleared else (range(count),):
            _write_pieces(place, file, source, numbers)


def _clear_first(place: Place, file: TargetFile, source: TargetFile) -> bool:
    """Clear the first piece, if the journal *source* brings it back."""
    first = next(_records(place, source), None)
    if first is None or first.number:
        return False
    file.clear(0, min(place.piece, file.size))
    file.sync()
    return True


def _write_pieces(place: Place, file: TargetFile, source: TargetFile, numbers: range) -> None:
    head = journal.head(source)
    for count, record in enumerate(_records_of(place, source, numbers), 1):
        offset = record.number * head.piece
        if not record.length:
            file.clear(offset, head.length(record.number))
        elif not file.take(source, record.at, offset, record.length):
            file.write(offset, source.read(record.at, record.length))
        place.progress(record.number)
        if not count % BATCH:
            file.sync()
    file.sync()
    for record in _records_of(place, source, numbers):
        if not place.has(file, record.number, record.digest):
            raise not_kept(place.target.shown, f"piece {record.number} is another one")


def _records_of(place: Place, source: TargetFile, numbers: range) -> Iterator[Record]:
    """Those of the pieces *numbers* in the journal *source*; what is behind them is not read."""
    for record in _records(place, source):
        if record.number >= numbers.stop:
            return
        if record.number in numbers:
            yield record


def _records(place: Place, source: TargetFile) -> Iterator[Record]:
    """Those of the journal that was decided on last."""
    return journal.records(source, place.held.holding.journal_size, place.held.key)


def _note(place: Place, source: TargetFile, head: Head) -> None:
    """Note that the target has what the journal says; the second time it is the same."""
    with place.column() as column:
        column.limit(-(-head.size // head.piece))
        for record in _records(place, source):
            column.put(record.number, record.digest)
        column.sync()
    place.held.save(step="applied", state=head.after, generation=head.generation, size=head.size, mixed=False)
