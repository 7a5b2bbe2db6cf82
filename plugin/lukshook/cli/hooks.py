"""The hooks as commands: before-backup, after-backup, run; and `hooks`, which prints a host's lines."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import click

from lukshook.cli.logged import logged
from lukshook.cli.main import (
    ELSEWHERE,
    App,
    complete_name,
    guarded,
    name_argument,
    pass_app,
    report,
    say,
    warn,
    working_folder,
)
from lukshook.config import Volume
from lukshook.errors import SOFT_EXIT_CODE, Denied, Unavailable, Usage
from lukshook.plugins import manager
from lukshook.plugins.open_and_close import OpenAndClose
from lukshook.system import clock, command, signals
from lukshook.volume import closing, records, users
from lukshook.volume.context import Site
from lukshook.volume.records import User

_user_pid_option = click.option(
    "--user-pid",
    type=click.IntRange(min=1),
    metavar="PID",
    help="The process of the job, if it is not the calling process; $$ in a shell script.",
)


@click.command("before-backup")
@name_argument
@click.option(
    "--soft",
    is_flag=True,
    help="Exit with 75 instead of 69 while the volume is not available: borgmatic skips.",
)
@_user_pid_option
@pass_app
def before_backup_command(app: App, name: str, soft: bool, user_pid: int | None) -> int:
    """The hook: open volume NAME, mount and verify it.

    Prints nothing on success. If it fails, nothing is open and the backup must not run. May be called twice.
    """
    return _in_root(app, name, lambda: _before(app, app.configured(name), _starting(app, name, user_pid), soft=soft))


def _starting(app: App, name: str, pid: int | None) -> User:
    """The job that needs the volume from now on. Raises `Usage` where the process that was named does not run."""
    user = _user(app, name, pid)
    if pid is not None and not user.alive():
        raise Usage(
            f"no process {pid} is running, so it cannot use volume {name}", hint="--user-pid $$ in a shell script"
        )
    return user


def _user(app: App, name: str, pid: int | None) -> User:
    """The job that calls: by the name or the process it was given, else by who has started us."""
    record = records.peek(app.places.run, name)
    user = users.host(record.users if record else ()) if pid is None else users.process(pid)
    job = os.environ.get("LUKSHOOK_JOB")
    return users.named(job, user) if job else user


def _before(app: App, volume: Volume, user: User, *, soft: bool) -> int:
    nothing_open = not closing.may_be_open(volume, app.site())

    def skips(error: BaseException) -> bool:
        wanted = isinstance(error, Unavailable) and (soft or volume.soft)
        return wanted and nothing_open and _may_skip(app, volume)

    try:
        manager.before(OpenAndClose(app.site(), user), volume, skips)
    except Unavailable as error:
        if not skips(error):
            raise
        report(error)
        return SOFT_EXIT_CODE
    return 0


def _may_skip(app: App, volume: Volume) -> bool:
    """A quiet skip is for a store that is away now and then: nothing is open, and the last good backup is not old."""
    if closing.may_be_open(volume, app.site()):
        return False
    last = app.site().state(volume).known.last_success
    passed = None if last is None else clock.age(last)
    return passed is not None and passed < volume.stale_after


@click.command("after-backup")
@name_argument
@click.option("--failed", is_flag=True, help="Report to plugins and the status that the backup failed.")
@click.option(
    "--kill-holders",
    is_flag=True,
    help="End the processes that still use the volume after the waiting time.",
)
@_user_pid_option
@pass_app
def after_backup_command(app: App, name: str, failed: bool, kill_holders: bool, user_pid: int | None) -> int:
    """The hook: flush, unmount and close volume NAME.

    Exits with 0 only if all written data is on the store. May be called any number of times, also when nothing is open.
    """
    signals.ignore()
    site = partial(app.site, kill_holders=kill_holders)
    return _in_root(app, name, lambda: _after(app.configured(name), _user(app, name, user_pid), site(), failed=failed))


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

    For tools without hooks, or whose hooks do not cover every job:

    \b
      lukshook run offsite -- rsync -aAXH --delete /home/ /mnt/backupspace/data/home/
      lukshook run offsite -- rsnapshot alpha

    CMD runs in the caller's folder and inherits the caller's open files, except that of a key source fd:N. If closing
    fails, the exit status is that of the failure, whatever the status of CMD.
    """
    return logged(app, name, lambda: _run(app, name, argv, soft=soft))


