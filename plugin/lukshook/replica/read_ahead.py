"""Reading the next pieces of the source while one is being sent, in a fixed amount of memory.

A store that is gone makes a read hang in the kernel. So threads read that a process need not wait for when it ends.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator

from attrs import evolve

from lukshook.errors import Unavailable
from lukshook.replica.journal import Change
from lukshook.system import signals

#: Pieces that are read at a time.
_DEPTH = 4
#: Seconds until a store that does not answer is given up.
SECONDS = 120.0


def ahead(changes: Iterable[Change]) -> Iterator[Change]:
    """*changes*, the content of the next ones being read already. Raises `Unavailable` when the store does not answer.

    What reading one raises, its `load` raises.
    """
    running = deque[_Reading]()
    for change in changes:
        signals.check()
        running.append(_Reading(change))
        if len(running) > _DEPTH:
            yield running.popleft().change
    while running:
        yield running.popleft().change


class _Reading:
    """One piece, read by a thread of its own; a piece of zeros is not read."""

    def __init__(self, change: Change) -> None:
        self.change = evolve(change, load=self._result) if any(change.digest) else change
        self._load = change.load
        self._content = b""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        if self.change is not change:
            self._thread.start()

    def _read(self) -> None:
        try:
            self._content = self._load()
        except BaseException as error:  # raised where the piece is asked for
            self._error = error

    def _result(self) -> bytes:
        with signals.allowed():
            self._thread.join(SECONDS)
        if self._thread.is_alive():
            raise Unavailable(
                f"the store does not answer within {SECONDS:.0f} s", hint="is the server or network down?"
            )
        if self._error is not None:
            raise self._error
        return self._content
