"""Waiting for those who are in the way of a closing; naming them, or ending them where that was asked for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from attrs import evolve

from lukshook import kernel
from lukshook.command import TimedOut
from lukshook.errors import Busy
from lukshook.site import Site

_PAUSE_MOST = 2.0


def patiently(volume: str, handle: Any, site: Site, step: Callable[[], None]) -> None:
    """Try *step* until nobody is in its way: a host's dying children let go a moment later than the host."""
    end = time.monotonic() + site.patience
    pause = 0.05
    while True:
        try:
            step()
            return
        except TimedOut as error:
            raise Busy(f"volume {volume} cannot be closed: {error.message}", hint=error.hint) from error
        except Busy as busy:
            if time.monotonic() >= end:
                _give_up(volume, handle, site, busy)
                break
        time.sleep(pause)
        pause = min(pause * 2, _PAUSE_MOST)
    patiently(volume, handle, evolve(site, kill_holders=False, patience=5.0), step)


def _give_up(volume: str, handle: Any, site: Site, busy: Busy) -> None:
    """Name who holds it, or end them where that was asked for."""
    from lukshook import holders  # noqa: PLC0415 - seldom

    device = _device(handle)
    who = holders.of(device, handle.path)
    users = [holder for holder in who if holder.uses_it]
    if not site.kill_holders or not users:
        named = ", ".join(map(str, who)) or "nobody this user can see"
        ending = " (with --kill-holders it ends them)" if users else ""
        raise Busy(
            f"volume {volume} could not be closed: {busy.message}, by {named}",
            hint=f"when that is over: lukshook close {volume}{ending}",
            lost=busy.lost,
        ) from busy
    site.warn("ending " + ", ".join(map(str, users)))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for holder in users:
            _end(holder.pid, number)
        if kernel.wait_until(lambda: not any(holder.uses_it for holder in holders.of(device)), 5.0):
            break


def _device(handle: Any) -> str:
    """The device number of a layer, as "major:minor", or "" for one that has none."""
    try:
        return str(getattr(handle, "number", "")) or kernel.number(handle.path)
    except OSError:
        return ""


def _end(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):  # another user's is named when closing has failed once more
        return
