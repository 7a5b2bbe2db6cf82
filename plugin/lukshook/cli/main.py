"""The command line: what to do, for which volume, and how its outcome is reported."""

from __future__ import annotations

import errno
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from lukshook.cli.paths import Places, configs, hidden, places
from lukshook.config import Configuration, Volume, load
from lukshook.errors import BadConfiguration, Denied, LukshookError, NotSafe, Unavailable, UnknownVolume, Usage
from lukshook.keys import key_sources
from lukshook.options.names import is_name
from lukshook.system import caller_limits, core_dumps, documentation, libc, ownership, signals, streams, swap
from lukshook.system.command import DryRunRunner, SystemRunner
from lukshook.system.secret import Secret
from lukshook.system.text import one_line
from lukshook.version import VERSION
from lukshook.volume import records
from lukshook.volume.context import Site

if TYPE_CHECKING:
    from lukshook.notify.notices import Notices

#: Every command and the module it lives in, in the order of `--help`. Imported when it is called.
COMMANDS = {
    "init": "init",
    "create": "volume",
    "before-backup": "hooks",
    "after-backup": "hooks",
    "run": "hooks",
    "open": "volume",
    "close": "volume",
    "status": "status",
    "history": "history",
    "verify": "verify",
    "versions": "versions",
    "drill": "drill",
    "resize": "resize",
    "compact": "resize",
    "trust": "header",
    "key": "key",
    "sheet": "sheet",
    "header": "header",
    "copy": "copy",
    "heal": "copy",
    "check": "check",
    "notify": "notify",
    "config": "config",
    "hooks": "hooks",
}


#: What other tools call our commands.
_OTHER_WORDS = {
    "mount": "open",
    "unlock": "open",
    "umount": "close",
    "unmount": "close",
    "lock": "close",
    "list": "status",
    "ls": "status",
    "info": "status",
    "format": "create",
    "backup": "run",
    "exec": "run",
    "grow": "resize",
    "shrink": "resize",
    "fsck": "verify",
}


class Summaries(click.Group):
    """A group whose help shows the whole first sentence of each command."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands; click cuts their first sentences at the width of one line."""
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, command.get_short_help_str(_LONG)) for name, command in commands if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


#: More than any first sentence has.
_LONG = 400


