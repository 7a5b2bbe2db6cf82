"""The plugin's three hooks: services are stopped before a backup reads their files, and started again after it."""

from __future__ import annotations

from typing import Protocol

from lukshook import hookimpl
from lukshook.errors import Unavailable

from lukshook_services import settings, stopped, units


class _Volume(Protocol):
    name: str


@hookimpl
def before_backup(volume: _Volume) -> None:
    """Stop the services of *volume* that run. If one does not stop, there is no backup, and all are started again.

    What is to be started is noted before anything is stopped: a run that is killed in between loses nothing.
    """
    running = units.running(settings.load(settings.path()).get(volume.name, ()))
    if not running:
        return
    stopped.note(volume.name, running)
    try:
        units.systemctl("stop", *running)
    except Unavailable:
        _start(volume)
        raise


@hookimpl
def after_backup(volume: _Volume) -> None:
    """Start what was stopped. Comes any number of times: the second time nothing is noted any more."""
    _start(volume)


@hookimpl
def report(volume: _Volume) -> None:
    """Start what was stopped, where there was no backup because another plugin said so: then no "after" comes."""
    _start(volume)


def _start(volume: _Volume) -> None:
    waiting = stopped.of(volume.name)
    if waiting:
        units.systemctl("start", *waiting)
        stopped.forget(volume.name)