def _run(app: App, name: str, argv: tuple[str, ...], *, soft: bool) -> int:
    if argv[:1] == ("--soft",):
        soft, argv = True, argv[1:]
    if argv[:1] == ("--",):
        argv = argv[1:]
    elif argv and argv[0].startswith("-"):
        raise Usage(
            f"run has no option {argv[0]}", hint=f"to run a command of that name: lukshook run {name} -- {argv[0]} ..."
        )
    if not argv:
        raise Usage("run needs a command", hint=f"lukshook run {name} -- rsync -a /home /mnt/backupspace/data/")
    folder, descriptors = _folder(), command.passed_down()
    os.chdir("/")
    volume, user = app.configured(name), users.ourselves(Path(argv[0]).name)
    passed = _passed_on(volume, descriptors)
    status = _before(app, volume, user, soft=soft)
    if status:
        return status
    ended, cause = None, None
    try:
        ended = _command(app, volume, argv, folder, passed)
    except BaseException as error:
        cause = error
        raise
    finally:
        signals.ignore()
        ours = OpenAndClose(app.site(), user)
        manager.after(ours, volume, failed=ended != 0, cause=cause, exit_status=ended)
    return ended


def _folder() -> Path:
    """The caller's working folder, in which the command will run. Raises `Unavailable`, `Denied`."""
    folder = working_folder()
    try:
        os.stat(folder / ".")
    except OSError as error:
        kind = Denied if isinstance(error, PermissionError) else Unavailable
        message = f"the current working directory {folder} cannot be entered: {error.strerror}"
        raise kind(message, hint=ELSEWHERE) from error
    return folder


def _passed_on(volume: Volume, descriptors: tuple[int, ...]) -> tuple[int, ...]:
    """What of the caller's *descriptors* the command gets: all but those the key is read from."""
    keys = [int(source.removeprefix("fd:")) for source in volume.key if source.startswith("fd:")]
    return tuple(descriptor for descriptor in descriptors if descriptor not in keys)


def _command(app: App, volume: Volume, argv: tuple[str, ...], folder: Path, passed: tuple[int, ...]) -> int:
    if app.runner.dry:
        app.runner.note(shlex.join(argv))
        return 0
    with closing.held(volume, app.site()):
        return command.run_foreground(argv, folder, os.environ, passed)


def _in_root(app: App, name: str, work: Callable[[], int]) -> int:
    """Work in `/`, so that our own working folder never keeps a volume busy."""
    os.chdir("/")
    return logged(app, name, work)


@click.command("hooks")
@click.argument("host", metavar="[TOOL", required=False)
@click.argument("name", metavar="NAME]", required=False, shell_complete=complete_name)
@click.option(
    "--tool-version",
    metavar="VERSION",
    help="The version of the backup tool, such as 1.9, instead of the one that is installed.",
)
@pass_app
def hooks_command(app: App, host: str | None, name: str | None, tool_version: str | None) -> int:
    """Print the lines for the configuration of a backup tool.

    TOOL is borgmatic, rsnapshot, systemd, cron and so on; without it, lukshook lists all of them. Where the lines
    depend on the tool's version, the installed tool is asked for it.
    """
    return guarded(lambda: print_lines(app, host, name, tool_version) if host else _list())


