"""Signals: noted when they come, raised only where stopping leaves nothing half done.

A host tool that is interrupted sends INT and TERM to its whole process group a millisecond apart, so only the first
counts. It is raised by `check`, which stands between two steps, and anywhere inside `allowed`, which encloses waiting:
for a lock, for a key, for a command that only looks.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """The process was asked to stop; *signum* says by which signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class _State:
    waiting = 0
    first: int | None = None
    raised = False


def install() -> None:
    """Take INT, TERM and HUP from now on. A signal the parent had set to be ignored stays ignored (nohup).

    CHLD is not: where it is ignored, the kernel keeps no exit status, and Python takes a tool that failed for one that
    ended with 0 (wait(2), subprocess of Python 3.11).
    """
    _State.waiting, _State.first, _State.raised = 0, None, False
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def ignore() -> None:
    """Raise nothing from now on, neither what has come nor what comes: closing goes through whatever the host sends."""
    _State.raised = True
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def allowed() -> Iterator[None]:
    """Let a signal be raised inside, at once: for waiting that may take long and changes nothing."""
    check()
    _State.waiting += 1
    try:
        yield
    finally:
        _State.waiting -= 1


def check() -> None:
    """Raise `Interrupted`, once, if a signal has come."""
    if _State.first is not None and not _State.raised:
        _State.raised = True
        raise Interrupted(_State.first)


def raised() -> bool:
    """Whether `Interrupted` was raised; also while signals are ignored."""
    return _State.raised


def raise_again() -> NoReturn:
    """Raise `Interrupted` once more, where code of others may have caught it."""
    raise Interrupted(_State.first or signal.SIGINT)


def pending() -> int | None:
    """The signal that has come and was not raised yet, or None."""
    return None if _State.raised else _State.first


def _handle(number: int, frame: FrameType | None) -> None:
    if _State.first is None:
        _State.first = number
    if _State.waiting:
        check()
