"""A volume that tests work on by calling lukshook's functions, not its command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attrs import evolve, frozen

from lukshook.config import Volume, parse
from lukshook.system.command import SystemRunner
from lukshook.system.secret import Secret
from lukshook.volume import known_state
from lukshook.volume.context import Site
from support.volume import CliVolume

NAME = "house"


@frozen
class DirectVolume:
    """What lukshook's functions take: the *volume* as the configuration has it, and the *site* they work in."""

    folder: Path
    volume: Volume
    site: Site

    @property
    def image(self) -> Path:
        return self.volume.image.image

    def known(self) -> known_state.Known:
        """What this host knows of the volume."""
        return known_state.KnownState(self.site.state_folder, self.volume.name).known


def parsed(folder: Path, **options: object) -> Volume:
    """The configuration of a volume in *folder*, with *options* as in `CliVolume.values`; its key source is empty."""
    own = {"image": str(folder / "image"), "key": f"file:{folder / 'own.key'}"}
    values = CliVolume(folder).values(**own | options)
    table = {name: value for name, value in values.items() if value is not None}
    return parse({"volumes": {NAME: table}}, folder / "config.toml").volume(NAME)


def site_in(
    folder: Path, ask: Callable[[Volume], Secret], warn: Callable[[str], None], *, patience: float | None = None
) -> Site:
    """A site of its own in *folder*; *patience*: seconds to wait for who uses the volume, by default lukshook's own."""
    place = CliVolume(folder)
    site = Site(place.run_folder, place.state_folder, SystemRunner(), ask, warn)
    return site if patience is None else evolve(site, patience=patience)
