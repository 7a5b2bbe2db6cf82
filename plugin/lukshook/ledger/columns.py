"""A column of a ledger: a sparse file with a value of fixed width for every piece."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from lukshook.ledger.pieces import Run

#: Values that are read or written at once.
STEP = 65536


class Column:
    """An open column of values of *width* bytes; what was never written is zeros. Raises OSError."""

    def __init__(self, file: Path, width: int, *, writable: bool = True) -> None:
        self.width = width
        access = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
        self._descriptor = os.open(file, access | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def get(self, first: int, number: int) -> bytes:
        """The values of *number* pieces from *first* on, one after the other."""
        wanted = number * self.width
        found = os.pread(self._descriptor, wanted, first * self.width)
        return found.ljust(wanted, b"\0")

    def put(self, first: int, values: bytes) -> None:
        """Write the values from *first* on. Raises OSError."""
        offset, rest = first * self.width, memoryview(values)
        while rest:
            done = os.pwrite(self._descriptor, rest, offset)
            offset, rest = offset + done, rest[done:]

    def fill(self, pieces: Iterable[Run], value: bytes) -> None:
        """Write one value for all *pieces*. Raises OSError."""
        for first, number in pieces:
            for begin in range(first, first + number, STEP):
                self.put(begin, value * min(STEP, first + number - begin))

    def limit(self, number: int) -> None:
        """Drop the values behind the first *number* pieces. Raises OSError."""
        if os.fstat(self._descriptor).st_size > number * self.width:
            os.ftruncate(self._descriptor, number * self.width)

    def sync(self) -> None:
        """Wait until it outlives a power cut. Raises OSError."""
        os.fsync(self._descriptor)
