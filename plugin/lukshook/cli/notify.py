"""Messages by hand: does one get there, and is a backup late: `notify`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

import click

from lukshook.cli.main import App, guarded, pass_app, say, warn
from lukshook.config import Volume
from lukshook.errors import BadConfiguration, LukshookError, Unavailable, Usage
from lukshook.notify.channel import Channel
from lukshook.notify.message import TEST, Message
from lukshook.notify.notices import AT_END, Notices
from lukshook.system import clock


@click.command("notify")
@click.argument("channels", nargs=-1, metavar="[CHANNEL]...")
@click.option("--late", is_flag=True, help="Report volumes whose last good backup is older than `stale_after` instead.")
@pass_app
def notify_command(app: App, channels: tuple[str, ...], late: bool) -> int:
    """Send a test message through the channels of [notify], or through those that are named.

    Shows for each channel whether its service took the message. The exit status is 69 if one did not. A test of
    uptime-kuma counts as a good backup there. With --late, for a timer: nothing is said while every backup is in time.
    """
    return guarded(lambda: _late(app, channels) if late else _test(app, channels))


def _test(app: App, names: tuple[str, ...]) -> int:
    notices = _notices(app)
    channels = _chosen(notices, names)
    _warn_of_readers(app.configuration.source, channels)
    return _ending(_send(app, notices, channels, TEST, "", ""))


def _late(app: App, names: tuple[str, ...]) -> int:
    """Tell of each volume that is late, all of them before a channel that does not work is reported."""
    notices = _notices(app)
    chosen = _chosen(notices, names)
    failed: list[str] = []
    for volume in app.configuration.volumes.values():
        reason = "" if volume.read_only else _lateness(app, volume)
        if reason:
            channels = tuple(channel for channel in notices.wanted("late", volume.name) if channel in chosen)
            say(f"{volume.name}: {reason}")
            failed += _send(app, notices, channels, "late", volume.name, reason)
    return _ending(failed)


def _lateness(app: App, volume: Volume) -> str:
    """How late a backup is, or ""."""
    try:
        last = app.site().state(volume).known.last_success
    except LukshookError as error:
        return error.message
    if last is None:
        return "there was no good backup yet"
    passed = clock.age(last)
    if passed is None:
        return "the last good backup is dated in the future"
    return f"the last good backup is {clock.span(passed)} old" if passed > volume.stale_after else ""


def _notices(app: App) -> Notices:
    if app.notices is None:
        raise BadConfiguration(
            f"there is no [notify] in {app.configuration.source}", hint="docs/monitoring.md has an example"
        )
    return app.notices


def _send(app: App, notices: Notices, channels: tuple[Channel, ...], event: str, volume: str, reason: str) -> list[str]:
    """Send a message, say what became of it, and name the channels that did not take it."""
    if app.runner.dry:
        for channel in channels:
            app.runner.note(f"# a message through {channel.name}, of the kind {channel.kind}")
        return []
    message = Message(event, volume, os.uname().nodename, reason=reason)
    faults = notices.send(channels, message, app.runner, AT_END)
    for name, fault in faults.items():
        say(f"{name}: {fault or 'sent'}")
    return [name for name, fault in faults.items() if fault]


def _ending(failed: list[str]) -> int:
    if failed:
        names = ", ".join(dict.fromkeys(failed))
        raise Unavailable(f"no message through {names}", hint="docs/monitoring.md describes each kind")
    return 0


def _warn_of_readers(source: Path, channels: Iterable[Channel]) -> None:
    """Say that other users can read what may be a secret."""
    written = ", ".join(channel.name for channel in channels if channel.has_secret_written)
    if written and source.stat().st_mode & 0o044:
        place = shlex.quote(str(source))
        warn(f"other users can read the URL or token of {written} in {source}; if it is a secret: chmod 600 {place}")


def _chosen(notices: Notices, names: tuple[str, ...]) -> tuple[Channel, ...]:
    known = {channel.name: channel for channel in notices.channels}
    for name in names:
        if name not in known:
            raise Usage(f"there is no channel {name}", hint=f"configured are: {', '.join(known)}")
    return tuple(known[name] for name in names) if names else notices.channels
