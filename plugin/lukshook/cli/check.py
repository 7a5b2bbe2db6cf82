"""Is everything there: `check`."""

from __future__ import annotations

import json
import os
from typing import Any

import click
from attrs import asdict, evolve

from lukshook.cli.main import FIRST_STEPS, App, guarded, names_argument, pass_app, say
from lukshook.errors import BadConfiguration
from lukshook.report import check
from lukshook.report.check import Finding
from lukshook.system import documentation


@click.command("check")
@names_argument
@click.option("--json", "as_json", is_flag=True, help="For programs: a list with one object per volume.")
@pass_app
def check_command(app: App, names: tuple[str, ...], as_json: bool) -> int:
    """Check the prerequisites: tools, kernel, image, header, key, mount point, space on the store.

    Changes nothing. The exit status is that of the first problem that would stop an opening.
    """
    return guarded(lambda: _check(app, names, as_json=as_json))


def _check(app: App, names: tuple[str, ...], *, as_json: bool) -> int:
    everything = app.configuration.volumes  # a fault anywhere in the file is found here
    volumes = [app.configured(name) for name in names] if names else list(everything.values())
    if not volumes:
        raise BadConfiguration(f"no volume is configured in {app.places.config}", hint=FIRST_STEPS)
    show = _Json() if as_json else _Text()
    status = 0
    for volume in volumes:
        show.volume(volume.name)
        for finding in check.volume(volume, app.site(), dict(os.environ)):
            show.finding(evolve(finding, hint=documentation.located(finding.hint)))
            status = status or finding.exit_code
    show.end()
    return status


class _Text:
    """Each finding as soon as it is known."""

    def volume(self, name: str) -> None:
        say(f"{name}:")

    def finding(self, finding: Finding) -> None:
        say(f"  {finding.level:<8} {finding.text}")
        if finding.hint:
            say(f"           hint: {finding.hint}")

    def end(self) -> None:
        pass


class _Json:
    """A list with one object per volume; docs/status-json.md describes its fields."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def volume(self, name: str) -> None:
        self.found.append({"schema": check.SCHEMA, "name": name, "exit_status": 0, "findings": []})

    def finding(self, finding: Finding) -> None:
        last = self.found[-1]
        last["exit_status"] = last["exit_status"] or finding.exit_code
        last["findings"].append(asdict(finding))

    def end(self) -> None:
        click.echo(json.dumps(self.found, indent=2))
