"""The header and whether it is ours: trust, and header backup, restore, verify."""

from __future__ import annotations

import os
import time

import click

from lukshook.cli import App, guarded, name_argument, pass_app
from lukshook.trusting import Trusted, trust


@click.command("trust")
@name_argument
@click.option("--rollback", is_flag=True, help="Also when the image is older than when this host closed it last.")
@pass_app
def trust_command(app: App, name: str, rollback: bool) -> int:
    """Take the image of volume NAME for yours, as it lies there now.

    For an image that was made elsewhere, whose key slots were changed elsewhere, or that was put back from a copy
    (--rollback). Its header has to be sane and your key has to open it; then it is remembered, marked with your key
    and backed up, and a folder for backups is made in it.
    """
    return guarded(lambda: _trust(app, name, rollback=rollback))


def _trust(app: App, name: str, *, rollback: bool) -> int:
    volume = app.volume(name)
    os.chdir("/")
    trusted = trust(volume, app.site(), rollback=rollback)
    if trusted is not None:
        for line in _told(name, trusted):
            click.echo(line)
    return 0


def _told(name: str, trusted: Trusted) -> list[str]:
    slots = ", ".join(map(str, trusted.slots))
    lines = [f"volume {name} is trusted: {trusted.kind.upper()} {trusted.uuid}, your key opens key slot {slots}"]
    if trusted.differs:
        lines.append(f"  it is not the header known before: {trusted.differs}")
    if trusted.older is not None:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(trusted.older))
        lines.append(f"  it is older than at its last close here, {when}: what was backed up in between is not in it")
    lines.append(f"  header backup: {trusted.backup}")
    return lines
