"""Older states of a volume's image: `versions`."""

from __future__ import annotations

import json

import click
from attrs import asdict

from lukshook.cli.main import App, guarded, names_argument, pass_app, say
from lukshook.system import clock
from lukshook.volume import versions
from lukshook.volume.versions import Version

#: Changes only where a program that reads the JSON could break: a field goes, or means something else.
SCHEMA = 1


@click.command("versions")
@names_argument
@click.option("--json", "as_json", is_flag=True, help="For programs: a list with one object per volume.")
@pass_app
def versions_command(app: App, names: tuple[str, ...], as_json: bool) -> int:
    """List older states of the image: snapshots taken after backups, and copies that `versions` finds.

    The newest comes first. Needs no key and changes nothing. Each path can be opened:

    \b
      lukshook open NAME --image PATH --at FOLDER
    """
    return guarded(lambda: _versions(app, names, as_json=as_json))


def _versions(app: App, names: tuple[str, ...], *, as_json: bool) -> int:
    chosen = map(app.configured, names) if names else app.configuration.volumes.values()
    found = {volume.name: versions.of(app.answering(volume), app.site()) for volume in chosen}
    if as_json:
        click.echo(json.dumps([_object(name, those) for name, those in found.items()], indent=2))
        return 0
    if not found:
        say(f"no volume is configured in {app.places.config}")
    for name, those in found.items():
        say(f"{name}: {_number(len(those))}")
        for version in those:
            say("  " + _line(version))
    return 0


def _object(name: str, found: list[Version]) -> dict[str, object]:
    aged = [{**asdict(version), "age": clock.age(version.taken)} for version in found]
    return {"schema": SCHEMA, "name": name, "versions": aged}


def _number(count: int) -> str:
    return {0: "no versions", 1: "1 version"}.get(count, f"{count} versions")


def _line(version: Version) -> str:
    when = clock.show(version.taken, "%Y-%m-%d %H:%M:%S")
    where = version.image or "no path is known"
    if version.name not in version.image:
        where += f" ({version.name})"
    problem = f"  NOT SEEN: {version.problem}" if version.problem else ""
    return f"{when}  {_age(version.taken):>10}  {version.kind:<7}  {where}{problem}"


def _age(moment: float) -> str:
    """How long ago, in the largest unit that is full."""
    seconds = clock.age(moment)
    if seconds is None:
        return "in future"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
