"""Volumes by hand: create, open, close."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path

import click

from lukshook import size
from lukshook.cli.logged import logged
from lukshook.cli.main import App, absolute, answering, complete_name, guarded, name_argument, pass_app, say
from lukshook.cli.sheet import check_file, print_sheet, write_sheet
from lukshook.config import Volume
from lukshook.errors import Busy, Usage
from lukshook.keys import key_sources
from lukshook.report.sheet import Sheet
from lukshook.store.allocation import Progress
from lukshook.system import clock, signals
from lukshook.system.text import fault_of_path
from lukshook.volume import closing, copies, create, opening, overdue, users
from lukshook.volume.copies import Age
from lukshook.volume.records import Record, User


@click.command("create")
@name_argument
@click.option("--show-key", is_flag=True, help="Print the key on the recovery sheet even if stdout is not a terminal.")
@click.option(
    "--sheet",
    "file",
    type=Path,
    metavar="FILE",
    help="Write the recovery sheet, with the key and its QR code, to this new file instead: .pdf, .svg or .txt.",
)
@pass_app
def create_command(app: App, name: str, show_key: bool, file: Path | None) -> int:
    """Create volume NAME: image, key slot, file system, header backup.

    Never overwrites anything. Creates a key if the key source can store one, and prints a recovery sheet.
    """
    return logged(app, name, lambda: create_volume(app, name, file, show_key=show_key))


def create_volume(app: App, name: str, file: Path | None = None, *, show_key: bool) -> int:
    """Make the volume *name*, and print its recovery sheet, or write it to *file*.

    What is printed has the key only on a terminal, or with *show_key*.
    """
    volume = app.volume(name)
    file = absolute(file) if file else None
    once = key_sources.is_read_once(volume.key[0])
    if once and (file or show_key):
        raise Usage(
            f"the key source {key_sources.name_of(volume.key[0])} is read once, and create reads it",
            hint=f"create the volume without the key on the sheet, then: lukshook sheet {name} --show-key",
        )
    os.chdir("/")
    if file:
        check_file(app, file, Sheet(volume, app.site().state(volume).header_backup, uuid="0" * 36))
    made = create.create(volume, app.site(), progress_bar(f"Writing {Path(volume.image.shown).name}"))
    if made is None:
        if file:
            app.runner.note(f"# writes the recovery sheet with the key to {file}")
        return 0
    shown = Sheet(volume, made.header_backup, made.uuid)
    key = app.ask(volume) if file or show_key or (sys.stdout.isatty() and not once) else None
    try:
        if file and key:
            write_sheet(app, shown, key, file)
        else:
            print_sheet(shown, key)
    finally:
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
@click.option(
    "--image",
    type=Path,
    metavar="PATH",
    help="Open another copy of the volume: a snapshot, a replica, a restored file. Always read-only.",
)
@click.option("--at", type=Path, metavar="FOLDER", help="Where to mount that copy.")
@click.option(
    "--header",
    type=Path,
    metavar="FILE",
    help="Use the header in FILE, such as the header backup, instead of that in the copy.",
)
@pass_app
def open_command(app: App, name: str, read_only: bool, image: Path | None, at: Path | None, header: Path | None) -> int:
    """Open volume NAME by hand, for example for a restore. It stays open until `lukshook close NAME`.

    With --at, a copy of the volume is opened read-only, also while the volume itself is open. Nothing that lukshook
    knows of the volume changes. `lukshook close NAME --at FOLDER` closes it.
    """
    if at is not None:
        return logged(app, name, lambda: _open_copy(app, name, image, at, header))
    if image is not None or header is not None:
        raise click.UsageError("--image and --header need --at FOLDER")

    def work() -> int:
        volume = app.configured(name)
        os.chdir("/")
        opening.open_volume(volume, users.by_hand(), app.site(), read_only=read_only)
        if not app.runner.dry:
            say(f"volume {name} is open at {volume.mountpoint}")
        return 0

    return logged(app, name, work)


def _open_copy(app: App, name: str, image: Path | None, at: Path, header: Path | None) -> int:
    volume, place = app.configured(name), place_of(at)
    _check_beside(volume, place)
    copy = volume.copy_at(place, volume.image.image if image is None else place_of(image))
    kept = copies.load_header(answering(app, header)) if header else None
    os.chdir("/")
    if header is not None and app.runner.dry:
        app.runner.note(f"# with the header in {header} in place of the copy's own:")
    age = copies.open_copy(volume, copy, users.by_hand(), app.site(), header=kept)
    if age is not None:
        say(f"a copy of volume {name} is open read-only at {copy.mountpoint}: {copy.image.image}")
        for line in lines_of(age):
            say(f"  {line}")
    return 0


def _check_beside(volume: Volume, place: Path) -> None:
    """Check that a copy at *place* does not take the mount point from the volume itself. Raises `Usage`."""
    if place.is_relative_to(volume.mountpoint):
        raise Usage(
            f"{place} is for volume {volume.name} itself: no backup could be made while a copy is open there",
            hint="name another folder, such as --at /mnt/old",
        )


def place_of(path: Path) -> Path:
    """*path* as our own files can have it. Raises `Usage`."""
    whole = Path(os.path.normpath(absolute(path)))
    fault = fault_of_path(os.fspath(whole))
    if fault:
        raise Usage(f"{whole} is not {fault}", hint="give it another name")
    return whole


def lines_of(age: Age) -> list[str]:
    """How old a copy is, in words."""
    closed = "" if age.last_close is None else f" ({clock.show(age.last_close)})"
    lines = []
    if age.last_write is not None:
        lines.append(f"last written {clock.show(age.last_write)}")
    if age.behind == 0:
        lines.append(f"as at the last close{closed}")
    elif age.behind is not None:
        amount = f"by {size.show(abs(age.behind) * age.unit)} written" if age.unit else "by its count of changes"
        lines.append(f"{'older' if age.behind > 0 else 'newer'} than at the last close{closed}, {amount}")
    return lines


@click.command("close")
@click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_name)
@click.option("--at", type=Path, metavar="FOLDER", help="Close the copy that is mounted at FOLDER instead.")
@click.option(
    "--kill-holders",
    is_flag=True,
    help="End the jobs and processes that still use the volume.",
)
@click.option(
    "--overdue",
    "forgotten",
    is_flag=True,
    help="Close every volume that is open by hand for longer than `max_open`; for a timer.",
)
@pass_app
def close_command(app: App, name: str | None, at: Path | None, kill_holders: bool, forgotten: bool) -> int:
    """Close volume NAME, opened by hand or left open by a job that was killed.

    A running backup keeps it open and closes it at its end, unless --kill-holders ends the backup.
    """
    signals.ignore()
    if forgotten:
        if at is not None or kill_holders:
            raise click.UsageError("--overdue cannot be combined with --at or --kill-holders")
        return _close_overdue(app, name)
    if name is None:
        raise click.UsageError("Missing argument 'NAME'.")
    if at is not None:
        return logged(app, name, lambda: _close_copy(app, name, at, kill_holders=kill_holders))
    return logged(app, name, lambda: _close(app, name, kill_holders=kill_holders))


def _close_overdue(app: App, name: str | None) -> int:
    """Close what people have forgotten, each of it; the exit status is that of the first that cannot be closed.

    What is wrong with one volume keeps no other one open.
    """
    os.chdir("/")
    found: list[tuple[Volume, Record]] = []
    chosen: list[str] = []

    def choose() -> int:
        tables = app.configuration.tables.items()
        limited = (one for one, options in tables if isinstance(options, dict) and "max_open" in options)
        chosen.extend([name] if name else limited)
        return 0

    def look(one: str) -> int:
        volume = app.configured(one)
        found.extend((volume, record) for record in overdue.of(volume, app.site()))
        return 0

    statuses = [guarded(choose), *(guarded(partial(look, one)) for one in chosen)]
    statuses += [logged(app, volume.name, partial(_close_forgotten, app, volume, record)) for volume, record in found]
    return next(filter(None, statuses), 0)


def _close_forgotten(app: App, volume: Volume, record: Record) -> int:
    said = overdue.words(volume, record)
    if record.volume != volume.label:
        copies.close_copy(volume, Path(record.place), app.site())
        left: tuple[User, ...] = ()
    else:
        left = closing.close_volume(volume, users.by_hand(), app.site(), backup=False)
    if app.runner.dry:
        return 0
    who = ", ".join(user.who for user in left)
    say(f"{said}: {f'it stays open for {who}, which will close it' if left else 'closed'}")
    return 0


def _close_copy(app: App, name: str, at: Path, *, kill_holders: bool) -> int:
    volume, place = app.configured(name), place_of(at)
    os.chdir("/")
    copies.close_copy(volume, place, app.site(kill_holders=kill_holders))
    if not app.runner.dry:
        say(f"the copy of volume {name} at {place} is closed")
    return 0


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
