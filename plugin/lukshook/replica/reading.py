"""Reading all of a replica: to verify it, or to take it over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from lukshook.replica.place import HOLE, UNREADABLE, Place, digests, read_if_possible
from lukshook.store.target import TargetFile
from lukshook.system import signals


def adopt(place: Place, wanted: int) -> None:
    """Read what lies there, and take it for what the target holds; the next change makes it right.

    What cannot be read is sent again. Only *wanted* bytes are read: that change cuts off what is behind
    them, which can be any amount.
    """
    if place.held.holding.step != "reading":
        place.held.save(step="reading", mixed=True)
        place.target.unlink(place.part)
    place.held.forget_pieces()
    with closing(place.target.open(place.name, writable=True)) as file, place.column() as column:
        size = file.size
        for number in _data_pieces(place, file, min(size, wanted)):
            content = read_if_possible(file, number * place.piece, min(place.piece, size - number * place.piece))
            column.put(number, UNREADABLE if content is None else place.digest_of(content))
            place.progress(number)
        column.sync()
    _give_up_journal(place)
    place.target.plan(wanted, place.part)
    place.held.save(step="adopted", journal="", state=place.held.holding.state + 1, size=size, generation=0)


def _data_pieces(place: Place, file: TargetFile, size: int) -> Iterator[int]:
    """The pieces that are no holes, in the first *size* bytes."""
    data = _Data(file)
    for number in range(-(-size // place.piece)):
        signals.check()
        if data.begins(number * place.piece) < (number + 1) * place.piece:
            yield number


def _give_up_journal(place: Place) -> None:
    """It counts no more. The next one replaces it; where there is no room for both, it becomes the next part."""
    if not place.target.shows_neighbours and place.target.exists(place.journal):
        place.target.rename(place.journal, place.part)
        place.target.sync_folder()


def wrong_pieces(place: Place) -> Iterator[int]:
    """Read all of the replica; the numbers of the pieces that are not what was copied."""
    size = place.held.holding.size
    with closing(place.target.open(place.name, writable=False)) as file, place.column() as column:
        file.sync()
        data = _Data(file)
        for number, digest in digests(column, -(-size // place.piece)):
            place.progress(number)
            offset = number * place.piece
            length = min(place.piece, size - offset)
            if digest == HOLE and offset + length <= min(data.begins(offset), file.size):
                continue
            content = read_if_possible(file, offset, length)
            if content is None or len(content) < length or place.digest_of(content) != digest:
                yield number


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
