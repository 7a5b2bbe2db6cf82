"""Signals to a process that was remembered by its number: never to another one that has the number now."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lukshook.system import kernel


def tell(pid: int, started: int, number: int) -> None:
    """Send signal *number* to the process that got *pid* when it *started* (`kernel.started`; 0: not known).

    Nothing is sent where that process has ended, where another process has its number now, or where we may not signal
    it. The descriptor of pidfd_open(2) keeps the process, so that no other can get its number between look and signal.
    """
    if not started:
        return
    with suppress(ProcessLookupError, PermissionError):
        descriptor = _hold(pid)
        try:
            if kernel.started(pid) != started:
                return
            if descriptor is None:
                os.kill(pid, number)
            else:
                signal.pidfd_send_signal(descriptor, number)
        finally:
            if descriptor is not None:
                os.close(descriptor)


@contextmanager
def watched(pid: int) -> Iterator[int | None]:
    """A descriptor that wakes `kernel.wait_until` when the process ends.

    None where it has ended, or where a sandbox forbids that. Whether it is the process that was meant is for the caller
    to find out: he is only woken by it.
    """
    descriptor = None
    with suppress(ProcessLookupError):
        descriptor = _hold(pid)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _hold(pid: int) -> int | None:
    """A descriptor for the process, or None where a sandbox forbids the call. Raises ProcessLookupError."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError:
        return None


def family(pid: int) -> list[tuple[int, int]]:
    """The living processes that *pid* has started, and those that these have: number and start time of each."""
    found = [(pid, 0)]
    for parent, _ in found:
        for child in kernel.children(parent):
            started = kernel.started(child)
            # Still a child after its start time was read: so that is the start time of a child.
            if started is not None and child in kernel.children(parent):
                found.append((child, started))
    return found[1:]
