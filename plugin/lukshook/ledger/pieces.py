"""Pieces of an image, and runs of them: which pieces a stretch of bytes touches."""

from __future__ import annotations

from collections.abc import Iterable

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
    merged: list[list[int]] = []
    for first, end in touched:
        if merged and first <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([first, end])
    return tuple((first, end - first) for first, end in merged)


def whole(size: int, piece: int) -> tuple[Run, ...]:
    """All pieces of an image of *size* bytes."""
    return ((0, count(size, piece)),) if size else ()


def total(pieces: Iterable[Run]) -> int:
    """How many pieces there are in runs."""
    return sum(number for _, number in pieces)
