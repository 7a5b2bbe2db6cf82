"""Signals: the first one unwinds, later ones are ignored, and none breaks a step in two.

A host tool that is interrupted sends INT and TERM to its whole process group a millisecond apart, so only the first
is taken. While a `shield` is up the signal is kept and raised when the shield comes down.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """The process was asked to stop; *signum* says by which signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class _State:
    depth = 0
    first: int | None = None
    raised = False


def install() -> None:
    """Take INT, TERM and HUP from now on: the first is raised as `Interrupted`, the rest are ignored.

    A signal the parent had set to be ignored stays ignored (nohup).
    """
    _State.depth, _State.first, _State.raised = 0, None, False
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def ignore() -> None:
    """Ignore INT, TERM and HUP from now on: closing goes through whatever the host sends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def shield() -> Iterator[None]:
    """Keep signals back until the block is left, so that a step and its record belong together."""
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1
    check()


def check() -> None:
    """Raise `Interrupted` once if a signal has come in and no shield is up."""
    if _State.first is not None and not _State.depth and not _State.raised:
        _State.raised = True
        raise Interrupted(_State.first)


def _handle(number: int, frame: FrameType | None) -> None:
    if _State.first is None:
        _State.first = number
    check()
