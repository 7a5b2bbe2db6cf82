"""Real rsync and borgmatic through the hooks, killed at bad moments: the files come back, and the next run works."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import field, frozen

from lukshook.system import kernel
from support.daemons import daemons
from support.volume import NAME, CliVolume, closing
from userspace.test_kills import check_clean, kill

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4", "e2fsck")
BORGMATIC = "/usr/bin/borgmatic"
VICTIMS = ("highest", "tool", "lowest", "all")
FILES = 150


def often(count: int) -> list[Any]:
    """The victims; all but the first *count* are slow tests."""
    return [pytest.param(victim, marks=pytest.mark.slow if at >= count else ()) for at, victim in enumerate(VICTIMS)]


@frozen
class Source:
    """What is backed up: files that change from run to run."""

    folder: Path
    choose: random.Random = field(factory=random.SystemRandom)

    def change(self) -> None:
        """Make the files, or change a third of them and remove some."""
        for number in range(FILES):
            path = self.folder / f"{number % 7}/{number}"
            if path.exists() and self.choose.random() < 0.67:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.choose.randbytes(self.choose.choice((0, 50, 4_000, 60_000))))

    def files(self) -> dict[str, str]:
        """Each file's digest."""
        return files_of(self.folder)


def files_of(folder: Path) -> dict[str, str]:
    """The digest of every file below *folder* but the temporary ones of rsync, which begin with a dot."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A tree of files."""
    source = Source(tmp_path / "source")
    source.change()
    return source


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[CliVolume]:
    """A volume with the room that borg wants to see before it begins: 500 MiB and more."""
    volume = CliVolume(tmp_path / "house", "userspace")
    volume.folder.mkdir()
    volume.prepare()
    volume.configure(size="900MiB")
    volume.do("create", NAME)
    yield from closing(volume)


