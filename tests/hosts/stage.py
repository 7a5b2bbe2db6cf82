"""Backup tools that can be held still before, during or after a backup, under lukshook or under a stand-in for it.

The stand-in makes the reference: how the same tool ends by the same signal where nothing is opened or closed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from hosts.house import LUKSHOOK, House, need

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

    def __init__(self, house: House) -> None:
        self.house = house
        self.source = house.home / "source"
        self.plain = house.home / "plain"
        self.changes = 0
        (self.source / "small").mkdir(parents=True)
        for number in range(5):
            (self.source / f"small/{number}").write_bytes(os.urandom(number * 1000))
        (self.plain / "data").mkdir(parents=True)
        for name, text in (("key.sh", KEY), ("stand-in", STAND_IN), ("rsync", RSYNC)):
            script = house.home / name
            script.write_text(text.format(home=house.home, key=house.key))
            script.chmod(0o700)
        house.config.write_text(house.config.read_text().replace(f"file:{house.key}", f"command:{house.home}/key.sh"))

    def data(self, *, plain: bool) -> Path:
        """Where the backups go."""
        return self.plain / "data" if plain else self.house.data

    def ours(self, text: str, *, plain: bool) -> str:
        """Printed lines as they are, or with the stand-in and the plain folder in place of lukshook and the volume."""
        house = self.house
        changes = {f"{LUKSHOOK} -c {house.config}": f"{house.home}/stand-in", str(house.mountpoint): str(self.plain)}
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
            (self.house.home / name).unlink(missing_ok=True)
        self.changes += 1  # another size: rsync takes a file of the same size and second for unchanged
        (self.source / "large").write_bytes(os.urandom(LARGE + self.changes))
        if moment != "during":
            (self.house.home / ("hold" if moment == "before" else "paused")).touch()

    def waits(self, moment: str, data: Path) -> bool:
        """Has the backup come to *moment*? "after" begins with a backup that has yet to begin."""
        if moment == "during":
            return any(data.rglob(".large.*"))
        return (self.house.home / ("begun" if moment == "before" else "waiting")).exists()

    def go_on(self) -> None:
        """End all waiting but for a volume that is busy."""
        for name in ("hold", "paused"):
            (self.house.home / name).unlink(missing_ok=True)

    def restoring(self, target: Path) -> list[str | Path]:
        """The command that gives the backups back, so that `restored` finds them."""
        return ["cp", "-a", self.house.data, target]

    def restored(self, target: Path) -> list[Path]:
        """Where a whole backup may be, the newest first."""
        raise NotImplementedError


def under_run(house: House, line: Sequence[str | Path]) -> list[str | Path]:
    """A command wrapped by lukshook."""
    return [LUKSHOOK, "-c", house.config, "run", "offsite", "--", *line]


class Rsync(Tool):
    """rsync under `lukshook run`."""

    def line(self, data: Path, moment: str) -> list[str | Path]:
        slow = [f"--bwlimit={self.pace}"] if moment == "during" else []
        return [self.house.home / "rsync", "-a", "--delete", *slow, f"{self.source}/", f"{data}/source/"]

    def restored(self, target: Path) -> list[Path]:
        return [target / "data/source"]


class Rsnapshot(Tool):
    """rsnapshot under `lukshook run`."""

    good = (0, 2)  # 2: it warns, of the lock file of a killed run

    def __init__(self, house: House) -> None:
        super().__init__(house)
        need("rsnapshot")

    def line(self, data: Path, moment: str) -> list[str | Path]:
        return ["rsnapshot", "-c", self.config(moment, plain=data != self.house.data), "alpha"]

    def settings(self) -> list[str]:
        """The printed lines for rsnapshot.conf: they stand in a comment above the cron lines."""
        return [line.lstrip("# ") for line in self.house.lines("rsnapshot").splitlines() if line.startswith("#   ")]

    def config(self, moment: str, *, plain: bool) -> Path:
        """The user's rsnapshot.conf."""
        home = self.house.home
        lines = [
            "config_version\t1.2",
            *(self.ours(line, plain=plain) for line in self.settings()),
            "cmd_cp\t/bin/cp",
            f"cmd_rsync\t{home}/rsync",
            f"rsync_long_args\t--delete --relative {f'--bwlimit={self.pace}' if moment == 'during' else ''}",
            "retain\talpha\t2",
            f"lockfile\t{home}/rsnapshot.pid",
            f"backup\t{self.source}/\tlocalhost/",
        ]
        file = home / "rsnapshot.conf"
        file.write_text("\n".join(lines) + "\n")
        return file

    def restored(self, target: Path) -> list[Path]:
        return [target / f"data/alpha.{number}/localhost" / str(self.source)[1:] for number in (0, 1)]


class RsnapshotPreexec(Rsnapshot):
    """rsnapshot with cmd_preexec and cmd_postexec."""

    hooks = True

    def settings(self) -> list[str]:
        return [line for line in self.house.lines("rsnapshot-preexec").splitlines() if not line.startswith("#")]

    def data(self, *, plain: bool) -> Path:
        return self.plain if plain else self.house.mountpoint

    def command(self, moment: str = "", *, plain: bool = False) -> list[str | Path]:
        return ["rsnapshot", "-c", self.config(moment, plain=plain), "alpha"]

    def restoring(self, target: Path) -> list[str | Path]:
        return ["cp", "-a", self.house.mountpoint, target / "data"]


class Piped(Tool):
    """A tool with a repository, which is held by a pipe that it reads."""

    writer: int | None = None

    def __init__(self, house: House) -> None:
        super().__init__(house)
        self.pipe = self.source / "pipe"
        self.find()
        for command in (under_run(house, self.init(house.data)), self.init(self.plain / "data")):
            made = house.host(*command, **self.environment())
            assert 0 == made.returncode, made.stderr

    def find(self) -> None:
        """See that the tool is installed."""
        raise NotImplementedError

    def init(self, data: Path) -> list[str | Path]:
        """The command that makes the repository."""
        raise NotImplementedError

    def hold(self, moment: str) -> None:
        super().hold(moment)
        if moment != "before":
            os.mkfifo(self.pipe)

    def waits(self, moment: str, data: Path) -> bool:
        """Whoever reads the pipe waits for a writer; once there is one it waits for what is written."""
        if moment == "before":
            return super().waits(moment, data)
        with suppress(OSError):  # no reader yet
            self.writer = os.open(self.pipe, os.O_WRONLY | os.O_NONBLOCK)
        return self.writer is not None

    def go_on(self) -> None:
        super().go_on()
        self.pipe.unlink(missing_ok=True)
        if self.writer is not None:
            os.close(self.writer)
            self.writer = None

    def restored(self, target: Path) -> list[Path]:
        return [target / str(self.source)[1:]]


class Restic(Piped):
    """restic under `lukshook run`."""

    def find(self) -> None:
        need("restic")

    def init(self, data: Path) -> list[str | Path]:
        return ["restic", "--repo", data / "restic", "init"]

    def line(self, data: Path, moment: str) -> list[str | Path]:
        backup = f"exec restic --repo '{data}/restic' backup"
        return [
            "sh",
            "-c",
            f"{backup} --stdin <'{self.pipe}'" if moment in ("during", "after") else f"{backup} {self.source}",
        ]

    def waits(self, moment: str, data: Path) -> bool:
        """A lock in the repository says that restic has begun; the shell opens the pipe before that."""
        return super().waits(moment, data) and (moment == "before" or any((data / "restic/locks").iterdir()))

    def restoring(self, target: Path) -> list[str | Path]:
        newest = ("restore", "latest", "--path", self.source, "--target", target)
        return ["restic", "--repo", self.house.data / "restic", *newest]

    def environment(self) -> dict[str, str]:
        return {"RESTIC_PASSWORD": "x", "RESTIC_CACHE_DIR": str(self.house.home / "cache")}


class Borgmatic(Piped):
    """borgmatic 2 with its hooks."""

    hooks = True
    program = str(ROOT / ".venv-borgmatic/bin/borgmatic")

    def find(self) -> None:
        need(self.program)

    @property
    def borg(self) -> Path:
        """The borg that this borgmatic was installed with."""
        return Path(self.program).with_name("borg")

    def init(self, data: Path) -> list[str | Path]:
        return [self.borg, "init", "--encryption=none", data / "borg"]

    def command(self, moment: str = "", *, plain: bool = False) -> list[str | Path]:
        file = self.house.home / "borgmatic.yaml"
        file.write_text(self.ours(self.settings(), plain=plain))
        return [self.program, "--config", file, "create"]

    def settings(self) -> str:
        """The user's configuration: the printed lines and the rest."""
        more = f"source_directories: [{self.source}]\nread_special: true\nunknown_unencrypted_repo_access_is_ok: true\n"
        return self.house.lines("borgmatic") + more

    def restoring(self, target: Path) -> list[str | Path]:
        repository = self.house.data / "borg"
        newest = f"$({self.borg} list --short --last 1 {repository})"
        return ["sh", "-c", f"cd {target} && {self.borg} extract {repository}::{newest}"]

    def environment(self) -> dict[str, str]:
        path = f"{self.borg.parent}:{self.house.environment()['PATH']}"
        return {"PATH": path, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}


class DebianBorgmatic(Borgmatic):
    """borgmatic 1.7 as Debian 12 has it, with its hooks."""

    program = "/usr/bin/borgmatic"

    def find(self) -> None:
        found = need(self.program)
        version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
        if not version.startswith("1.7"):
            pytest.skip("this Debian's borgmatic is not 1.7")

    def settings(self) -> str:
        lines = self.house.lines("borgmatic-1.7").replace("[/home]", f"[{self.source}]\n    read_special: true")
        return lines + "storage: {unknown_unencrypted_repo_access_is_ok: true}\n"


TOOLS = {
    "borgmatic": Borgmatic,
    "borgmatic-1.7": DebianBorgmatic,
    "rsnapshot-preexec": RsnapshotPreexec,
    "rsnapshot": Rsnapshot,
    "restic": Restic,
    "rsync": Rsync,
}
