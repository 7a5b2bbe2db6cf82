"""What a ledger says in numbers: of a few bytes for each piece, without the volume's lock, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from attrs import frozen

from lukshook.ledger import ledger
from lukshook.ledger.columns import STEP, Column
from lukshook.ledger.ledger import BAD, MARK_BYTES, MARKS, UNKNOWN, State

#: Days that a verification counts as recent.
_RECENT_DAYS = 30
_ALL_BYTES = range(256)


@frozen
class Summary:
    """What a ledger says of *count* pieces: *recent* were read and found right in the last 30 days, *bad* are damaged,
    *unknown* may have been written while nothing recorded it.
    """

    state: State
    count: int
    recent: int
    bad: int
    unknown: int

    @property
    def share(self) -> float:
        """The share of the pieces that are recent, from 0 to 1."""
        return self.recent / self.count if self.count else 1.0


def of(folder: Path) -> Summary | None:
    """The numbers of the ledger in *folder*, None where there is none. Raises `json_files.Damaged`, OSError."""
    state = ledger.load_state(folder)
    if state is None:
        return None
    today = ledger.today()
    with closing(Column(folder / MARKS, MARK_BYTES, writable=False)) as marks:
        found = [_counted(step, today) for step in _steps(marks, state.count)]
    recent, bad, unknown = map(sum, zip(*found, strict=True)) if found else (0, 0, 0)
    return Summary(state, state.count, recent, bad, unknown)


def _steps(marks: Column, count: int) -> Iterator[bytes]:
    for first in range(0, count, STEP):
        yield marks.get(first, min(STEP, count - first))


def _counted(marks: bytes, today: int) -> tuple[int, int, int]:
    """How many of *marks*, two bytes each with the low one first, are recent, bad and unknown."""
    if marks == marks[:MARK_BYTES] * (len(marks) // MARK_BYTES):  # as after a complete verification
        one = _counted_bytes(marks[:1], marks[1:2], today)
        return one[0] * (len(marks) // 2), one[1] * (len(marks) // 2), one[2] * (len(marks) // 2)
    return _counted_bytes(marks[::2], marks[1::2], today)


def _counted_bytes(low: bytes, high: bytes, today: int) -> tuple[int, int, int]:
    """A loop over millions of pieces takes seconds in Python, so bytes are translated to 1 or 0, and these counted."""
    first = max(today - _RECENT_DAYS + 1, 1)
    recent = 0
    for upper in range(first >> 8, (today >> 8) + 1):
        of_upper = _where(high, lambda byte: byte == upper)  # noqa: B023 - called at once
        of_lower = _where(low, lambda byte: first <= upper << 8 | byte <= today)  # noqa: B023
        recent += (int.from_bytes(of_upper) & int.from_bytes(of_lower)).bit_count()
    bad, unknown = (_where(high, lambda byte: bool(byte << 8 & flag)).count(1) for flag in (BAD, UNKNOWN))  # noqa: B023
    return recent, bad, unknown


def _where(values: bytes, holds: Callable[[int], bool]) -> bytes:
    """A 1 for each of *values* for which *holds*, else a 0."""
    return values.translate(bytes(map(holds, _ALL_BYTES)))