class Commands(Summaries):
    """The group of all commands; a hook imports only what it needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in our order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and take the command out of it."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"lukshook.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_") + "_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Say which command may have been meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            meant = _meant(args)
            if meant:
                raise click.UsageError(f"{error.message} Did you mean '{meant}'?", ctx) from error
            raise


def _meant(args: list[str]) -> str:
    """What was probably meant by words that begin with no command, or ""."""
    import difflib  # noqa: PLC0415

    if args[0] == "help":
        return " ".join(("lukshook", *(word for word in args[1:2] if word in COMMANDS), "--help"))
    if args[0] in _OTHER_WORDS:
        return _OTHER_WORDS[args[0]]
    if args[1:2] and args[1] in COMMANDS:
        return f"{args[1]} {args[0]}"
    return next(iter(difflib.get_close_matches(args[0], COMMANDS, 1)), "")


#: What to do where no volume is configured.
FIRST_STEPS = (
    "lukshook init asks and writes one; by hand: docs/configuration.md has a short example, then lukshook create NAME"
)


def runner(*, dry_run: bool, verbose: bool) -> DryRunRunner | SystemRunner:
    """Who carries out commands, as the options say."""
    tell = (trace,) if verbose else ()
    return DryRunRunner(click.echo, *tell) if dry_run else SystemRunner(*tell)


class App:
    """What the options of `lukshook` itself say; handed to every command."""

    def __init__(self, config: Path | None, *, dry_run: bool, verbose: bool) -> None:
        self._places = places(os.environ, os.geteuid(), config)
        self.runner = runner(dry_run=dry_run, verbose=verbose)
        self.given_config = config
        self.verbose = verbose
        if not dry_run:
            records.adopt(self.places.former, self.places.run)

    @cached_property
    def places(self) -> Places:
        """Our folders, which no other user can replace. Raises `Unavailable`."""
        return safe(self._places)

    @cached_property
    def configuration(self) -> Configuration:
        """The configuration, read when it is needed."""
        found = self._places
        if not os.path.lexists(found.config):
            where = list(configs(os.environ, os.geteuid(), self.given_config))
            for file in filter(hidden, where):
                raise BadConfiguration(
                    f"this user may not see whether there is a configuration at {file}",
                    hint="if it is root's: run lukshook as root, such as with sudo",
                )
            raise BadConfiguration(f"there is no configuration at {' or '.join(map(str, where))}", hint=FIRST_STEPS)
        return load(found.config, found.mounts)

    def configured(self, name: str) -> Volume:
        """The volume of that name; whether its store answers is found out when it is opened or closed."""
        try:
            return self.configuration.volume(name)
        except UnknownVolume as error:
            error.hint = _swapped(name, self.configuration.tables) or error.hint
            raise

    def volume(self, name: str) -> Volume:
        """The volume of that name, whose store has answered. Raises `Unavailable`."""
        return self.answering(self.configured(name))

    def answering(self, volume: Volume) -> Volume:
        """The same, once its store has answered. Raises `Unavailable`."""
        volume.image.probe(self.runner)
        return volume

    def site(self, **options: Any) -> Site:
        """Where and how we work."""
        own = {"metrics": self.configuration.metrics, "notices": self.notices}
        return self.bare_site(**{**own, **options})

    def bare_site(self, **options: Any) -> Site:
        """The same, where there may be no configuration yet."""
        places = self.places
        own = {"mounts": places.mounts, "agent": os.environ.get("SSH_AUTH_SOCK", "")}
        return Site(*(places.run, places.state, self.runner, self.ask, warn), **{**own, **options})

    @property
    def notices(self) -> Notices | None:
        """Whom to tell of backups, None for nobody."""
        if not self.configuration.notify:
            return None
        from lukshook.notify.notices import Notices  # noqa: PLC0415 - only where a backup is to be reported

        return Notices(self.configuration.notify, os.environ)

    def ask(self, volume: Volume) -> Secret:
        """The key of *volume* from its sources."""
        return ask(volume, volume.name, self.places.run)


def _swapped(name: str, volumes: Collection[str]) -> str:
    """How the command is written, if another of its words is a volume and *name* is none; else ""."""
    context = click.get_current_context(silent=True)
    words = context.params.values() if context else ()
    meant = next((word for word in words if isinstance(word, str) and word in volumes), "")
    return f"the volume comes first: {context.command_path} {meant} {shlex.quote(name)}" if context and meant else ""


def ask(volume: Volume, shown: str, run_folder: Path) -> Secret:
    """The key of *volume* from its sources; a prompt names it *shown*."""
    swap.warn_once(run_folder, warn)
    return key_sources.obtain(volume.key, key_sources.Asking(os.environ, shown, warn))


def safe(found: Places) -> Places:
    """*found*, once its folders are judged: what is in them is believed. Raises `Unavailable`."""
    for folder in (found.run, found.state):
        ownership.check_safe(folder)
    return found


#: What to do where the caller's working folder is of no use.
ELSEWHERE = "start the command in a folder that exists: cd /"


def working_folder() -> Path:
    """The caller's. Raises `Unavailable` if it was removed."""
    try:
        return Path.cwd()
    except OSError as error:
        raise Unavailable("the current working directory no longer exists", hint=ELSEWHERE) from error


def absolute(path: Path) -> Path:
    """*path* below the working folder, if it is relative. Raises `Unavailable`."""
    return path if path.is_absolute() else working_folder() / path


def answering(app: App, file: Path) -> Path:
    """A file that was named, whole, once its store has answered. Raises `Unavailable`.

    click must not look at it: its option has `type=Path`, because click.Path asks the store, which may hang.
    """
    from lukshook.store import liveness  # noqa: PLC0415

    whole = absolute(file)
    liveness.probe(whole, app.runner)
    return whole


def tell(line: str) -> None:
    """A line on standard error. Names of files, processes and the like in it cannot end it, nor reach the terminal."""
    click.echo(one_line(line), err=True)


def say(line: str) -> None:
    """A line on standard output, as `tell` writes one."""
    click.echo(one_line(line))


def warn(message: str) -> None:
    """A warning. borgmatic shows lines that begin so as warnings, and every other line as an error."""
    tell(f"warning: {documentation.located(message)}")


def report(error: LukshookError) -> None:
    """A known error: one line and a hint."""
    tell(f"lukshook: {error.message}")
    if error.hint:
        tell(f"  hint: {documentation.located(error.hint)}")


def guarded(work: Callable[[], int]) -> int:
    """Exit status of *work*: known errors reported in one line, signals as a shell would have them."""
    return outcome(work)[0]


def outcome(work: Callable[[], int]) -> tuple[int, str]:
    """Exit status of *work*, and why it failed, "" where it did not or only its status says so."""
    try:
        return work(), ""
    except LukshookError as error:
        known = error
    except BrokenPipeError:  # `lukshook status | head`
        return NotSafe.exit_code, "the reader of standard output has gone"
    except (OSError, UnicodeError) as error:
        known = _of_system(error) if isinstance(error, OSError) else _of_letters(error)
    except signals.Interrupted as signal:
        tell(f"lukshook: {signal}; nothing was left open")
        return 128 + signal.signum, str(signal)
    report(known)
    return known.exit_code, known.message


