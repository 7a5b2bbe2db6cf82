"""Faults in the commands of lukshook: the n-th that changes something goes wrong in a given way.

Used as the `prepare` of a forked lukshook: it wraps the one function that starts tools, so every command that anybody
adds is in it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from lukshook.luks import header_file
from lukshook.system import command, libc
from lukshook.system.command import Command, Effect, Result

FAULTS = (
    "fails",
    "fails after all",
    "hangs",
    "INT to us",
    "TERM to us",
    "KILL to us before",
    "KILL to us meanwhile",
    "KILL to us after",
    "KILL to the tool",
)
KILLS = tuple(fault for fault in FAULTS if fault.startswith("KILL to us"))
#: What makes a change without a tool. What of it can hang, on a store that has died, is made by a child
#: (tests/unit/test_liveness.py).
_CALLS: tuple[tuple[Any, str], ...] = (
    (libc, "bind"),
    (libc, "unmount"),
    (libc, "make_read_only"),
    (libc, "remount_read_only"),
    (fcntl, "ioctl"),
    (os, "chmod"),
)
_HANG_SECONDS = 0.3
_BROKEN = 4  # an exit status that no command may have: where 1 means "was gone already", waiting for that takes long


@frozen
class Fault:
    """What goes wrong: *what* at the *step*-th change, counted from 0; None for nothing. Each change is noted in *log*.

    *limit*: seconds that replace every longer time limit of ours.
    """

    log: Path
    what: str | None = None
    step: int = -1
    counter: list[int] = field(factory=lambda: [-1])

    def __call__(self) -> None:
        """Wrap the runner of this process."""
        call, note = command.SystemRunner._call, command.SystemRunner.note

        def faulty_call(runner: Any, wanted: Command) -> Result:
            if wanted.effect is Effect.READ or not self._is_due(str(wanted)):
                return call(runner, wanted)
            return self._go_wrong(wanted, lambda asked: call(runner, asked))

        def faulty_note(runner: Any, line: str) -> None:
            note(runner, line)
            if self._is_due(line):
                self._signal_us()
                if self.what in ("fails", "fails after all"):
                    _break_next_call(after="after" in self.what)

        setattr(command.SystemRunner, "_call", faulty_call)  # noqa: B010 - mypy has no other way to say it
        setattr(command.SystemRunner, "note", faulty_note)  # noqa: B010

    def _is_due(self, line: str) -> bool:
        self.counter[0] += 1
        with self.log.open("a") as log:
            log.write(line.replace("\n", " ") + "\n")
        return self.what is not None and self.counter[0] == self.step

    def _signal_us(self) -> None:
        number = {"INT to us": signal.SIGINT, "TERM to us": signal.SIGTERM, "KILL to us before": signal.SIGKILL}
        if self.what in number:
            os.kill(os.getpid(), number[self.what])

    def _go_wrong(self, wanted: Command, call: Callable[[Command], Result]) -> Result:
        self._signal_us()
        if self.what == "fails":
            return Result(_BROKEN, "", "broken on purpose")
        if self.what == "hangs":
            return call(evolve(wanted, argv=("sleep", "1000"), timeout=_HANG_SECONDS, stdin=None))
        if self.what in ("KILL to us meanwhile", "KILL to the tool"):
            _after_start(os.getpid() if "us" in self.what else None)
        result = call(wanted)
        if self.what == "KILL to us after":
            os.kill(os.getpid(), signal.SIGKILL)
        return Result(_BROKEN, result.out, "broken on purpose") if self.what == "fails after all" else result


def _break_next_call(*, after: bool) -> None:
    """Let the next change that is made by a system call, not a tool, fail; *after*: it has had its effect then."""
    whole = {(owner, name): getattr(owner, name) for owner, name in _CALLS}

    def broken(call: Callable[..., Any]) -> Callable[..., Any]:
        def fails(*arguments: Any) -> Any:
            for (owner, name), mended in whole.items():
                setattr(owner, name, mended)
            if after:
                call(*arguments)
            raise OSError(errno.EIO, "broken on purpose")

        return fails

    for (owner, name), call in whole.items():
        setattr(owner, name, broken(call))


def _after_start(victim: int | None) -> None:
    """Kill *victim*, or the tool itself, as soon as the next tool has started to work."""
    start = subprocess.Popen.__init__

    def killing(self: Any, *arguments: Any, **options: Any) -> None:
        subprocess.Popen.__init__ = start  # type: ignore[method-assign]
        start(self, *arguments, **options)
        time.sleep(0.02)
        os.kill(victim or self.pid, signal.SIGKILL)

    subprocess.Popen.__init__ = killing  # type: ignore[method-assign]


def killed_with_a_new_header() -> None:
    """As the `prepare` of a key command: it is killed with the new header on the image, before it notes that."""

    def die(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(header_file, "wipe", die)  # noqa: B010 - as above
