"""`drill`: would a restore work?"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from attrs import evolve

from lukshook import size
from lukshook.cli.logged import logged
from lukshook.cli.main import App, name_argument, pass_app, report, say
from lukshook.cli.volume import lines_of, place_of
from lukshook.config import Volume
from lukshook.errors import SOFT_EXIT_CODE, BadConfiguration, Refused, Unavailable, Usage
from lukshook.keys import key_sources
from lukshook.options.values import Drill, duration, source_of
from lukshook.proof import drill
from lukshook.proof.drill import Found, Means
from lukshook.store import liveness
from lukshook.system import command


@click.command("drill")
@name_argument
@click.option(
    "--image",
    type=Path,
    metavar="PATH",
    help="Drill this copy of the volume: a snapshot, a replica, a restored file.",
)
@click.option("--header", type=Path, metavar="FILE", help="Header backup to use instead of lukshook's own.")
@click.option("--key", multiple=True, metavar="SOURCE", help="A key that has to open it; default: all configured.")
@click.option("--files", type=click.IntRange(min=1), metavar="N", help="Read or compare N random files.")
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="FOLDER:INSIDE",
    help="Compare the files of FOLDER with those at INSIDE in the volume, such as /home:data/home.",
)
@click.option("--newer-than", metavar="TIME", help="The image must not be older, such as 7d.")
@click.option("--soft", is_flag=True, help="Exit with 75 instead of 69 while the volume is not available.")
@pass_app
def drill_command(
    app: App,
    name: str,
    image: Path | None,
    header: Path | None,
    key: tuple[str, ...],
    files: int | None,
    sources: tuple[str, ...],
    newer_than: str | None,
    soft: bool,
) -> int:
    """Try whether volume NAME can be restored, without changing anything.

    Uses what the recovery sheet names: the header backup, and each key in turn. Opens the image read-only at a private
    folder, and reads random files, compares them with their sources, or runs the check from the configuration. The exit
    status is 65 if a restore would fail, or if there was nothing to read. A backup that starts meanwhile ends a drill
    of the same image.
    """

    def work() -> int:
        volume = app.configured(name)
        given: dict[str, Any] = {
            "image": None if image is None else place_of(image),
            "key": _keys(key) or None,
            "files": files,
            "sources": tuple(map(_source, sources)) or None,
            "newer_than": None if newer_than is None else _time(newer_than),
        }
        plan = evolve(volume.drill, **{option: value for option, value in given.items() if value is not None})
        kept = app.site().state(volume).header_backup if header is None else _header(place_of(header), app)
        _check_sources(plan, app, typed=bool(sources))
        os.chdir("/")
        means = Means(kept, _runs(volume, plan), key)
        return _drill(app, volume, plan, means, soft=soft)

    return logged(app, name, work)


def _header(file: Path, app: App) -> Path:
    """*file*, in which there may be a header. Raises `Usage`: one that is not there shows nothing of the volume."""
    liveness.probe(file, app.runner)
    try:
        right = stat.S_ISREG(file.lstat().st_mode) and os.access(file, os.R_OK)
    except OSError:
        right = False
    if not right:
        raise Usage(
            f"there is no file {file}, or it cannot be read: nothing was tried",
            hint="--header names a copy of the header backup; is its disk mounted?",
        )
    return file


def _check_sources(plan: Drill, app: App, *, typed: bool) -> None:
    """Check that the folders to compare with are there. Raises `Usage`, or `BadConfiguration` if none was *typed*."""
    for source, inside in plan.sources:
        liveness.probe(source / "any", app.runner)
        if not os.access(source, os.X_OK) or not source.is_dir():
            raise (Usage if typed else BadConfiguration)(
                f"there is no folder {source} on this machine, or it cannot be read: nothing was tried",
                hint=f"{'--source' if typed else 'the source'} {source}:{inside} names what was backed up",
            )


def _runs(volume: Volume, plan: Drill) -> Callable[[tuple[str, ...]], int]:
    """What runs the check of the configuration."""
    return lambda argv: command.run_foreground(argv, Path("/"), _environment(volume, plan))


def _drill(app: App, volume: Volume, plan: Drill, means: Means, *, soft: bool) -> int:
    try:
        found = drill.drill(volume, plan, means, app.site())
    except Unavailable as error:
        if not soft:
            raise
        report(error)
        return SOFT_EXIT_CODE
    if found is None:
        return 0
    if app.site().metrics is not None:
        from lukshook.report import metrics  # noqa: PLC0415 - only where it is asked for

        metrics.bring_up_to_date(volume, app.site())
    for line in _lines(volume, plan, means.header, found):
        say(line)
    _check_passed(volume, found)
    return 0


def _check_passed(volume: Volume, found: Found) -> None:
    if found.faults:
        more = (f"{found.more} more",) if found.more else ()
        raise Refused(
            f"a restore of volume {volume.name} would fail: {'; '.join((*found.faults, *more, *found.unproven))}",
            hint="repair it while the sources are still there: docs/drill.md",
        )
    if found.unproven:
        raise Refused(
            f"nothing shows that volume {volume.name} can be restored: {'; '.join(found.unproven)}",
            hint="run a backup, or name what to compare: docs/drill.md",
        )


def _environment(volume: Volume, plan: Drill) -> dict[str, str]:
    """The caller's environment, without keys."""
    names = {source.partition(":")[2] for source in (*volume.key, *plan.key) if source.startswith("env:")}
    return {name: value for name, value in os.environ.items() if name not in names}


def _lines(volume: Volume, plan: Drill, kept: Path, found: Found) -> list[str]:
    lines = [
        f"drill of volume {volume.name}: {'passed' if found.passed else 'failed'}",
        f"  image   {plan.image or volume.image.shown}",
        *(f"          {line}" for line in (lines_of(found.age) if found.age else ())),
        f"  header  {kept}",
        f"  keys    {', '.join(found.keys) or 'none opens it'}",
    ]
    if found.total:
        lines.append(f"  files   {found.files} of {found.total} read, {size.show(found.bytes)}")
    if plan.sources and found.total:
        lines.append(f"          {found.compared} of them are as in their source")
    return lines


def _keys(sources: tuple[str, ...]) -> tuple[str, ...]:
    for source in sources:
        key_sources.parse(source)
    return sources


def _source(text: str) -> tuple[Path, str]:
    try:
        return source_of(text)
    except ValueError as error:
        raise Usage(f"{text} is not {error}", hint="lukshook drill --help") from error


def _time(text: str) -> float:
    try:
        return duration(text)
    except ValueError as error:
        raise Usage(f"{text} is not {error}", hint="lukshook drill --help") from error
