"""The backup tools of the matrix of signals: how each is set up, held, and what it gives back."""

from __future__ import annotations

import os
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from termios import FIONREAD

from support.host_volume import HostVolume, need
from support.tool_phases import Tool, under_run

ROOT = Path(__file__).parents[2]


class Rsync(Tool):
    """rsync under `lukshook run`."""

    def line(self, data: Path, moment: str) -> list[str | Path]:
        slow = [f"--bwlimit={self.pace}"] if moment == "during" else []
        return [self.house.folder / "rsync", "-a", "--delete", *slow, f"{self.source}/", f"{data}/source/"]

    def restored(self, target: Path) -> list[Path]:
        return [target / "data/source"]


class Rsnapshot(Tool):
    """rsnapshot under `lukshook run`."""

    good = (0, 2)  # 2: it warns, of the lock file of a killed run

    def __init__(self, house: HostVolume) -> None:
        super().__init__(house)
        need("rsnapshot")

    def line(self, data: Path, moment: str) -> list[str | Path]:
        return ["rsnapshot", "-c", self.config(moment, plain=data != self.house.data), "alpha"]

    def settings(self) -> list[str]:
        """The printed lines for rsnapshot.conf: they stand in a comment above the cron lines."""
        return [line.lstrip("# ") for line in self.house.lines("rsnapshot").splitlines() if line.startswith("#   ")]

    def config(self, moment: str, *, plain: bool) -> Path:
        """The user's rsnapshot.conf."""
        home = self.house.folder
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

    def __init__(self, house: HostVolume) -> None:
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
        """Has it read what we have begun to write? Then it waits for the rest."""
        if moment == "before":
            return super().waits(moment, data)
        if self.writer is None:
            with suppress(OSError):  # no reader yet
                self.writer = os.open(self.pipe, os.O_WRONLY | os.O_NONBLOCK)
                os.write(self.writer, b"what the tool waits for ")
        return self.writer is not None and ioctl(self.writer, FIONREAD, bytes(4)) == bytes(4)

    def go_on(self) -> None:
        super().go_on()
        self.pipe.unlink(missing_ok=True)
        if self.writer is not None:
            with suppress(BrokenPipeError):  # nobody reads any more
                os.write(self.writer, b"is what is written here")
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

    def restoring(self, target: Path) -> list[str | Path]:
        newest = ("restore", "latest", "--path", self.source, "--target", target)
        return ["restic", "--repo", self.house.data / "restic", *newest]

    def environment(self) -> dict[str, str]:
        return {"RESTIC_PASSWORD": "x", "RESTIC_CACHE_DIR": str(self.house.folder / "cache")}


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
        file = self.house.folder / "borgmatic.yaml"
        file.write_text(self.ours(self.settings(), plain=plain))
        return [self.program, "--config", file, "create"]

    def settings(self) -> str:
        """The user's configuration: the printed lines and the rest."""
        more = f"source_directories: [{self.source}]\nread_special: true\nunknown_unencrypted_repo_access_is_ok: true\n"
        return self.house.lines("borgmatic", "2.1") + more

    def restoring(self, target: Path) -> list[str | Path]:
        repository = self.house.data / "borg"
        newest = f"$({self.borg} list --short --last 1 {repository})"
        return ["sh", "-c", f"cd {target} && {self.borg} extract {repository}::{newest}"]

    def environment(self) -> dict[str, str]:
        path = f"{self.borg.parent}:{self.house.environment['PATH']}"
        return {"PATH": path, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}


class DebianBorgmatic(Borgmatic):
    """borgmatic 1.7 as Debian 12 has it, with its hooks."""

    program = "/usr/bin/borgmatic"

    def settings(self) -> str:
        lines = self.house.lines("borgmatic", "1.7").replace("[/home]", f"[{self.source}]\n    read_special: true")
        return lines + "storage: {unknown_unencrypted_repo_access_is_ok: true}\n"


TOOLS = {
    "borgmatic": Borgmatic,
    "borgmatic-1.7": DebianBorgmatic,
    "rsnapshot-preexec": RsnapshotPreexec,
    "rsnapshot": Rsnapshot,
    "restic": Restic,
    "rsync": Rsync,
}
