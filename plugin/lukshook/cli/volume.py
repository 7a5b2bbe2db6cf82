"""Volumes by hand: create, open, close."""

from __future__ import annotations

import os
import sys
import time

import click

from lukshook import size
from lukshook.cli.logged import logged
from lukshook.cli.main import App, name_argument, pass_app, say
from lukshook.errors import Busy
from lukshook.store.allocation import Progress
from lukshook.system import signals
from lukshook.volume import closing, create, opening, users


@click.command("create")
@name_argument
@click.option("--show-key", is_flag=True, help="Print the key on the recovery sheet even if stdout is not a terminal.")
@pass_app
def create_command(app: App, name: str, show_key: bool) -> int:
    """Create volume NAME: image, key slot, file system, header backup.

    Never overwrites anything. Creates a key if the key source can store one, and prints a recovery sheet.
    """
    return logged(app, name, lambda: _create(app, name, show_key=show_key))


def _create(app: App, name: str, *, show_key: bool) -> int:
    volume = app.volume(name)
    os.chdir("/")
    made = create.create(volume, app.site(), progress_bar(f"Writing {volume.image.image.name}"))
    if made is None:
        return 0
    key = app.ask(volume) if show_key or sys.stdout.isatty() else None
    click.echo(create.sheet(volume, made, key))
    if key:
        key.wipe()
    return 0


def progress_bar(label: str) -> Progress:
    """A line with bar, rate and time left, on a terminal only."""
    if not sys.stderr.isatty():
        return lambda done, total: None
    started = time.monotonic()
    shown = [0.0]

    def show(done: int, total: int) -> None:
        now = time.monotonic()
        if now - shown[0] < 0.2 and done < total:
            return
        shown[0] = now
        rate = done / max(now - started, 0.001)
        left = (total - done) / max(rate, 1)
        bar = "#" * (done * 30 // total)
        text = f"\r{label} [{bar:<30}] {done * 100 // total:3d}%  {size.show(int(rate))}/s  {left:4.0f} s left"
        click.echo(text, nl=done >= total, err=True)

    return show


@click.command("open")
@name_argument
@click.option("--read-only", is_flag=True, help="Do not change a single byte of the image; for restores.")
@pass_app
def open_command(app: App, name: str, read_only: bool) -> int:
    """Open volume NAME by hand, for example for a restore. It stays open until `lukshook close NAME`."""

    def work() -> int:
        volume = app.configured(name)
        os.chdir("/")
        opening.open_volume(volume, users.by_hand(), app.site(), read_only=read_only)
        if not app.runner.dry:
            say(f"volume {name} is open at {volume.mountpoint}")
        return 0

    return logged(app, name, work)


@click.command("close")
@name_argument
@click.option(
    "--kill-holders",
    is_flag=True,
    help="End the jobs and processes that still use the volume.",
)
@pass_app
def close_command(app: App, name: str, kill_holders: bool) -> int:
    """Close volume NAME, opened by hand or left open by a job that was killed.

    A running backup keeps it open and closes it at its end, unless --kill-holders ends the backup.
    """
    signals.ignore()
    return logged(app, name, lambda: _close(app, name, kill_holders=kill_holders))


def _close(app: App, name: str, *, kill_holders: bool) -> int:
    volume = app.configured(name)
    os.chdir("/")
    site = app.site(kill_holders=kill_holders)
    left = closing.close_volume(volume, users.by_hand(), site, backup=False)
    if left and kill_holders and not app.runner.dry:
        closing.end_users(volume, left, site, users.host(left))
        left = closing.close_volume(volume, users.by_hand(), site, backup=False)
    if left:
        who = ", ".join(user.who for user in left)
        raise Busy(f"volume {name} is in use by {who}", hint="its last user closes it")
    if not app.runner.dry:
        say(f"volume {name} is closed")
    return 0
