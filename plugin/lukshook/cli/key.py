"""Keys: new, test, add, remove, rotate, rekey; with shares.py, split and combine."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click
from attrs import evolve

from lukshook.cli import shares
from lukshook.cli.logged import logged
from lukshook.cli.main import App, Summaries, guarded, name_argument, pass_app, say
from lukshook.cli.sheet import close_to_others, print_sheet
from lukshook.config import Volume
from lukshook.errors import Exists, Usage
from lukshook.keys import key_sources
from lukshook.luks.header import slots_in_words
from lukshook.report.sheet import NOT_YET, Sheet
from lukshook.volume import key_script, key_slots, remote
from lukshook.volume.key_slots import Rotated

if TYPE_CHECKING:
    from lukshook.volume.rekey import Rekeyed

source_option = click.option("--key", "source", metavar="SOURCE", help="A key source, such as file:/root/second.key.")


@click.group("key", cls=Summaries)
def key_command() -> None:
    """Keys: new, test, add, remove, rotate, rekey, split, combine. lukshook.toml(5) lists the sources."""


key_command.add_command(shares.split_command)
key_command.add_command(shares.combine_command)


@key_command.command("new")
@click.argument("name", metavar="[NAME]", required=False)
@source_option
@click.option("--qr", is_flag=True, help="Show the key as a QR picture too.")
@click.option("--show-key", is_flag=True, help="Print the key on the sheet even if stdout is not a terminal.")
@pass_app
def new_command(app: App, name: str | None, source: str | None, qr: bool, show_key: bool) -> int:
    """Make a new key: 32 random bytes, in base64.

    With NAME, the key is stored in the volume's key source, and the recovery sheet is printed. With --key, it is stored
    in that source. With neither, it is printed, for a password manager:

    \b
      lukshook key new | pass insert --multiline backup/offsite
    """
    return guarded(lambda: _new(app, name, source, qr=qr, show_key=show_key))


def _new(app: App, name: str | None, source: str | None, *, qr: bool, show_key: bool) -> int:
    volume = app.volume(name) if name else None
    if app.runner.dry:
        return _would(app, [key_sources.making(source or (_place(app, volume) if volume else ""))])
    key = key_slots.new_key()
    try:
        text = key.text().reveal().decode()
        place = source or (_place(app, volume) if volume else "")
        if place:
            shares.keep(place, text)
        if show_key or not place:
            close_to_others()
        if volume:
            print_sheet(_sheet(app, volume, place), key if show_key or sys.stdout.isatty() else None)
        else:
            say(f"stored in {place}" if place else text)
        if qr:
            click.echo(_picture(text), nl=False)
    finally:
        key.wipe()
    return 0


def _picture(text: str) -> str:
    from lukshook.cli import qr  # noqa: PLC0415

    return qr.picture(text)


def _place(app: App, volume: Volume) -> str:
    if remote.is_there(volume, app.site()):
        raise Exists(
            f"volume {volume.name} already has an image, and a new key would not open it",
            hint=f"to replace the key: lukshook key rotate {volume.name}",
        )
    return volume.key[0]


def _sheet(app: App, volume: Volume, place: str) -> Sheet:
    return Sheet(evolve(volume, key=(place, *volume.key)), app.site().state(volume).header_backup, NOT_YET)


@key_command.command("test")
@name_argument
@source_option
@pass_app
def test_command(app: App, name: str, source: str | None) -> int:
    """Show which key slot of volume NAME its key opens; the volume stays closed and nothing is changed."""

    def work() -> int:
        volume = _volume(app, name, source)
        slots = key_slots.test(volume, app.site())
        say(f"the key from {_names(volume)} opens {slots_in_words(slots)} of volume {name}")
        return 0

    os.chdir("/")
    return guarded(work)


@key_command.command("add")
@name_argument
@click.option("--key", "source", metavar="SOURCE", required=True, help="Where the second key is, or where to store it.")
@pass_app
def add_command(app: App, name: str, source: str) -> int:
    """Add a second key to volume NAME, for another person or for emergencies.

    The key is read from SOURCE. If SOURCE has no key and can store one, a new key is stored there.
    """

    def work() -> int:
        volume = app.volume(name)
        key_sources.parse(source)
        if app.runner.dry:
            return _would(app, key_script.add(volume, app.site(), source))
        slots = key_slots.add(volume, app.site(), source)
        say(f"the key from {key_sources.name_of(source)} opens {slots_in_words(slots)} of volume {name}")
        return 0

    os.chdir("/")
    return logged(app, name, work)


@key_command.command("remove")
@name_argument
@source_option
@click.option("--slot", type=click.IntRange(0, 31), metavar="N", help="The key slot, if its key is lost.")
@pass_app
def remove_command(app: App, name: str, source: str | None, slot: int | None) -> int:
    """Revoke a key of volume NAME; never the one named in the configuration.

    A person who has the removed key and an old copy of the header can still open the image.
    """

    def work() -> int:
        volume = app.volume(name)
        if (source is None) == (slot is None):
            raise Usage("specify the key to remove", hint="--key SOURCE, or --slot N")
        if app.runner.dry:
            return _would(app, key_script.remove(volume, app.site(), source=source or "", slot=slot))
        gone = key_slots.remove(volume, app.site(), source=source or "", slot=slot)
        told = f"{slots_in_words(gone)} of volume {name} {_are(gone)} empty"
        say(f"{told}; a copy of the old header still opens with that key")
        return 0

    os.chdir("/")
    return logged(app, name, work)


@key_command.command("rotate")
@name_argument
@click.option("--key", "source", metavar="SOURCE", help="Where the new key is, or where to store it.")
@pass_app
def rotate_command(app: App, name: str, source: str | None) -> int:
    """Replace the key of volume NAME with a new one.

    Without --key, the new key is stored in the volume's own key source. With --key, both keys open the volume until
    you list SOURCE first in the configuration and run the command again. After an interruption, run it again.
    """

    def work() -> int:
        volume = app.volume(name)
        if source:
            key_sources.parse(source)
        if app.runner.dry:
            new, waits = source or key_slots.staged(volume), source not in (None, volume.key[0])
            return _would(app, key_script.rotate(volume, app.site(), new, waits=waits))
        for line in _rotated(name, key_slots.rotate(volume, app.site(), source or "")):
            say(line)
        return 0

    os.chdir("/")
    return logged(app, name, work)


def _rotated(name: str, done: Rotated) -> list[str]:
    if done.waiting:
        return [
            f"the new key opens {slots_in_words(done.added)} of volume {name}, and the old one still does",
            f'  now list it first in the configuration (key = "{done.waiting}") and run this command again',
        ]
    lines = [f"volume {name} has a new key" + (f", which opens {slots_in_words(done.added)}" if done.added else "")]
    if done.removed:
        told = f"  the old one's {slots_in_words(done.removed)} {_are(done.removed)} empty"
        lines.append(f"{told}; a copy of the old header still opens with it")
    return [
        *lines,
        f"  print a new recovery sheet: lukshook sheet {name} --show-key; the key on the old one no longer works",
        f"  renew the header backup outside this machine: lukshook header backup {name} --to FILE",
    ]


@key_command.command("rekey")
@name_argument
@click.option("--keep-key", is_flag=True, help="Replace only the volume key; the key stays as it is.")
@click.option(
    "--drop-other-keys", is_flag=True, help="Go on even if other keys open the volume. Afterwards, they open nothing."
)
@pass_app
def rekey_command(app: App, name: str, keep_key: bool, drop_other_keys: bool) -> int:
    """Replace the key of volume NAME, and its volume key, which encrypts the data; the old ones then open nothing.

    This encrypts all data of the closed volume again, in place, which takes hours for a large one. Use it if somebody
    may have a key and a copy of the image. Ctrl-C stops it, and after any interruption the same command continues.
    Until it is complete, the volume cannot be opened.

    To have a recovery sheet all the time, run `lukshook key rotate` first, print the sheet, then use --keep-key.
    """

    def work() -> int:
        volume = app.volume(name)
        if app.runner.dry:
            return _would(app, key_script.rekey(volume, app.site(), keep_key=keep_key))
        for line in _rekeyed(name, _rekey(app, volume, keep_key=keep_key, drop_other_keys=drop_other_keys)):
            say(line)
        return 0

    os.chdir("/")
    return logged(app, name, work)


def _rekey(app: App, volume: Volume, *, keep_key: bool, drop_other_keys: bool) -> Rekeyed:
    from lukshook.cli.verify import verify_whole  # noqa: PLC0415 - only this command
    from lukshook.cli.volume import progress_bar  # noqa: PLC0415
    from lukshook.volume import rekey  # noqa: PLC0415

    def verify() -> None:
        if app.site().state(volume).ledger.is_dir():
            verify_whole(app, volume.name)

    asked = rekey.Asked(keep_key, drop_other_keys, verify, progress_bar(f"Encrypting {volume.name} again"))
    return rekey.rekey(volume, app.site(), asked)


def _rekeyed(name: str, done: Rekeyed) -> list[str]:
    return [
        f"volume {name} has a new volume key; its key opens {slots_in_words(done.slots)}, older ones open nothing",
        f"  print a new recovery sheet: lukshook sheet {name} --show-key",
        "  destroy old sheets and header backups, unless you want to open older snapshots and copies of the image",
        f"  add other keys again with lukshook key add {name}; the next lukshook copy sends everything",
    ]


def _would(app: App, script: list[str]) -> int:
    for line in script:
        app.runner.note(line)
    return 0


def _volume(app: App, name: str, source: str | None) -> Volume:
    volume = app.volume(name)
    return evolve(volume, key=(source,)) if source else volume


def _names(volume: Volume) -> str:
    return ", ".join(map(key_sources.name_of, volume.key))


def _are(slots: tuple[int, ...]) -> str:
    return "is" if len(slots) == 1 else "are"