def start(command: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """A backup tool in a session of its own; what it says goes to *log*."""
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def strike(volume: CliVolume, victim: str, tool: subprocess.Popen[bytes], seconds: float) -> None:
    """Kill daemons, or all processes of the tool, *seconds* after the volume was opened; the tool comes to its end."""
    assert kernel.wait_until(lambda: volume.is_open() or tool.poll() is not None, 60.0)
    kernel.wait_until(lambda: tool.poll() is not None, seconds)
    pids = daemons(volume)
    if victim != "tool":
        kill(*{"lowest": pids[:1], "highest": pids[-1:], "all": pids}[victim])
    elif tool.poll() is None:
        os.killpg(tool.pid, signal.SIGKILL)
    tool.wait(120)


@pytest.mark.needs("rsync")
@pytest.mark.parametrize("victim", often(2))
def test_rsync(volume: CliVolume, source: Source, victim: str, pytestconfig: pytest.Config) -> None:
    """What was backed up and has not changed since is whole after the kill; the next run makes all of it whole."""
    rsync = ["rsync", "-a", "--checksum", "--delete", f"{source.folder}/", f"{volume.data}/"]
    volume.do("run", NAME, "--", *rsync)
    safe = source.files()
    for _ in range(10 if pytestconfig.getoption("--long") else 1):
        source.change()
        volume.do("before-backup", NAME)
        strike(volume, victim, start(rsync, volume.environment, volume.folder / "log"), source.choose.uniform(0.0, 0.3))
        assert volume.lukshook("after-backup", NAME, "--failed").returncode == (0 if victim == "tool" else 74)

        volume.do("before-backup", NAME)
        wanted, found = source.files(), files_of(volume.data)
        untouched = {name: digest for name, digest in safe.items() if digest == wanted.get(name)}
        assert untouched.items() <= found.items()
        volume.do("after-backup", NAME)
        volume.do("run", NAME, "--", *rsync)
        safe = wanted

    volume.do("open", NAME, "--read-only")
    assert safe == files_of(volume.data)
    volume.do("close", NAME)
    check_clean(volume)
    assert volume.is_bare()


@frozen
class Borgmatic:
    """Debian's borgmatic with the printed lines."""

    volume: CliVolume
    source: Source

    @property
    def config(self) -> Path:
        return self.volume.folder / "borgmatic.yaml"

    @property
    def environment(self) -> dict[str, str]:
        """With the command where the printed lines find it, and borg's own folders."""
        programs = f"{self.volume.folder}/bin:{self.volume.environment['PATH']}"
        return self.volume.environment | {"PATH": programs, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}

    def prepare(self) -> None:
        """The command, the configuration, the repository."""
        program = self.volume.folder / "bin/lukshook"
        program.parent.mkdir()
        program.write_text(f"#!{sys.executable}\nimport sys\nsys.path[:] = {sys.path}\n"
                           "from lukshook.__main__ import main\nsys.exit(main())\n")  # fmt: skip
        program.chmod(0o755)
        asked = ("hooks", "--tool-version", "1.7", "borgmatic", NAME)
        lines = self.volume.do(*asked, PATH=self.environment["PATH"])
        assert str(program) in lines
        self.config.write_text(lines.replace("[/home]", f"[{self.source.folder}]"))
        self.volume.do("run", NAME, "--", *self.command("init", "--encryption", "none"), **self.environment)

    def command(self, *arguments: str) -> list[str]:
        return [
            BORGMATIC,
            "--config",
            str(self.config),
            "--log-file",
            str(self.volume.folder / "borgmatic.log"),
            *arguments,
        ]

    @property
    def log(self) -> Path:
        return self.volume.folder / "log"

    def start(self) -> subprocess.Popen[bytes]:
        """A backup."""
        return start(self.command("create"), self.environment, self.log)

    def back_up(self) -> str:
        """A backup that has to succeed; its archive."""
        assert 0 == self.start().wait(120), self.log.read_text()
        return self.newest()

    def borg(self, *arguments: str, folder: Path | None = None) -> str:
        """borg itself, on the open repository; it has to succeed."""
        done = subprocess.run(
            ["borg", *arguments],
            env=self.environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert 0 == done.returncode, done.stderr
        return done.stdout

    def check(self, archives: Mapping[str, Mapping[str, str]]) -> None:
        """Every archive is there and gives back its files. borg has to write where it was interrupted before."""
        self.volume.do("open", NAME)
        repository = f"{self.volume.data}/borg"
        self.borg("break-lock", repository)  # where nobody buries a killed borg, its locks count as held
        for name, files in archives.items():
            target = self.volume.folder / "restored"
            target.mkdir()
            self.borg("extract", f"{repository}::{name}", folder=target)
            assert files == files_of(target / str(self.source.folder).lstrip("/"))
            subprocess.run(["rm", "-r", target], check=True)
        self.volume.do("close", NAME)

    def newest(self) -> str:
        self.volume.do("open", NAME)
        (name,) = self.borg("list", "--short", "--last", "1", f"{self.volume.data}/borg").split()
        self.volume.do("close", NAME)
        return name


@pytest.mark.needs("borg", BORGMATIC)
@pytest.mark.parametrize("victim", often(1))
def test_borgmatic(roomy: CliVolume, source: Source, victim: str, pytestconfig: pytest.Config) -> None:
    """Every archive that was called safe gives back its files after each kill, and the next run works."""
    borgmatic = Borgmatic(roomy, source)
    borgmatic.prepare()
    archives: dict[str, dict[str, str]] = {}
    for _ in range(10 if pytestconfig.getoption("--long") else 1):
        source.change()
        archives[borgmatic.back_up()] = source.files()
        source.change()
        strike(roomy, victim, borgmatic.start(), source.choose.uniform(0.0, 1.5))
        roomy.lukshook("after-backup", NAME, "--failed")

        borgmatic.check(archives)
    archives[borgmatic.back_up()] = source.files()
    borgmatic.check(archives)
    check_clean(roomy)
    assert roomy.is_bare()
