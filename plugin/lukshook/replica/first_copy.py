"""A first copy: it is written under another name, so that a killed run continues it; read back, and named."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import closing

from lukshook.errors import Exists, Unavailable
from lukshook.ledger.columns import Column
from lukshook.replica.held import WIDTH
from lukshook.replica.journal import BATCH, Change
from lukshook.replica.place import HOLE, Place, digests, not_kept
from lukshook.replica.read_ahead import ahead
from lukshook.replica.reading import wrong_pieces
from lukshook.store.target import TargetFile

#: What the column has for a piece that may be half there; no digest is that.
_BEING_WRITTEN = b"\xff" * WIDTH


def make(place: Place, changes: Iterable[Change], size: int, generation: int) -> int:
    """Write all pieces that are not zeros, and read them back: all but the name is done then. Bytes that were sent."""
    _check_free(place)
    with place.column() as column, closing(_part(place, column)) as file:
        file.resize(size)
        column.limit(-(-size // place.piece))
        sent = _fill(place, file, column, changes)
        _check_all(place, file, column)
    place.target.sync_folder()  # so that its name outlives a power cut
    place.held.save(step="naming", generation=generation, size=size)
    return sent


def _check_free(place: Place) -> None:
    for name in (place.name, place.journal):
        if place.target.exists(name):
            raise Exists(
                f"{name} is already there beside {place.target.shown}",
                hint="if it is a copy of this volume, take it over: --adopt; otherwise name another path",
            )


def _part(place: Place, column: Column) -> TargetFile:
    """What an earlier run has left, or a new file; without what the column does not know, and without a header."""
    try:
        file = place.target.open(place.part, writable=True)
    except FileNotFoundError:
        column.limit(0)
        return place.target.create(place.part)
    if place.held.is_blank:
        file.resize(0)
    elif column.get(0, 1) != HOLE:
        column.put(0, _BEING_WRITTEN)
        column.sync()
        file.clear(0, min(place.piece, file.size))
        file.sync()
    return file


def _fill(place: Place, file: TargetFile, column: Column, changes: Iterable[Change]) -> int:
    """Write the pieces that *column* does not have. It says so before they are written, and what they are after."""
    sent = 0
    for batch in _batches(changes):
        for change in batch:
            column.put(change.number, _BEING_WRITTEN)
        column.sync()
        for change in ahead(batch):
            sent += _put(place, file, change)
            place.progress(change.number)
        file.sync()
        for change in batch:
            column.put(change.number, change.digest)
    column.sync()
    return sent


def _batches(changes: Iterable[Change]) -> Iterator[list[Change]]:
    """*changes*, some at a time; last of all the first piece, which has the header: nothing opens what has none."""
    first, rest = [], iter(changes)
    while batch := list(itertools.islice(rest, BATCH)):
        first += [change for change in batch if not change.number]
        yield [change for change in batch if change.number]
    yield first


def _put(place: Place, file: TargetFile, change: Change) -> int:
    offset = change.number * place.piece
    if change.digest == HOLE:
        file.clear(offset, min(place.piece, file.size - offset))
        return 0
    content = change.load()
    file.write(offset, content)
    return len(content)


def _check_all(place: Place, file: TargetFile, column: Column) -> None:
    """Read back what *column* has. Raises `NotSafe`; the pieces that are wrong are sent again then."""
    wrong = 0
    for number, digest in digests(column, -(-file.size // place.piece)):
        if digest != HOLE and not place.has(file, number, digest):
            column.put(number, HOLE)
            wrong += 1
    if wrong:
        raise not_kept(f"{place.target.shown}.part", f"{wrong} pieces are others")


def finish_naming(place: Place) -> None:
    """Give a first copy that is whole its name. Raises `Exists`; `Unavailable` for one that was removed."""
    if place.target.exists(place.part):
        if place.target.exists(place.name) and any(True for _ in wrong_pieces(place)):
            _check_free(place)
        place.target.rename(place.part, place.name)  # also where a store has kept both names in a power cut
    elif not place.target.exists(place.name):
        place.held.forget_pieces()
        place.held.save(step="")
        raise Unavailable(
            f"the copy {place.target.shown} was removed", hint="make it again: run the same command again"
        )
    place.target.sync_folder()
    place.held.save(step="", state=1)
