"""Signals that lukshook takes for a while, in the process of the tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from lukshook.system import signals


@contextmanager
def noted_signals() -> Iterator[None]:
    """Inside, INT, TERM and HUP are noted, and raised where that is allowed."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    for number in signals.SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signals.install()
    try:
        yield
    finally:
        for number in signals.SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signals.install()  # nothing is noted any more
        for number, handler in before.items():
            signal.signal(number, handler)