#: What the kernel says of a path that leads nowhere; all else is a store that fails, until the contrary is known.
_PATHS = {errno.ENOENT: Unavailable, errno.ENOTDIR: Unavailable, errno.EISDIR: Unavailable}
_NAMES = {errno.ENAMETOOLONG: BadConfiguration, errno.ELOOP: BadConfiguration}


def _of_letters(error: UnicodeError) -> LukshookError:
    """A name with letters that this locale's encoding has not."""
    return BadConfiguration(
        f"a name cannot be written in this locale: {error}", hint="use a UTF-8 locale, such as LC_ALL=C.UTF-8"
    )


def _of_system(error: OSError) -> LukshookError:
    """What the kernel said, where it was not expected."""
    where = f"{error.filename}: " if error.filename else ""
    kinds: dict[int, type[LukshookError]] = {**_PATHS, **_NAMES, errno.EACCES: Denied, errno.EPERM: Denied}
    kind = kinds.get(error.errno or 0, NotSafe)
    return kind(f"{where}{error.strerror or error}", hint="see docs/troubleshooting.md; lukshook -v shows the step")


def harden() -> None:
    """No core dumps and no looking into our memory: there will be a key in it (core(5), prctl(2))."""
    core_dumps.forbid()
    libc.forbid_dumps()


def trace(line: str) -> None:
    """A step, for -v."""
    tell(line)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Configuration file instead of /etc/lukshook/config.toml or ~/.config/lukshook/config.toml.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show each step on stderr.")
@click.option("--dry-run", is_flag=True, help="Show the commands that would change something; change nothing.")
@click.version_option(VERSION, prog_name="lukshook")
@click.pass_context
def group(ctx: click.Context, config: Path | None, verbose: bool, dry_run: bool) -> None:
    """Encrypted backup images behind any backup tool.

    lukshook opens a LUKS image before a backup tool runs and closes it after. The image may be stored at a place
    you do not trust: it is checked before your key is read, and everything in it is encrypted.

    \b
    New here?         lukshook init
    In a backup job:  lukshook run NAME -- rsync -a /home /mnt/backupspace/data/
    For your tool:    lukshook hooks borgmatic NAME
    """
    ctx.obj = App(absolute(config) if config else None, dry_run=dry_run, verbose=verbose)


def lukshook() -> None:
    """Run the command line; exit statuses are those of docs/exit-codes.md."""
    caller_limits.take()
    streams.prepare()
    signals.install()
    harden()
    exit_with(lambda: group.main(standalone_mode=False, prog_name="lukshook"))


def exit_with(command: Callable[[], int | None]) -> NoReturn:
    """End the process with the status of *command*, which click runs."""
    try:
        status = guarded(lambda: command() or 0)
    except click.UsageError as error:
        status = _misused(error)
    except click.exceptions.Abort:
        status = 130
    except click.exceptions.Exit as leave:
        status = leave.exit_code
    except SystemExit as ended:  # click: 1 where the reader of standard output has gone, 0 after a completion
        status = NotSafe.exit_code if ended.code else 0
    sys.exit(status)


def _misused(error: click.UsageError) -> int:
    """Tell how the command is used, or, where nothing was said at all, show its help."""
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # since click 8.2
        error.show()
        return Usage.exit_code
    command = error.ctx.command_path if error.ctx else "lukshook"
    report(Usage(error.format_message().rstrip("."), hint=_lines_for_a_tool(error) or f"{command} --help"))
    return Usage.exit_code


def _lines_for_a_tool(error: click.UsageError) -> str:
    """What prints the lines for a backup tool, where one word too many is the name of one; else ""."""
    from lukshook import hosts  # noqa: PLC0415

    if "unexpected extra argument" not in error.message:
        return ""
    with suppress(Unavailable):
        tool = next((word for word in sys.argv[1:] if word in hosts.hosts()), "")
        return f"the lines for a backup tool: lukshook hooks {tool} NAME" if tool else ""
    return ""


pass_app = click.make_pass_decorator(App)


def complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The configured volumes that begin so; none where the configuration cannot be read."""
    given = ctx.find_root().params.get("config")
    try:
        names = load(places(os.environ, os.geteuid(), given).config).tables
    except LukshookError:
        return []
    return [name for name in names if name.startswith(incomplete) and is_name(name)]


name_argument = click.argument("name", metavar="NAME", shell_complete=complete_name)
names_argument = click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_name)