def _list() -> int:
    from lukshook import hosts  # noqa: PLC0415

    names = hosts.hosts()
    width = max(map(len, names))
    for host in names:
        about = hosts.about(host)
        tried = f"run with {about.tried}" if about.tried else f"NOT RUN by us: {about.not_run}"
        say(f"{host:<{width}}  {about.summary}; {tried}")
    say("lukshook hooks TOOL NAME prints the lines for volume NAME")
    return 0


def print_lines(app: App, host: str, name: str | None, tool_version: str | None) -> int:
    """Print what *host* needs for the volume *name*, in *tool_version* or the one that is installed."""
    from lukshook import hosts  # noqa: PLC0415

    _check_order(host, name)
    if name is None:
        raise Usage("the lines for which volume?", hint=f"lukshook hooks {shlex.quote(host)} NAME")
    volume = app.configured(name)
    values = {**values_of(app, volume), **(_disk_values(app, volume) if hosts.needs_disk(host) else {})}
    click.echo(hosts.lines(host, values, _version(app, host, tool_version)), nl=False)
    return 0


def values_of(app: App, volume: Volume) -> Mapping[str, str]:
    """What is filled in for *volume* in the lines of a host. Raises `Usage`."""
    import shutil  # noqa: PLC0415

    from lukshook import hosts  # noqa: PLC0415

    return hosts.values(
        volume.name,
        command=str(Path(shutil.which(sys.argv[0]) or sys.argv[0]).absolute()),
        image=os.fspath(volume.image.image),
        mountpoint=os.fspath(volume.mountpoint),
        config=_own_config(app),
        folders={name: str(Path(os.environ[name]).absolute()) for name in _FOLDERS if os.environ.get(name)},
    )


#: Variables without which a job would look into other folders than we do; LUKSHOOK_JOB is the job's own.
_FOLDERS = ("LUKSHOOK_RUN_DIR", "LUKSHOOK_STATE_DIR")


def _own_config(app: App) -> str | None:
    """The configuration, if it was named by the option or the variable: a job would look at the usual places."""
    if app.given_config:
        return os.fspath(app.given_config)
    return os.fspath(app.places.config) if os.environ.get("LUKSHOOK_CONFIG") else None


def _disk_values(app: App, volume: Volume) -> Mapping[str, str]:
    """What is filled in of the disk of *volume*. Raises `Unavailable` if it is not mounted."""
    from lukshook import hosts  # noqa: PLC0415
    from lukshook.store import disk  # noqa: PLC0415

    if volume.image.remote:
        raise Usage(
            f"the image of volume {volume.name} is on another machine",
            hint="removable-disk is for a disk of this machine; lukshook hooks lists the other lines",
        )
    volume.image.probe(app.runner)
    found = disk.of(volume.image.image)
    return hosts.disk_values(os.fspath(found.device), os.fspath(found.mountpoint))


def _check_order(host: str, name: str | None) -> None:
    """Check that the tool comes first and the volume second. Raises `Usage`."""
    from lukshook import hosts  # noqa: PLC0415

    tools, first = hosts.hosts(), shlex.quote(host)
    if host not in tools and name in (None, *tools):
        order = f"the tool comes first: lukshook hooks {name or 'TOOL'} {first}"
        raise Usage(
            f"{first} is not a backup tool with lines of its own", hint=f"{order}; lukshook hooks lists all tools"
        )


def _version(app: App, host: str, given: str | None) -> tuple[int, ...] | None:
    """The version of *host* to print the lines for: *given*, else the installed one; None for the newest."""
    from lukshook import hosts  # noqa: PLC0415

    known = hosts.versions(host)
    if known is None:
        if given is not None:
            raise Usage(f"the lines for {host} are the same for every version", hint="omit --tool-version")
        return None
    if given is not None:
        return hosts.parsed(given)
    found = hosts.installed(host, app.runner, os.environ.get("PATH", ""))
    if found is None:
        newest = f"{known.program} {hosts.shown(known.lines[0].first)}"
        warn(f"the version of {known.program} is not known: these lines are for {newest} and later (--tool-version)")
    return found
