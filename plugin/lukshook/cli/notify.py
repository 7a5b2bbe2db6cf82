"""Does a message get there: `notify`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

import click

from lukshook.cli.main import App, guarded, pass_app, say, warn
from lukshook.errors import BadConfiguration, Unavailable, Usage
from lukshook.notify.channel import Channel
from lukshook.notify.message import TEST, Message
from lukshook.notify.notices import AT_END, Notices


@click.command("notify")
@click.argument("channels", nargs=-1, metavar="[CHANNEL]...")
@pass_app
def notify_command(app: App, channels: tuple[str, ...]) -> int:
    """Send a test message through the channels of [notify], or through those that are named.

    Tells of each channel whether its service took the message. The exit status is 69 if one did not. A test of
    uptime-kuma counts as a good backup there.
    """
    return guarded(lambda: _notify(app, channels))


def _notify(app: App, names: tuple[str, ...]) -> int:
    notices = app.notices
    if notices is None:
        raise BadConfiguration(
            f"there is no [notify] in {app.configuration.source}", hint="docs/monitoring.md has an example"
        )
    channels = _chosen(notices, names)
    _warn_of_readers(app.configuration.source, channels)
    if app.runner.dry:
        for channel in channels:
            app.runner.note(f"# a test message through {channel.name}, of the kind {channel.kind}")
        return 0
    faults = notices.send(channels, Message(TEST, "", os.uname().nodename), app.runner, AT_END)
    for name, fault in faults.items():
        say(f"{name}: {fault or 'sent'}")
    failed = [name for name, fault in faults.items() if fault]
    if failed:
        raise Unavailable(f"no message through {', '.join(failed)}", hint="docs/monitoring.md describes each kind")
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
