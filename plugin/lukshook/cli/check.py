"""Is everything there: `check`."""

from __future__ import annotations

import os

import click

from lukshook.cli.main import App, guarded, names_argument, pass_app, say
from lukshook.report import check


@click.command("check")
@names_argument
@pass_app
def check_command(app: App, names: tuple[str, ...]) -> int:
    """Check the prerequisites: tools, kernel, image, header, key, mount point, space on the store.

    Changes nothing. The exit status is that of the first problem that would stop an opening.
    """
    return guarded(lambda: _check(app, names))


def _check(app: App, names: tuple[str, ...]) -> int:
    volumes = [app.configured(name) for name in names] if names else list(app.configuration.volumes.values())
    status = 0
    if not volumes:
        say(f"no volume is configured in {app.places.config}")
    for volume in volumes:
        say(f"{volume.name}:")
        for finding in check.volume(volume, app.site(), dict(os.environ)):
            say(f"  {finding.level:<8} {finding.text}")
            if finding.hint:
                say(f"           hint: {finding.hint}")
            status = status or finding.exit_code
    return status
