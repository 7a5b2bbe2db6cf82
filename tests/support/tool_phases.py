"""Backup tools that can be held still before, during or after a backup, under lukshook or under a stand-in for it.

The stand-in makes the reference: how the same tool ends by the same signal where nothing is opened or closed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from support.host_volume import LUKSHOOK, HostVolume

ROOT = Path(__file__).parents[2]
#: The key command: "before" lasts as long as the file `hold` is there.
KEY = """#!/bin/sh
cd '{home}'
if [ -e hold ]; then : >begun; while [ -e hold ]; do sleep 0.05; done; fi
cat '{key}'
"""
#: Like lukshook it can be held in "before", which a signal ends, and in "after", which goes through.
STAND_IN = """#!/bin/sh
case "$*" in
*before-backup*) '{home}/key.sh' >/dev/null ;;
*after-backup*) trap '' INT TERM HUP; cd '{home}'; : >closing; while [ -e busy ]; do sleep 0.05; done ;;
esac
"""
RSYNC = """#!/bin/sh
cd '{home}'
[ ! -e paused ] || : >waiting
while [ -e paused ]; do sleep 0.05; done
exec rsync "$@"
"""
LARGE = 3 << 20


class Tool:
    """One tool in one house, with repositories in the volume and in a plain folder; held by files in the house."""

    hooks = False
    #: Of a slow copy, in kilobytes per second: it lasts until the signal comes, and where it outlives its host it ends.
    pace = 300
    #: Exit statuses of a backup that works.
    good: tuple[int, ...] = (0,)

    def __init__(self, house: HostVolume) -> None:
        self.house = house
        self.source = house.folder / "source"
        self.plain = house.folder / "plain"
        self.changes = 0
        (self.source / "small").mkdir(parents=True)
        for number in range(5):
            (self.source / f"small/{number}").write_bytes(os.urandom(number * 1000))
        (self.plain / "data").mkdir(parents=True)
        for name, text in (("key.sh", KEY), ("stand-in", STAND_IN), ("rsync", RSYNC)):
            script = house.folder / name
            script.write_text(text.format(home=house.folder, key=house.key))
            script.chmod(0o700)
        house.config.write_text(house.config.read_text().replace(f"file:{house.key}", f"command:{house.folder}/key.sh"))

    def data(self, *, plain: bool) -> Path:
        """Where the backups go."""
        return self.plain / "data" if plain else self.house.data

    def ours(self, text: str, *, plain: bool) -> str:
        """Printed lines as they are, or with the stand-in and the plain folder in place of lukshook and the volume."""
        house = self.house
        changes = {f"{LUKSHOOK} -c {house.config}": f"{house.folder}/stand-in", str(house.mountpoint): str(self.plain)}
        for old, new in changes.items() if plain else ():
            text = text.replace(old, new)
        return text

    def command(self, moment: str = "", *, plain: bool = False) -> list[str | Path]:
        """A backup that can be held at *moment*, with lukshook or *plain*."""
        line = self.line(self.data(plain=plain), moment)
        return line if plain else under_run(self.house, line)

    def line(self, data: Path, moment: str) -> list[str | Path]:
        """The bare command of a tool without hooks."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What the tool needs beside the usual."""
        return {}

    def hold(self, moment: str) -> None:
        """Have the next backup wait at *moment*; a copy of the large file is slow by itself."""
        self.go_on()
        for name in ("begun", "waiting", "closing"):
            (self.house.folder / name).unlink(missing_ok=True)
        self.changes += 1  # another size: rsync takes a file of the same size and second for unchanged
        (self.source / "large").write_bytes(os.urandom(LARGE + self.changes))
        if moment != "during":
            (self.house.folder / ("hold" if moment == "before" else "paused")).touch()

    def waits(self, moment: str, data: Path) -> bool:
        """Has the backup come to *moment*? "after" begins with a backup that has yet to begin."""
        if moment == "during":
            with suppress(FileNotFoundError):  # rsnapshot rotates meanwhile
                return any(data.rglob(".large.*"))
            return False
        return (self.house.folder / ("begun" if moment == "before" else "waiting")).exists()

    def go_on(self) -> None:
        """End all waiting but for a volume that is busy."""
        for name in ("hold", "paused"):
            (self.house.folder / name).unlink(missing_ok=True)

    def restoring(self, target: Path) -> list[str | Path]:
        """The command that gives the backups back, so that `restored` finds them."""
        return ["cp", "-a", self.house.data, target]

    def restored(self, target: Path) -> list[Path]:
        """Where a whole backup may be, the newest first."""
        raise NotImplementedError


def under_run(house: HostVolume, line: Sequence[str | Path]) -> list[str | Path]:
    """A command wrapped by lukshook."""
    return [LUKSHOOK, "-c", house.config, "run", "offsite", "--", *line]
