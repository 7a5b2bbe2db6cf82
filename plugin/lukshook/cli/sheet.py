"""The recovery sheet: `sheet`, and how the commands that make a key print one."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from pathlib import Path

import click
from attrs import evolve

from lukshook.cli.main import App, absolute, answering, guarded, name_argument, pass_app, say, warn
from lukshook.config import Volume
from lukshook.errors import Denied, Exists, Unavailable, Usage
from lukshook.luks import cryptsetup
from lukshook.report import page, sheet
from lukshook.report.sheet import Sheet
from lukshook.store import liveness
from lukshook.system import files, ownership
from lukshook.system.secret import Secret
from lukshook.system.text import fault_of_path


@click.command("sheet")
@name_argument
@click.option("--show-key", is_flag=True, help="Print the key on the sheet.")
@click.option(
    "--output",
    type=Path,
    metavar="FILE",
    help="Write a page with the key and its QR code to this new file: .pdf, .svg or .txt.",
)
@pass_app
def sheet_command(app: App, name: str, show_key: bool, output: Path | None) -> int:
    """Print the recovery sheet of volume NAME again: what opens the image without lukshook.

    The store need not be there. With --show-key or --output, the key is on the sheet, if it opens the header backup:

    \b
      lukshook sheet offsite --show-key | lp
      lukshook sheet offsite --output /root/offsite.pdf
    """
    return guarded(lambda: _sheet(app, name, output, show_key=show_key))


def _sheet(app: App, name: str, output: Path | None, *, show_key: bool) -> int:
    volume = app.configured(name)
    file = absolute(output) if output else None
    os.chdir("/")
    shown = sheet.of_known(volume, app.site())
    if file:
        check_file(app, file, shown)
    if not show_key and not file:
        print_sheet(shown, None)
        return 0
    key = app.ask(volume)
    try:
        sheet.check_opens(shown, key, app.runner)
        if file:
            write_sheet(app, shown, key, file)
        if show_key:
            print_sheet(shown, key)
    finally:
        key.wipe()
    return 0


def check_file(app: App, file: Path, shown: Sheet) -> None:
    """Check all that can be refused of a sheet in *file*, before there is a key.

    Raises `Exists`, `Denied`, `Unavailable`, and `Usage` for what no page of this kind can show.
    """
    page.made(evolve(shown, key="A" * cryptsetup.TEXT_BYTES), file)
    check_place(app, file, shown.volume)


def check_place(app: App, file: Path, volume: Volume) -> None:
    """Check all that can be refused of the place of a new file with a secret. Raises what `check_file` does."""
    fault = fault_of_path(os.fspath(file))
    if fault:
        raise Usage(f"{file} is not {fault}", hint="give it another name")
    answering(app, file)
    if os.path.lexists(file):
        raise Exists(f"{file} already exists", hint="name a new file")
    try:
        faults = ownership.faults_of(file.parent, os.geteuid())
    except OSError as error:
        raise Unavailable(f"{file} cannot be written: {error.strerror}", hint="does its folder exist?") from error
    if faults:
        raise Denied(
            f"{file} would not be safe from other users there: {ownership.in_words(faults)}",
            hint=f"name another folder, or: {ownership.remedies(faults)}",
        )
    if liveness.is_on_store_of(volume.image.image, file):
        raise Denied(f"{file} would lie on the image's store, which must not have the key", hint="name another folder")


def write_sheet(app: App, shown: Sheet, key: Secret, file: Path) -> None:
    """Write the sheet with the key to *file*, and say where the key is now. Raises `Exists`, `Unavailable`."""
    if app.runner.dry:
        app.runner.note(f"# writes the recovery sheet with the key to {file}")
        return
    content = page.made(evolve(shown, key=key.text().reveal().decode()), file)
    write_new(file, content, f"lukshook sheet {shown.volume.name} --output FILE")
    say(f"the recovery sheet, with the key, is in {file}: print it, then remove it: shred -u {shlex.quote(str(file))}")


def write_new(file: Path, content: bytes, again: str) -> None:
    """Write a new file with a secret in it. *again*: what to do if that fails. Raises `Exists`, `Unavailable`."""
    try:
        private = files.write_new(file, content)
    except FileExistsError as error:
        raise Exists(f"{file} was made meanwhile by another process", hint=again) from error
    except OSError as error:
        raise Unavailable(f"the sheet {file} cannot be written: {error.strerror}", hint=again) from error
    if not private:
        warn(f"others can read {file}: its file system keeps no modes")


def print_sheet(shown: Sheet, key: Secret | None) -> None:
    """Print the sheet, with *key* on it if that is given. Raises `Denied`."""
    if key:
        close_to_others()
    click.echo(sheet.text(evolve(shown, key=key.text().reveal().decode() if key else "")))


def close_to_others() -> None:
    """A file that stdout goes to gets a key: others must not read it. Raises `Denied` where that cannot be changed."""
    found = os.fstat(sys.stdout.fileno())
    if not stat.S_ISREG(found.st_mode) or not found.st_mode & 0o077:
        return
    try:
        os.fchmod(sys.stdout.fileno(), 0o600)
    except OSError as error:
        raise Denied(
            "the file that stdout goes to can be read by others, and its mode cannot be changed",
            hint="write to a new file of your own, or print it: | lp",
        ) from error
    warn("the file that the key was written to has mode 0600 now; before, others could read it")
