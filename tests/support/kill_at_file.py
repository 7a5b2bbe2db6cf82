"""lukshook, killed with SIGKILL right after it has changed a file of its own: a record, what is known, the history.

Used as the `prepare` of a forked lukshook.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import field, frozen

from lukshook.system import files
from lukshook.volume import history
from lukshook.volume.records import RecordFile

_CHANGES: tuple[tuple[Any, str], ...] = ((files, "write_whole"), (history, "_append"), (RecordFile, "clear"))


@frozen
class KillAtFile:
    """The kill comes after the *step*-th change, counted from 1, if there are so many. Each is noted in *log*."""

    step: int
    log: Path
    counter: list[int] = field(factory=lambda: [0])

    def __call__(self) -> None:
        """Wrap what changes files in this process."""
        for owner, name in _CHANGES:
            setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **more: Any) -> Any:
            result = change(*arguments, **more)
            self.counter[0] += 1
            self.log.write_text(str(self.counter[0]))
            if self.counter[0] == self.step:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted
