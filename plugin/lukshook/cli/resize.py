"""Growing, shrinking, compacting; and `lukshook-resize`, which needs no configuration."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from lukshook.cli.logged import logged
from lukshook.cli.main import App, ask, exit_with, guarded, harden, name_argument, pass_app, runner, safe, say, warn
from lukshook.cli.paths import places
from lukshook.cli.volume import progress_bar
from lukshook.errors import Usage
from lukshook.keys import key_sources
from lukshook.layers import image as image_layer
from lukshook.resize import compact, resizing, standalone
from lukshook.resize.plan import exact
from lukshook.store import liveness
from lukshook.system import caller_limits, signals, streams
from lukshook.system.text import fault_of_path
from lukshook.version import VERSION
from lukshook.volume.context import Site

#: "-50GiB" is not an option.
_SIZES = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
_yes = click.option("--yes", is_flag=True, help="Do not ask.")


@click.command("resize", context_settings=_SIZES)
@name_argument
@click.argument("size", metavar="SIZE")
@_yes
@pass_app
def resize_command(app: App, name: str, size: str, yes: bool) -> int:
    """Resize volume NAME: 750GiB, +100GiB, -50GiB, or max (all the store holds, less a reserve).

    If the kernel can, a volume grows while it is open and in use; otherwise lukshook opens and closes it. A volume
    shrinks only while it is closed, and never below its content. After an interruption, run the same command again.
    """

    def work() -> int:
        volume = app.volume(name)
        os.chdir("/")
        _say(resizing.resize(volume, size, app.site(), _talk(volume.image.shown, yes=yes)))
        return 0

    return logged(app, name, work)


@click.command("compact")
@name_argument
@_yes
@pass_app
def compact_command(app: App, name: str, yes: bool) -> int:
    """Return unused space in volume NAME to the store.

    After that, anyone who can read the image sees which parts of it are in use. Its blocks are no longer reserved: the
    store can be full before the volume is.
    """

    def work() -> int:
        volume = app.volume(name)
        os.chdir("/")
        freed = compact.compact(volume, app.site(), _talk(volume.image.shown, yes=yes).consent)
        if freed is not None:
            say(f"{exact(freed)} returned to the store")
        return 0

    return logged(app, name, work)


def _talk(image: str, *, yes: bool) -> resizing.Interaction:
    def consent(question: str) -> bool:
        return yes or (sys.stdin.isatty() and click.confirm(f"{question}?", err=True))

    return resizing.Interaction(progress_bar(f"Growing {Path(image).name}"), consent, _say_all)


def _say_all(text: str) -> None:
    for line in text.split("\n"):
        say(line)


def _say(done: resizing.Resized | None) -> None:
    if done is None:
        return
    how = "while it was open" if done.online else "and closed again"
    inside = f", file system {exact(done.filesystem)}" if done.filesystem else ""
    say(f"{exact(done.before)} -> {exact(done.after)}{inside}, {how}")


@click.command("lukshook-resize", context_settings=_SIZES)
@click.argument("image", metavar="IMAGE", type=Path)
@click.argument("size", metavar="SIZE")
@click.option(
    "--key", default="prompt", show_default=True, metavar="SOURCE", help=f"One of {', '.join(key_sources.forms())}."
)
@click.option(
    "--fill",
    type=click.Choice(image_layer.FILLS),
    help="How new blocks are allocated; default: like the existing ones.",
)
@_yes
@click.option("--dry-run", is_flag=True, help="Show the plan and the commands; change nothing.")
@click.option("-v", "--verbose", is_flag=True, help="Show each step on stderr.")
@click.version_option(VERSION, prog_name="lukshook-resize")
def standalone_command(
    image: Path, size: str, key: str, fill: str | None, yes: bool, dry_run: bool, verbose: bool
) -> int:
    """Resize a LUKS image, or the file system on a LUKS block device: 750GiB, +100GiB, -50GiB, max.

    Needs only IMAGE and its key (32 bytes in base64); no configuration. An image that is open and mounted grows in
    place; otherwise it is opened and closed. On a block device, max is the size the device has now.
    """

    def work() -> int:
        spots = safe(places(os.environ, os.geteuid()))
        whole = Path(os.path.abspath(image))  # noqa: PTH100 - links must not be followed
        fault = fault_of_path(os.fspath(whole))
        if fault:
            raise Usage(f"{whole} is not {fault}", hint="give it another name")
        os.chdir("/")
        site = Site(
            spots.run,
            spots.state,
            runner(dry_run=dry_run, verbose=verbose),
            lambda volume: ask(volume, whole.name, spots.run),
            warn,
            mounts=spots.mounts,
        )
        liveness.probe(whole, site.runner)
        _say(standalone.resize(whole, size, key, fill, site, _talk(str(whole), yes=yes)))
        return 0

    return guarded(work)


def main() -> None:
    """Run `lukshook-resize`."""
    caller_limits.take()
    streams.prepare()
    signals.install()
    harden()
    exit_with(lambda: standalone_command.main(standalone_mode=False, prog_name="lukshook-resize"))
