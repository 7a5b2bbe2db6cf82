"""The plugin's two hooks: a ping when a backup begins, another when it has ended well or badly."""

from __future__ import annotations

import sys
from typing import Protocol

from lukshook import hookimpl

from lukshook_webhook import ping, settings


class _Volume(Protocol):
    name: str


class _Outcome(Protocol):
    failed: bool
    error: BaseException | None


@hookimpl
def before_backup(volume: _Volume) -> None:
    """Ping the start address of *volume*, if it has one. Never stops the backup."""
    _tell(volume.name, "start")


@hookimpl
def report(volume: _Volume, outcome: _Outcome) -> None:
    """Ping the success or the failure address of *volume*, once it is closed and the backup is safe, or is not."""
    _tell(volume.name, "fail" if outcome.failed or outcome.error else "success")


def _tell(name: str, event: settings.Event) -> None:
    try:
        target = settings.load(settings.path()).get(name)
        if target and (address := target.address(event)):
            ping.send(address, timeout=target.timeout)
    except (settings.SettingsError, ping.PingError) as problem:
        sys.stderr.write(f"warning: webhook: {event} of {name} not reported: {problem}\n")
