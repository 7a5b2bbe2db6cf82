"""Pieces of an image, and runs of them: which pieces a stretch of bytes touches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

#: Bytes of a piece; the last one of an image may be shorter.
PIECE = 256 * 1024
#: A number of pieces in a row: the first, and how many.
Run = tuple[int, int]


def count(size: int, piece: int) -> int:
    """How many pieces an image of *size* bytes has."""
    return -(-size // piece)


def runs(extents: Iterable[tuple[int, int]], size: int, piece: int) -> tuple[Run, ...]:
    """The pieces that *extents* (offset and length in bytes) touch, each once and in order, within *size* bytes."""
    touched = sorted(
        (offset // piece, count(min(offset + length, size), piece))
        for offset, length in extents
        if length > 0 and offset < size
    )
    return tuple(merged((first, end - first) for first, end in touched))


def merged(ordered: Iterable[Run]) -> Iterator[Run]:
    """The same pieces in as few runs as possible; *ordered* by their first piece."""
    begin, end = 0, 0
    for first, number in ordered:
        if first > end or end == begin:
            if end > begin:
                yield begin, end - begin
            begin, end = first, first + number
        end = max(end, first + number)
    if end > begin:
        yield begin, end - begin


def whole(size: int, piece: int) -> tuple[Run, ...]:
    """All pieces of an image of *size* bytes."""
    return ((0, count(size, piece)),) if size else ()


def total(pieces: Iterable[Run]) -> int:
    """How many pieces there are in runs."""
    return sum(number for _, number in pieces)
