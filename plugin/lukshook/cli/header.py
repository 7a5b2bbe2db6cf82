"""The header and whether it is ours: trust, and header backup, restore, verify."""

from __future__ import annotations

import os
from pathlib import Path

import click

from lukshook.cli.logged import logged
from lukshook.cli.main import App, Summaries, answering, guarded, name_argument, pass_app, say
from lukshook.luks.header import slots_in_words
from lukshook.system import clock
from lukshook.volume import header_backup
from lukshook.volume.trust import Trusted, trust


@click.command("trust")
@name_argument
@click.option("--rollback", is_flag=True, help="Accept an image that is older than at its last close here.")
@click.option("--break-lock", is_flag=True, help="Break the lock file that another host has left beside the image.")
@pass_app
def trust_command(app: App, name: str, rollback: bool, break_lock: bool) -> int:
    """Trust the image of volume NAME in its current state.

    Use this for an image that was created on another host, or whose key slots were changed there. With --rollback, use
    it for an image that was restored from an older copy. With --break-lock, use it for an image at sftp:// that a host
    had open which will never come back. The header must be valid, and your key must open it. Then lukshook records the
    header, adds a MAC with your key, backs it up, and creates a folder for backups in the volume.
    """
    return logged(app, name, lambda: _trust(app, name, rollback=rollback, break_lock=break_lock))


def _trust(app: App, name: str, *, rollback: bool, break_lock: bool) -> int:
    volume = app.volume(name)
    os.chdir("/")
    trusted = trust(volume, app.site(), rollback=rollback, break_lock=break_lock)
    if trusted is not None:
        for line in _told(name, trusted):
            say(line)
    return 0


def _told(name: str, trusted: Trusted) -> list[str]:
    slots = slots_in_words(trusted.slots)
    lines = [f"volume {name} is trusted: {trusted.kind.upper()} {trusted.uuid}, your key opens {slots}"]
    if trusted.differs:
        lines.append(f"  this is not the header that was known before: {trusted.differs}")
    if trusted.older is not None:
        when = clock.show(trusted.older)
        lines.append(f"  the image is older than at its last close here, {when}: later backups are not in it")
    if not trusted.marked:
        lines.append("  the header has no MAC with your key: a host that does not know it yet needs `lukshook trust`")
    lines.append(f"  header backup: {trusted.backup}")
    return lines


@click.group("header", cls=Summaries)
def header_command() -> None:
    """The header: backup, restore, verify. Without a header the key opens nothing."""


@header_command.command("backup")
@name_argument
@click.option("--to", type=Path, metavar="FILE", help="Write the backup to this new file.")
@pass_app
def backup_command(app: App, name: str, to: Path | None) -> int:
    """Back up volume NAME's header; lukshook does so itself after each change that it makes. Needs no key.

    A header backup is of no use without a key. Any key that was valid when it was made opens the image with it.
    """

    def work() -> int:
        file = header_backup.back_up(app.volume(name), app.site(), answering(app, to) if to else None)
        if not app.runner.dry:
            say(f"the header of volume {name} is saved in {file}")
        return 0

    return logged(app, name, work)


@header_command.command("verify")
@name_argument
@pass_app
def verify_command(app: App, name: str) -> int:
    """Verify that volume NAME's header is valid, known, complete, and equal to its backup. Needs no key."""

    def work() -> int:
        header = header_backup.verify(app.volume(name), app.site())
        slots = slots_in_words(slot.number for slot in header.slots)
        say(f"the header of volume {name} is in order ({header.type.upper()}, in use: {slots})")
        return 0

    return guarded(work)


@header_command.command("restore")
@name_argument
@click.option("--from", "source", type=Path, metavar="FILE", help="Use this header backup instead of lukshook's own.")
@pass_app
def restore_command(app: App, name: str, source: Path | None) -> int:
    """Repair a damaged header of volume NAME from its backup, or from FILE.

    lukshook writes only a header that belongs to this image and that your key opens. Then it checks the result.
    """

    def work() -> int:
        slots = header_backup.restore(app.volume(name), app.site(), answering(app, source) if source else None)
        if not app.runner.dry:
            say(f"the header of volume {name} is restored; your key opens {slots_in_words(slots)}")
        return 0

    return logged(app, name, work)
