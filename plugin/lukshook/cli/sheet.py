"""The recovery sheet: `sheet`, and how the commands that make a key print one."""

from __future__ import annotations

import os
import stat
import sys

import click
from attrs import evolve

from lukshook.cli.main import App, guarded, name_argument, pass_app, warn
from lukshook.errors import Denied
from lukshook.report import sheet
from lukshook.report.sheet import Sheet
from lukshook.system.secret import Secret


@click.command("sheet")
@name_argument
@click.option("--show-key", is_flag=True, help="Print the key on the sheet.")
@pass_app
def sheet_command(app: App, name: str, show_key: bool) -> int:
    """Print the recovery sheet of volume NAME again: what opens the image without lukshook.

    The store need not be there. With --show-key, the key is on the sheet, if it opens the header backup:

    \b
      lukshook sheet offsite --show-key | lp
    """
    return guarded(lambda: _sheet(app, name, show_key=show_key))


def _sheet(app: App, name: str, *, show_key: bool) -> int:
    volume = app.configured(name)
    os.chdir("/")
    shown = sheet.of_known(volume, app.site())
    if not show_key:
        print_sheet(shown, None)
        return 0
    key = app.ask(volume)
    try:
        sheet.check_opens(shown, key, app.runner)
        print_sheet(shown, key)
    finally:
        key.wipe()
    return 0


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
