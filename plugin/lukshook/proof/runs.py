"""Numbers of pieces, gathered into runs: damage comes in a row, and there may be much of it."""

from __future__ import annotations

from collections.abc import Iterable

from lukshook.ledger.pieces import Run


class Runs:
    """Pieces that are added in rising order."""

    def __init__(self) -> None:
        self._runs: list[Run] = []

    def add(self, piece: int) -> None:
        """One more."""
        first, number = self._runs[-1] if self._runs else (0, 0)
        if number and piece == first + number:
            self._runs[-1] = (first, number + 1)
        else:
            self._runs.append((piece, 1))

    @property
    def found(self) -> tuple[Run, ...]:
        """All of them."""
        return tuple(self._runs)


def runs(numbers: Iterable[int]) -> tuple[Run, ...]:
    """Numbers that rise, as runs."""
    gathered = Runs()
    for number in numbers:
        gathered.add(number)
    return gathered.found
