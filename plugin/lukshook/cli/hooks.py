"""The hooks as commands: before-backup, after-backup, run; and `hooks`, which prints a host's lines."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from lukshook import clock, command, interrupt, manager, session, state, users
from lukshook.cli import App, guarded, name_argument, pass_app, report
from lukshook.cli.logged import logged
from lukshook.config import Volume
from lukshook.errors import SOFT_EXIT_CODE, Unavailable, Usage
from lukshook.journal import User
from lukshook.plugin import OpenAndClose
from lukshook.site import Site


@click.command("before-backup")
@name_argument
@click.option(
    "--soft",
    is_flag=True,
    help="Exit with 75 instead of 69 while the volume is not available: borgmatic skips.",
)
@pass_app
def before_backup_command(app: App, name: str, soft: bool) -> int:
    """The hook: open volume NAME, mount and prove it.

    Says nothing when all is well. When it fails, nothing is open and the backup must not run. May be called twice.
    """
    return _in_root(app, name, lambda: _before(app, app.configured(name), users.host(), soft=soft))


def _before(app: App, volume: Volume, user: User, *, soft: bool) -> int:
    nothing_open = not session.may_be_open(volume, app.site())
    try:
        manager.before(OpenAndClose(app.site(), user), volume)
    except Unavailable as error:
        if not (soft or volume.soft) or not nothing_open or not _may_skip(app, volume):
            raise
        report(error)
        return SOFT_EXIT_CODE
    return 0


def _may_skip(app: App, volume: Volume) -> bool:
    """A quiet skip is for a store that is away now and then: nothing is open, and the last good backup is not old."""
    if session.may_be_open(volume, app.site()):
        return False
    last = state.load(app.places.state, volume.name).last_success
    passed = None if last is None else clock.age(last)
    return passed is not None and passed < volume.stale_after


@click.command("after-backup")
@name_argument
@click.option("--failed", is_flag=True, help="The backup failed; plugins and the status are told so.")
@click.option(
    "--kill-holders",
    is_flag=True,
    help="End the processes that still use the volume when waiting did not help.",
)
@pass_app
def after_backup_command(app: App, name: str, failed: bool, kill_holders: bool) -> int:
    """The hook: flush, unmount and close volume NAME.

    Exits with 0 only when all that was written is on the store. May be called any number of times, also when nothing
    is open.
    """
    interrupt.ignore()
    site = partial(app.site, kill_holders=kill_holders)
    return _in_root(app, name, lambda: _after(app.configured(name), users.host(), site(), failed=failed))


def _after(volume: Volume, user: User, site: Site, *, failed: bool) -> int:
    manager.after(OpenAndClose(site, user), volume, failed=failed)
    return 0


@click.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@name_argument
@click.argument("argv", nargs=-1, metavar="-- CMD [ARG]...", type=click.UNPROCESSED)
@click.option("--soft", is_flag=True, help="Exit with 75 instead of 69 while the volume is not available.")
@pass_app
def run_command(app: App, name: str, argv: tuple[str, ...], soft: bool) -> int:
    """Open volume NAME, run CMD, close the volume; the exit status is CMD's.

    For tools without hooks, and for those whose hooks do not cover every job:

    \b
      lukshook run offsite -- rsync -aAXH --delete /home/ /mnt/backupspace/data/home/
      lukshook run offsite -- rsnapshot alpha

    CMD runs in the caller's folder. Where closing fails, that failure is the exit status, whatever CMD said.
    """
    return logged(app, name, lambda: _run(app, name, argv, soft=soft))


def _run(app: App, name: str, argv: tuple[str, ...], *, soft: bool) -> int:
    if argv[:1] == ("--soft",):
        soft, argv = True, argv[1:]
    if argv[:1] == ("--",):
        argv = argv[1:]
    elif argv and argv[0].startswith("-"):
        raise Usage(
            f"run has no option {argv[0]}", hint=f"lukshook run {name} -- {argv[0]} ... starts a command so named"
        )
    if not argv:
        raise Usage("run needs a command", hint=f"lukshook run {name} -- rsync -a /home /mnt/backupspace/data/")
    folder = Path.cwd()
    os.chdir("/")
    volume, user = app.configured(name), users.ourselves(Path(argv[0]).name)
    status = _before(app, volume, user, soft=soft)
    if status:
        return status
    status = 1
    try:
        status = _command(app, volume, argv, folder)
    finally:
        interrupt.ignore()
        _after(volume, user, app.site(), failed=status != 0)
    return status


def _command(app: App, volume: Volume, argv: tuple[str, ...], folder: Path) -> int:
    if app.runner.dry:
        app.runner.note(shlex.join(argv))
        return 0
    with session.held(volume, app.site()):
        return command.run_foreground(argv, folder, os.environ)


def _in_root(app: App, name: str, work: Callable[[], int]) -> int:
    """Work in `/`, so that our own working folder never keeps a volume busy."""
    os.chdir("/")
    return logged(app, name, work)


@click.command("hooks")
@click.argument("host", metavar="HOST")
@name_argument
@pass_app
def hooks_command(app: App, host: str, name: str) -> int:
    """Print the lines for the configuration of a backup tool.

    HOST is borgmatic, rsnapshot, systemd, cron and so on; a wrong one lists all.
    """
    return guarded(lambda: _print_lines(app, host, name))


def _print_lines(app: App, host: str, name: str) -> int:
    import shutil  # noqa: PLC0415

    from lukshook import hostlines  # noqa: PLC0415

    volume = app.configured(name)
    values = hostlines.values(
        volume.name,
        command=str(Path(shutil.which(sys.argv[0]) or sys.argv[0]).absolute()),
        image=os.fspath(volume.image.image),
        mountpoint=os.fspath(volume.mountpoint),
        config=os.fspath(app.given_config) if app.given_config else None,
    )
    click.echo(hostlines.lines(host, values), nl=False)
    return 0
