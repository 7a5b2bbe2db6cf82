"""The first minutes: `init` asks what a volume needs, writes the configuration, and creates the volume."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from attrs import define, field, frozen

from lukshook import config, hosts
from lukshook.cli.hooks import print_lines, values_of
from lukshook.cli.logged import logged
from lukshook.cli.main import App, complete_name, guarded, pass_app, report, say, tell
from lukshook.cli.paths import new_config
from lukshook.cli.volume import create_volume
from lukshook.config import Configuration, Volume
from lukshook.errors import BadConfiguration, Exists, LukshookError, NotInstalled, Unavailable, Usage
from lukshook.layers import mount_point
from lukshook.options import written
from lukshook.options.names import LONGEST_NAME, is_name
from lukshook.report import check, proposals
from lukshook.system import documentation, files, ownership, signals
from lukshook.system.command import find_tools
from lukshook.volume import create, engine_choice, open_layers
from lukshook.volume.known_state import KnownState

_NO_HOST = "none"
#: A size that every store has room for, until one is chosen.
_SOME_SIZE = "64MiB"


@click.command("init")
@click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_name)
@click.option("--image", metavar="PATH", help="Where the image will be: a path on the store, or a URL.")
@click.option("--mountpoint", metavar="FOLDER", help="Where the volume will appear while it is open.")
@click.option("--size", metavar="SIZE", help="The size of the image, such as 500GiB.")
@click.option("--key", metavar="SOURCE", help="Where the key is, or is to be stored, such as file:/root/offsite.key.")
@click.option(
    "--host",
    "--tool",
    "host",
    metavar="TOOL",
    help="The backup tool to print lines for, or none; lukshook hooks lists them.",
)
@click.option("--old-fuse2fs", is_flag=True, help="Take a fuse2fs with known bugs.")
@click.option("--create/--no-create", "wanted", default=None, help="Create the volume or only write its configuration.")
@click.option("--yes", is_flag=True, help="Ask nothing: take what would be proposed, and create the volume.")
@pass_app
def init_command(
    app: App,
    name: str | None,
    image: str | None,
    mountpoint: str | None,
    size: str | None,
    key: str | None,
    host: str | None,
    old_fuse2fs: bool,
    wanted: bool | None,
    yes: bool,
) -> int:
    """Set up a first volume: ask for what it needs, write the configuration, create the volume.

    Proposes what fits this machine. Writes /etc/lukshook/config.toml, or for an ordinary user
    ~/.config/lukshook/config.toml, and never changes a configuration that is there: it prints the lines to add.

    \b
      lukshook init
      lukshook init offsite --image /mnt/disk/offsite.img --size 500GiB --yes
    """
    given = {"name": name, "image": image, "mountpoint": mountpoint, "size": size, "key": key, "host": host}
    return guarded(lambda: _init(app, _Answers(given, asks=not yes, old_fuse2fs=old_fuse2fs, create=wanted)))


@frozen
class _Answers:
    """What the command line says. *asks*: the rest is asked for, else what is proposed is taken."""

    given: dict[str, str | None]
    asks: bool
    old_fuse2fs: bool
    create: bool | None

    def question(self, text: str, *, proposed: bool) -> bool:
        """Yes or no; without questions, what is *proposed*."""
        if not self.asks:
            return proposed
        with signals.allowed():
            return click.confirm(text, default=proposed, err=True)

    def value(self, option: str, text: str, proposal: str, check: Callable[[str], None]) -> str:
        """The value of an option: as given, as answered, or as proposed. *check* raises what is wrong with it."""
        given = self.given[option]
        if given is None and self.asks:
            return _asked(text, proposal, check)
        value = proposal if given is None else given
        if not value and given is None:
            raise Usage(f"nothing can be proposed for the {option}", hint=f"lukshook init --{option} ...")
        check(value)
        return value


def _asked(text: str, proposal: str, check: Callable[[str], None]) -> str:
    """An answer that *check* takes; it says what is wrong with others."""
    while True:
        with signals.allowed():
            answer: str = click.prompt(text, default=proposal or None, err=True)
        try:
            check(answer)
            return answer
        except LukshookError as error:
            report(error)


def _init(app: App, answers: _Answers) -> int:
    if answers.asks and not sys.stdin.isatty():
        raise Usage(
            "init asks questions, and there is no terminal",
            hint="lukshook init NAME --image PATH --size SIZE --yes",
        )
    target = new_config(os.environ, os.geteuid(), app.given_config)
    known = _known(app)
    draft = _Draft(app, answers, target if known is None else known.source, known)
    draft.fill()
    text = draft.block()
    if known is not None:
        click.echo(text, nl=False)
        raise Exists(
            f"{known.source} already exists, and init changes nothing in it",
            hint=f"add the lines above to it, and then run: lukshook check {draft.name}",
        )
    if app.runner.dry:
        click.echo(written.whole(text), nl=False)
        return 0
    _write(target, written.whole(text))
    say(f"{target} is written")
    return _set_up(App(app.given_config, dry_run=False, verbose=app.verbose), answers, draft)


def _known(app: App) -> Configuration | None:
    """The configuration that is there, None where there is none. Raises `BadConfiguration`."""
    return app.configuration if os.path.lexists(app.places.config) else None


@define
class _Draft:
    """A volume that is being described: *values* are its options, as they will be written."""

    app: App
    answers: _Answers
    file: Path
    known: Configuration | None
    name: str = ""
    host: str = _NO_HOST
    values: dict[str, Any] = field(factory=dict)

    def fill(self) -> None:
        """Answer every question."""
        value, root = self.answers.value, os.geteuid() == 0
        home = Path(os.environ.get("HOME") or "/")
        place = Path("/mnt") if root else home / "mnt"
        self.name = value("name", "Name of the volume", "offsite", self._check_name)
        image = proposals.image(self.name, self.app.runner, Path("/srv") if root else home)
        self._ask("image", "Image, on the disk or share that you do not trust", os.fspath(image), self._check_image)
        self._ask("mountpoint", "Mount point", os.fspath(place / self.name), self._check_mountpoint)
        self._ask_size()
        self._ask("key", "Key: where it is, or where a new one is stored", f"file:{self.file.parent}/{self.name}.key")
        self._ask_old_fuse2fs()
        tools = proposals.tools(os.environ.get("PATH", ""), home)
        self.host = value("host", _which_tool(tools), tools.proposed or _NO_HOST, self._check_host)
        if self._records():
            self.values["ledger"] = True

    def _records(self) -> bool:
        """Whether what is written is recorded; else each close would read the whole image for the ledger.

        Where programs have to be installed anyway, the one that records is one more: the findings name it.
        """
        volume = self.volume()
        lacks = check.recording_lacks(volume, self.app.runner)
        return lacks is None or (isinstance(lacks, NotInstalled) and not _has_tools(volume))

    def _ask(
        self, option: str, text: str, proposal: str, further: Callable[[Volume], None] = lambda volume: None
    ) -> None:
        def fits(answer: str) -> None:
            wrong = config.refusal(option, answer)
            if wrong:
                raise BadConfiguration(wrong, hint="docs/configuration.md has examples")
            further(self.volume(**{option: answer}))

        self.values[option] = self.answers.value(option, text, proposal, fits)

    def _ask_size(self) -> None:
        volume = self.volume()
        if not (engine_choice.is_device(volume) or volume.image.is_given):
            free = proposals.image_size(volume.image.image) if volume.image.remote is None else ""
            self._ask("size", "Size of the image", free, self._check_new)

    def _ask_old_fuse2fs(self) -> None:
        """Only for a volume that fuse2fs would mount, and where it would be refused."""
        volume, runner = self.volume(), self.app.runner
        if "fuse2fs" not in engine_choice.stack_of(volume):
            return
        try:
            open_layers.spec_of(volume, "fuse2fs").check_tools(runner)
        except Unavailable as error:
            accepted = self.volume(old_fuse2fs=True)
            open_layers.spec_of(accepted, "fuse2fs").check_tools(runner)  # one that nobody can accept is no question
            self._accept_old_fuse2fs(error)

    def _accept_old_fuse2fs(self, error: Unavailable) -> None:
        text = documentation.located(f"{error.message} (docs/userspace-engine.md). Use it all the same?")
        if self.answers.old_fuse2fs or self.answers.question(text, proposed=False):
            self.values["old_fuse2fs"] = True

    def volume(self, **more: Any) -> Volume:
        """The volume as far as it is known; what is not answered yet is made up. Raises `BadConfiguration`."""
        nowhere = {"image": "/nowhere/image", "mountpoint": "/nowhere/mount", "key": "prompt", "size": _SOME_SIZE}
        values = {**nowhere, **self.values, **more}
        return self._with_known(config.parse({"volumes": {self.name: values}}, self.file, self.app.places.mounts))

    def _with_known(self, found: Configuration) -> Volume:
        """The only volume in *found*, once it is known that it shares nothing with another."""
        config.check_apart({**(self.known.volumes if self.known else {}), **found.volumes}, self.file)
        return found.volumes[self.name]

    def block(self) -> str:
        """The lines of the volume."""
        left_out = {} if "ledger" in self.values else {"ledger": True}
        return written.block(self.name, self.values, left_out)

    def _check_name(self, name: str) -> None:
        if not is_name(name):
            raise BadConfiguration(
                f"a volume's name has up to {LONGEST_NAME} letters, digits, dots, dashes and underscores",
                hint="such as offsite",
            )
        if self.known is not None and name in self.known.volumes:
            raise Exists(f"volume {name} is configured already, in {self.file}", hint=f"lukshook check {name}")
        create.check_unknown(name, KnownState(self.app.places.state, name))

    def _check_image(self, volume: Volume) -> None:
        volume.image.probe(self.app.runner)
        self._check_new(volume)

    def _check_new(self, volume: Volume) -> None:
        if volume.image.remote is None:  # `create` asks another machine
            create.check(volume, self.app.bare_site())

    def _check_mountpoint(self, volume: Volume) -> None:
        mount_point.check_new(volume.mount)

    def _check_host(self, host: str) -> None:
        if host != _NO_HOST:
            hosts.template(host)
            values_of(self.app, self.volume())


def _has_tools(volume: Volume) -> bool:
    try:
        find_tools(engine_choice.tools_of(volume))
    except NotInstalled:
        return False
    return True


def _which_tool(tools: proposals.Tools) -> str:
    """The question for the backup tool: where nothing is proposed, it names those to choose from."""
    here = () if tools.proposed else tools.configured or tools.installed
    return "Backup tool to print lines for, or none" + (f" (here: {', '.join(here)})" if here else "")


def _write(target: Path, text: str) -> None:
    """Write the configuration, whole or not at all, and never over another one. Raises `Exists`, `Unavailable`."""
    try:
        if target.parent.is_dir():
            ownership.check_safe(target.parent)
        else:
            ownership.private_folder(target.parent)
        files.write_whole(target, text.encode(), durable=True, replace=False)
    except FileExistsError as error:
        raise Exists(f"{target} already exists", hint="it was not changed; run the command again") from error
    except UnicodeEncodeError as error:
        raise BadConfiguration("TOML is written in UTF-8, and a name is not", hint="use another name") from error
    except OSError as error:
        raise Unavailable(
            f"{target} cannot be written: {error.strerror}", hint="is its folder writable? name another: lukshook -c"
        ) from error


def _set_up(app: App, answers: _Answers, draft: _Draft) -> int:
    """Check the machine, create the volume, and say how to go on."""
    volume = app.configured(draft.name)
    status = _checked(app, volume)
    if status:
        tell(f"after you repair that, run: {' '.join(_command(app))} create {volume.name}")
        for line in (*_next(app, volume), *_later(app, draft)):
            say(line)
        return status
    if answers.create if answers.create is not None else answers.question("Create the volume now?", proposed=True):
        status = logged(app, volume.name, lambda: create_volume(app, volume.name, show_key=False))
        if status:
            tell(f"the configuration stays; after you repair that, run: {' '.join(_command(app))} create {volume.name}")
            return status
    else:
        say(f"to create it: {' '.join(_command(app))} create {volume.name}")
    for line in _next(app, volume):
        say(line)
    if draft.host != _NO_HOST:
        say(f"Lines for {draft.host}:")
        say("")
        return print_lines(app, draft.host, volume.name, None)
    return 0


def _checked(app: App, volume: Volume) -> int:
    """The exit status of the first finding that would stop `create`."""
    status = 0
    for finding in check.before_create(volume, app.site(), dict(os.environ)):
        say(f"  {finding.level:<8} {finding.text}")
        if finding.hint:
            say(f"           hint: {finding.hint}")
        status = status or finding.exit_code
    return status


def _command(app: App) -> tuple[str, ...]:
    """How lukshook is called for this configuration."""
    return ("lukshook", "-c", str(app.given_config)) if app.given_config else ("lukshook",)


def _later(app: App, draft: _Draft) -> Iterator[str]:
    """Where the lines for the backup tool are, once the volume is there."""
    if draft.host != _NO_HOST:
        yield f"The lines for {draft.host}:"
        yield f"  {' '.join(_command(app))} hooks {draft.host} {draft.name}"


def _next(app: App, volume: Volume) -> Iterator[str]:
    run = " ".join(_command(app))
    yield "Next, a first backup of one folder, and the proof that it is on the store:"
    yield f"  {run} run {volume.name} -- cp {'-r' if os.geteuid() else '-a'} FOLDER {volume.data}/"
    if volume.ledger:
        yield f"  {run} verify {volume.name}"
    yield "To look at the files in it, or to get them back:"
    yield f"  {run} open {volume.name} --read-only; ls {volume.data}; {run} close {volume.name}"
