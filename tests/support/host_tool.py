"""One backup tool set up by the printed lines, as a user would copy them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from support.host_volume import HostVolume
from support.lukshook_process import Done


class Host:
    """One backup tool set up by the printed lines. *tells*: its exit status says that a backup failed."""

    tells = True

    def __init__(self, house: HostVolume) -> None:
        self.house = house
        self.source = house.folder / "source"
        self.source.mkdir()
        for number in range(20):
            (self.source / f"file {number}").write_bytes(os.urandom(number * 100))
        self.set_up()

    def set_up(self) -> None:
        """What a user does once."""
        raise NotImplementedError

    def back_up(self) -> Done:
        """One backup."""
        raise NotImplementedError

    def spoil(self) -> None:
        """Have the next backup fail: what it backs up is missing."""
        self.source.rename(self.house.folder / "elsewhere")

    def restore(self, target: Path) -> Path:
        """Give the newest backup back; returns where it is."""
        raise NotImplementedError

    def under_run(self, *command: str | Path) -> None:
        """A step of the README: a command while the volume is open."""
        done = self.house.lukshook("run", "offsite", "--", *command)
        assert 0 == done.returncode, done.stderr


def last_result(house: HostVolume) -> object:
    """How the last backup ended, as monitoring sees it."""
    (volume,) = json.loads(house.lukshook("status", "--json").stdout)
    return volume["last_result"]
