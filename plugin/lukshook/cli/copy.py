"""Copies elsewhere: `copy` makes them, `heal` takes good pieces from them."""

from __future__ import annotations

import os
from pathlib import Path

import click

from lukshook import size
from lukshook.cli.logged import logged
from lukshook.cli.main import App, absolute, name_argument, pass_app, report, say
from lukshook.cli.volume import progress_bar
from lukshook.config import Volume
from lukshook.errors import LukshookError, Refused, Usage
from lukshook.ledger.pieces import Run, total
from lukshook.proof import copy, heal
from lukshook.proof.copy import Asked, Copied
from lukshook.proof.heal import Healed
from lukshook.replica.targets import is_url
from lukshook.store import liveness

#: Lines of a report; the rest is a number.
_MOST_SHOWN = 1000


@click.command("copy")
@name_argument
@click.argument("target", required=False, metavar="[TARGET]")
@click.option("--image", type=Path, metavar="FILE", help="Copy this snapshot of the image instead of the image itself.")
@click.option("--adopt", is_flag=True, help="Take over a copy that is there: read all of it, send what differs.")
@click.option("--new", is_flag=True, help="Begin a new copy where the earlier one is gone.")
@click.option("--forget", is_flag=True, help="Copy nothing: forget the copy at TARGET, which is gone for good.")
@pass_app
def copy_command(
    app: App, name: str, target: str | None, image: Path | None, adopt: bool, new: bool, forget: bool
) -> int:
    """Copy the image of volume NAME to TARGET: a path, a URL, or the name of a configured copy.

    Without TARGET, all configured copies are brought up to date.

    The copy is an image like the original, and needs the same key. It is always complete: old or new, whenever the
    work is interrupted; the next run continues. After the first time, only what has changed is read and sent. The
    volume must be closed, or name a snapshot of the image.
    """
    if forget:
        return logged(app, name, lambda: _forget(app, name, target, alone=not (image or adopt or new)))
    if adopt and new:
        raise Usage("a copy is either there or not", hint="use --adopt or --new")
    asked = Asked(absolute(image) if image else None, adopt, new)
    return logged(app, name, lambda: _copy(app, name, target, asked))


def _copy(app: App, name: str, target: str | None, asked: Asked) -> int:
    volume = app.volume(name)
    targets = [copy.path for copy in volume.copies] if target is None else [target_path(volume, target)]
    if not targets:
        raise Usage(
            f"volume {name} has no configured copies", hint=f"name a path: lukshook copy {name} /mnt/disk/copy.img"
        )
    os.chdir("/")
    if asked.image is not None:
        liveness.probe(asked.image, app.runner)
    failed: LukshookError | None = None
    for path in targets:
        try:
            _copy_to(app, volume, path, asked)
        except LukshookError as error:
            if failed is not None:
                report(failed)
            failed = error
    _bring_metrics_up_to_date(app, volume)
    if failed is not None:
        raise failed
    return 0


def _forget(app: App, name: str, target: str | None, *, alone: bool) -> int:
    if target is None or not alone:
        raise Usage("--forget needs the TARGET to forget, and no other option", hint="lukshook copy --help")
    volume = app.configured(name)
    path = target_path(volume, target)
    os.chdir("/")
    copy.forget(volume, app.site(), path)
    if not app.runner.dry:
        say(f"{path} is no longer known as a copy of volume {name}; what is there stays")
    _bring_metrics_up_to_date(app, volume)
    return 0


def _bring_metrics_up_to_date(app: App, volume: Volume) -> None:
    if app.site().metrics is not None:
        from lukshook.report import metrics  # noqa: PLC0415 - only where it is asked for

        metrics.bring_up_to_date(volume, app.site())


def _copy_to(app: App, volume: Volume, path: str, asked: Asked) -> None:
    done = copy.copy(volume, app.site(), path, asked, progress_bar(f"Copying to {path}"))
    if done is not None:
        for line in _told(path, done):
            say(line)


def target_path(volume: Volume, target: str) -> str:
    """The path of a copy that is configured by that name, or else *target* itself. Raises `Usage` for another name."""
    found = next((copy.path for copy in volume.copies if copy.name == target), target)
    if "/" not in found:
        names = ", ".join(copy.name for copy in volume.copies) or "none"
        raise Usage(
            f"volume {volume.name} has no copy named {target}",
            hint=f"configured are: {names}; a path has a slash, such as ./{target}",
        )
    return found if is_url(found) else os.path.normpath(absolute(Path(found)))


def _told(path: str, done: Copied) -> list[str]:
    lines = [f"{path}: an interrupted change was completed first"] if done.finished else []
    if done.unknown:
        lines.append(f"{done.unknown} pieces are not known to the ledger; they were copied as they are")
    return [*lines, f"{path}: {size.show(done.sent)} sent; it has the state of the last close"]


@click.command("heal")
@name_argument
@click.option("--from", "origin", required=True, metavar="TARGET", help="The copy to take good pieces from.")
@click.option("--partly", is_flag=True, help="Heal what this copy has, although it has not all that is damaged.")
@click.option(
    "--even-newer",
    is_flag=True,
    help="Heal also an image that may be newer than what this host knows: what was written since is lost.",
)
@pass_app
def heal_command(app: App, name: str, origin: str, partly: bool, even_newer: bool) -> int:
    """Replace damaged pieces of volume NAME's image by good ones from a copy.

    A piece of the copy is good if it is what this host wrote last, so the copy may be old, and need not be trusted.
    Nothing else of the image is changed. The volume must be closed. `lukshook --dry-run heal` shows what would be
    healed. The exit status is 65 if the copy does not have all that is damaged, and if the image is newer than what
    this host knows of it, as after a restore of this host: that takes the key.
    """
    return logged(app, name, lambda: _heal(app, name, origin, partly=partly, even_newer=even_newer))


def _heal(app: App, name: str, origin: str, *, partly: bool, even_newer: bool) -> int:
    volume = app.volume(name)
    path = target_path(volume, origin)
    os.chdir("/")
    bar = progress_bar(f"Reading {volume.image.image.name}")
    found = heal.heal(volume, app.site(), path, bar, partly=partly, even_newer=even_newer)
    _bring_metrics_up_to_date(app, volume)
    written = not app.runner.dry and (partly or not found.lost)
    for line in _lines("healed" if written else "can be healed", found.piece, found.healed):
        say(line)
    if found.lost:
        for line in _lines("lost", found.piece, found.lost):
            say(line)
        raise Refused(
            f"{path} does not have all that is damaged: {_pieces(found.lost)} cannot be healed from it",
            hint="name another copy" + ("" if written else "; to heal only what it has: --partly"),
        )
    say(_summary(name, found, "healed" if written else "would be healed"))
    return 0


def _summary(name: str, found: Healed, verb: str) -> str:
    done = f"{_pieces(found.healed)} {verb}" if found.healed else "nothing is damaged"
    unknown = f"; of {found.unknown} pieces that the ledger does not know, nobody can tell" if found.unknown else ""
    return f"volume {name}: {done}{unknown}"


def _lines(how: str, piece: int, runs: tuple[Run, ...]) -> list[str]:
    lines = [f"{how}: {number * piece} bytes at {first * piece}" for first, number in runs[:_MOST_SHOWN]]
    return [*lines, *([f"{how}: {len(runs) - _MOST_SHOWN} more places"] if len(runs) > _MOST_SHOWN else [])]


def _pieces(runs: tuple[Run, ...]) -> str:
    number = total(runs)
    return "1 piece" if number == 1 else f"{number} pieces"
