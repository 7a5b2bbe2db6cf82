"""The header and whether it is ours: trust, and header backup, restore, verify."""

from __future__ import annotations

import os
from pathlib import Path

import click

from lukshook.cli.logged import logged
from lukshook.cli.main import App, absolute, guarded, name_argument, pass_app, say
from lukshook.luks.header import slots_in_words
from lukshook.store import liveness
from lukshook.system import clock
from lukshook.volume import header_backup
from lukshook.volume.adopt import Trusted, trust


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
    return logged(app, name, lambda: _trust(app, name, rollback=rollback))


def _trust(app: App, name: str, *, rollback: bool) -> int:
    volume = app.volume(name)
    os.chdir("/")
    trusted = trust(volume, app.site(), rollback=rollback)
    if trusted is not None:
        for line in _told(name, trusted):
            say(line)
    return 0


def _told(name: str, trusted: Trusted) -> list[str]:
    slots = slots_in_words(trusted.slots)
    lines = [f"volume {name} is trusted: {trusted.kind.upper()} {trusted.uuid}, your key opens {slots}"]
    if trusted.differs:
        lines.append(f"  it is not the header known before: {trusted.differs}")
    if trusted.older is not None:
        when = clock.show(trusted.older)
        lines.append(f"  it is older than at its last close here, {when}: what was backed up in between is not in it")
    if not trusted.marked:
        lines.append("  it has no mark of your key: a host that does not know it yet asks for `lukshook trust` too")
    lines.append(f"  header backup: {trusted.backup}")
    return lines


def _answering(app: App, file: Path | None) -> Path | None:
    """A file that was named; it may lie on a store too, so click must not look at it (type=Path)."""
    if file is None:
        return None
    liveness.probe(absolute(file), app.runner)
    return absolute(file)


@click.group("header")
def header_command() -> None:
    """The header: backup, restore, verify. Without a header the key opens nothing."""


@header_command.command("backup")
@name_argument
@click.option("--to", type=Path, metavar="FILE", help="A new file, elsewhere.")
@pass_app
def backup_command(app: App, name: str, to: Path | None) -> int:
    """Keep a copy of volume NAME's header; lukshook does so itself after each change of its own. Needs no key.

    It is of no use without a key; with an old key it opens the image for ever.
    """

    def work() -> int:
        file = header_backup.back_up(app.volume(name), app.site(), _answering(app, to))
        if not app.runner.dry:
            say(f"the header of volume {name} is kept in {file}")
        return 0

    return logged(app, name, work)


@header_command.command("verify")
@name_argument
@pass_app
def verify_command(app: App, name: str) -> int:
    """See that volume NAME's header is sane, the known one, whole, and the same as in its backup. Needs no key."""

    def work() -> int:
        header = header_backup.verify(app.volume(name), app.site())
        slots = slots_in_words(slot.number for slot in header.slots)
        say(f"the header of volume {name} is in order ({header.type.upper()}, in use: {slots})")
        return 0

    return guarded(work)


@header_command.command("restore")
@name_argument
@click.option("--from", "source", type=Path, metavar="FILE")
@pass_app
def restore_command(app: App, name: str, source: Path | None) -> int:
    """Mend a broken header of volume NAME from its backup, or from FILE.

    Only a header that belongs to this image and that your key opens is written, and it is proven to open after.
    """

    def work() -> int:
        slots = header_backup.restore(app.volume(name), app.site(), _answering(app, source))
        if not app.runner.dry:
            say(f"the header of volume {name} is back; your key opens {slots_in_words(slots)}")
        return 0

    return logged(app, name, work)
