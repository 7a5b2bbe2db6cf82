"""One line in the system's log for each run of a command that opens, closes or changes a volume."""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from lukshook.cli.main import App, outcome, trace
from lukshook.system import journald


def logged(app: App, volume: str, work: Callable[[], int]) -> int:
    """Exit status of *work* as `guarded` has it; how it ended goes to the system's log, with -v to stderr as well."""
    started = time.monotonic()
    status, reason = outcome(work)
    if not app.runner.dry:
        _write(app, volume, status, reason, time.monotonic() - started)
    return status


def _write(app: App, volume: str, status: int, reason: str, seconds: float) -> None:
    command = click.get_current_context().command_path.removeprefix("lukshook ")
    fields = {
        "LUKSHOOK_VOLUME": volume,
        "LUKSHOOK_COMMAND": command,
        "LUKSHOOK_EXIT": str(status),
        "LUKSHOOK_SECONDS": f"{seconds:.3f}",
        **({"LUKSHOOK_REASON": reason} if reason else {}),
    }
    line = f"{command} {volume}: {_ending(status, reason)} after {seconds:.1f} s" + (f": {reason}" if reason else "")
    journald.write(line, journald.ERROR if status else journald.INFO, fields)
    if app.verbose:
        trace(line)


def _ending(status: int, reason: str) -> str:
    if status == 0:
        return "done"
    return f"failed with {status}" if reason else f"ended with {status}"
