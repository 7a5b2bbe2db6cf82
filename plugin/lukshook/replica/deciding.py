"""A change until it is decided on: its journal is written, read back, and renamed; and how that one is known again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, suppress

from lukshook.errors import Refused
from lukshook.ledger.columns import Column
from lukshook.replica import journal
from lukshook.replica.journal import Change, Head, Written
from lukshook.replica.place import HOLE, UNREADABLE, Place, not_kept
from lukshook.replica.read_ahead import ahead
from lukshook.store.target import TargetFile

#: Of the pieces that a change replaces, how many are looked at before: is the replica still what it was?
_LOOKS = 16


def decide(place: Place, changes: Iterable[Change], size: int, generation: int) -> int:
    """Write a journal and decide on it; bytes sent, 0 for a change of nothing, which needs no journal."""
    held = place.held.holding
    head = Head(place.piece, place.held.id, held.state, held.state + 1, generation, size)
    try:
        return _decided(place, head, changes)
    except Refused:
        place.target.unlink(place.part)
        raise


def _decided(place: Place, head: Head, changes: Iterable[Change]) -> int:
    with closing(place.open_or_make(place.part)) as file:
        written = journal.write(file, head, place.held.key, ahead(_looked_at(place, changes)), place.digest_of)
        if not written.pieces and head.size == place.held.holding.size:
            return 0
        file.sync()
        _check_kept(place, file, written)
    place.held.save(step="decided", journal=written.mac.hex(), journal_size=written.size)
    place.target.rename(place.part, place.journal)
    place.target.sync_folder()
    return written.sent


def _looked_at(place: Place, changes: Iterable[Change]) -> Iterator[Change]:
    """*changes*; for the first of them it is checked that the replica still has what they replace."""
    with closing(place.target.open(place.name, writable=True)) as file, place.column() as column:
        if file.size != place.held.holding.size:
            raise _another(place, f"it has {file.size} instead of {place.held.holding.size} bytes")
        for looks, change in enumerate(_with_first(place, file, column, changes)):
            known = column.get(change.number, 1)
            if looks < _LOOKS and known != UNREADABLE and not place.has(file, change.number, known):
                raise _another(place, f"its piece {change.number} is not what was copied")
            place.progress(change.number)
            yield change


def _with_first(place: Place, file: TargetFile, column: Column, changes: Iterable[Change]) -> Iterator[Change]:
    """*changes*, and the first piece among them where applying clears that: as it is, if it does not change."""
    rest, digest = iter(changes), column.get(0, 1)
    first = next(rest, None)
    if first is None:
        return
    if first.number and digest != HOLE and not place.target.shows_neighbours:
        content = file.read(0, place.piece)
        yield Change(0, digest, lambda: content)
    yield first
    yield from rest


def _another(place: Place, why: str) -> Refused:
    return Refused(
        f"{place.target.shown} is not as the last copy left it: {why}",
        hint="it was changed, damaged, or replaced by an older state; "
        f"to read all of it and send what differs: lukshook copy NAME {place.target.shown} --adopt",
    )


def _check_kept(place: Place, file: TargetFile, written: Written) -> None:
    shown = f"{place.target.shown}.part"
    try:
        found = journal.check(file, written.size, place.held.key, place.digest_of)
    except journal.Damaged as error:
        raise not_kept(shown, str(error)) from error
    if found != written.mac:
        raise not_kept(shown, "it is another one")


def is_decided_on(place: Place) -> bool:
    """Whether the journal there is the last one; after `adopt`, an earlier one may still have its name."""
    if place.target.exists(place.journal):
        with suppress(Refused):
            check_journal(place)
            return True
    return False


def check_journal(place: Place) -> None:
    """Check that what lies there is the journal that was decided on last. Raises `Refused`."""
    shown, held = f"{place.target.shown}.journal", place.held.holding
    try:
        with closing(place.target.open(place.journal, writable=False)) as file:
            is_last = _may_be_last(place, journal.head(file)) and held.journal == _checked(place, file).hex()
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


def _may_be_last(place: Place, head: Head) -> bool:
    """Whether a journal that begins so may be the last one, which may be carried over already."""
    if (head.id, head.piece, head.after) != (place.held.id, place.piece, head.before + 1):
        raise journal.Damaged("it is not about this copy")
    return place.held.holding.state in (head.before, head.after)


def _checked(place: Place, file: TargetFile) -> bytes:
    return journal.check(file, place.held.holding.journal_size, place.held.key, place.digest_of)
