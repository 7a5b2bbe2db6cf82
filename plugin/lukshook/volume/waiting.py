"""Waiting for those who are in the way of a closing; naming them, or ending them where that was asked for."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection

from attrs import evolve

from lukshook.errors import Busy
from lukshook.layers.base import LayerHandle
from lukshook.system import kernel, processes
from lukshook.system.command import TimedOut
from lukshook.volume import users
from lukshook.volume.context import Site

_PAUSE_MOST = 2.0


def patiently(volume: str, handle: LayerHandle, site: Site, step: Callable[[], None]) -> None:
    """Try *step* until no process is in its way: a host's dying children release the volume a moment after the host."""
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


def _give_up(volume: str, handle: LayerHandle, site: Site, busy: Busy) -> None:
    """Name who holds it, or end them where that was asked for; never a process that we run for.

    Another user's process, which we may not signal, is named when closing has failed once more.
    """
    from lukshook.volume import holders  # noqa: PLC0415 - seldom

    device = device_of(handle)
    who = holders.of(device, handle.path)
    spared = users.ancestors()
    ending = [holder for holder in who if holder.uses_it and holder.pid not in spared]
    if not site.kill_holders or not ending:
        named = ", ".join(map(str, who)) or "a process that this user cannot see"
        option = " (with --kill-holders it ends them)" if ending else ""
        raise Busy(
            f"volume {volume} could not be closed: {busy.message}, by {named}",
            hint=f"when it is no longer in use: lukshook close {volume}{option}",
            lost=busy.lost,
        ) from busy
    site.warn("ending " + ", ".join(map(str, ending)))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for holder in ending:
            processes.tell(holder.pid, holder.started, number)
        if kernel.wait_until(lambda: not _hold_it(device, spared), 5.0):
            break


def device_of(handle: LayerHandle) -> str:
    """The device number of a layer, as "major:minor", or "" for one that has none."""
    try:
        return handle.number or kernel.number(handle.path)
    except OSError:
        return ""


def _hold_it(device: str, spared: Collection[int]) -> bool:
    """Whether anybody who may be ended still does something on *device*."""
    from lukshook.volume import holders  # noqa: PLC0415 - seldom

    return any(holder.uses_it and holder.pid not in spared for holder in holders.of(device))
