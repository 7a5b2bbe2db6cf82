"""duplicity, rdiff-backup, btrbk, Back In Time and Vorta, which a test can stop in the middle of their work."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support.host_tool import Host
from support.host_volume import need
from support.lukshook_process import Done

#: Waits as long as the file `hold` is there, then is the program of its name that Debian has.
HELD = """#!/bin/sh
if [ -e '{home}/hold' ]; then : >'{home}/begun'; while [ -e '{home}/hold' ]; do sleep 0.05; done; fi
exec /usr/bin/{name} "$@"
"""
#: Seconds for a tool to do what it was asked for; Back In Time waits 30 s for its folder.
PATIENCE = 120.0


def wait_for(what: Callable[[], bool]) -> None:
    """Wait until it is so."""
    ends = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < ends
        time.sleep(0.05)


class Tool(Host):
    """A tool that a test can stop in the middle."""

    #: What works for it, and waits on request.
    worker = ""
    #: Whether the volume is closed after the tool was killed.
    closes = True

    def command(self) -> Sequence[str | Path]:
        """One backup."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What the tool needs beside the usual."""
        return {"PATH": f"{self.house.folder}/bin:{self.house.environment['PATH']}"}

    def back_up(self) -> Done:
        return self.house.host(*self.command(), **self.environment())

    def hold_the_worker(self) -> None:
        """Have the next backup wait for `go_on`."""
        (self.house.folder / "bin").mkdir(exist_ok=True)
        script = self.house.folder / "bin" / self.worker
        script.write_text(HELD.format(home=self.house.folder, name=self.worker))
        script.chmod(0o700)
        (self.house.folder / "hold").touch()

    def go_on(self) -> None:
        """End all waiting."""
        (self.house.folder / "hold").unlink()

    def start(self) -> subprocess.Popen[bytes]:
        """A backup that a test will stop."""
        environment = {**self.house.environment, **self.environment()}
        command = self.command()
        return subprocess.Popen(command, env=environment, cwd="/", stdin=subprocess.DEVNULL, start_new_session=True)


class Duplicity(Tool):
    """duplicity by the script that goes in its place."""

    worker = "duplicity"

    def set_up(self) -> None:
        need("duplicity")
        self.script = self.house.script("duplicity")
        (self.target,) = set(re.findall(r"file://\S+?/duplicity", self.script.read_text()))

    def command(self) -> Sequence[str | Path]:
        return [self.script, "--no-encryption", self.source, self.target]

    def restore(self, target: Path) -> Path:
        done = self.house.host(self.script, "restore", "--no-encryption", self.target, target / "restored")
        assert 0 == done.returncode, done.stderr
        return target / "restored"


class RdiffBackup(Tool):
    """rdiff-backup by the script that goes in its place."""

    worker = "rdiff-backup"

    def set_up(self) -> None:
        need("rdiff-backup")
        self.script = self.house.script("rdiff-backup")
        assert f"{self.house.data}/home" in self.script.read_text()

    def command(self) -> Sequence[str | Path]:
        return [self.script, "backup", self.source, self.house.data / "home"]

    def restore(self, target: Path) -> Path:
        done = self.house.host(self.script, "restore", self.house.data / "home", target / "restored")
        assert 0 == done.returncode, done.stderr
        return target / "restored"


class Btrbk(Tool):
    """btrbk from a subvolume of a file system of its own, to a target that is a folder of files."""

    worker = "btrbk"

    def set_up(self) -> None:
        need("btrbk")
        self.pool = self.house.folder / "pool"
        self.script = self.house.script("btrbk")
        text = self.script.read_text()
        (raw,) = re.findall("target raw [^ ]+", text)
        (once,) = re.findall("Once: (.*)", text)
        done = self.house.host("sh", "-c", once)
        assert 0 == done.returncode, done.stderr
        self.pool.mkdir()
        disk = self.house.folder / "pool.img"
        with disk.open("xb") as file:
            file.truncate(256 << 20)
        for command in (("mkfs.btrfs", "-q", disk), ("mount", "-o", "loop", disk, self.pool)):
            done = self.house.host(*command)
            if done.returncode:
                pytest.skip(f"no btrfs here: {done.stderr}")
        subprocess.run(["btrfs", "-q", "subvolume", "create", self.pool / "home"], check=True)
        subprocess.run(["cp", "-a", f"{self.source}/.", self.pool / "home"], check=True)
        self.source = self.pool / "home"
        self.config = self.house.folder / "btrbk.conf"
        self.config.write_text(f"volume {self.pool}\n  subvolume home\n    {raw}\n")

    def command(self) -> Sequence[str | Path]:
        return [self.script, "-c", self.config, "run"]

    def spoil(self) -> None:
        self.source.rename(self.pool / "elsewhere")

    def restore(self, target: Path) -> Path:
        """The stream, received beside the source."""
        self.under_run("sh", "-c", f"cat {self.house.data}/btrbk/home.*.btrfs >{target}/stream")
        (self.pool / "back").mkdir()
        done = self.house.host("btrfs", "receive", "-f", target / "stream", self.pool / "back")
        assert 0 == done.returncode, done.stderr
        return next((self.pool / "back").iterdir())


class BackInTime(Tool):
    """Back In Time with its user-callback."""

    worker = "rsync"
    closes = False

    def set_up(self) -> None:
        need("/usr/bin/backintime")
        folder = self.house.folder / ".config/backintime"
        folder.mkdir(parents=True)
        callback = folder / "user-callback"
        callback.write_text(self.house.lines("backintime"))
        callback.chmod(0o755)
        (place,) = re.findall(r"Where to save snapshots\" is (\S+)\.", callback.read_text())
        self.snapshots = Path(place) / "backintime/vm/root/1"
        settings = {
            "config.version": "6",
            "profiles.version": "1",
            "profile1.snapshots.path": place,
            "profile1.snapshots.path.host": "vm",
            "profile1.snapshots.path.user": "root",
            "profile1.snapshots.path.profile": "1",
            "profile1.snapshots.mode": "local",
            "profile1.snapshots.include.1.type": "0",
            "profile1.snapshots.include.1.value": str(self.source),
            "profile1.snapshots.include.size": "1",
            "profile1.schedule.mode": "0",
        }
        (folder / "config").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        self.under_run("mkdir", "-p", self.snapshots)

    def command(self) -> Sequence[str | Path]:
        return ["/usr/bin/backintime", "backup"]

    def spoil(self) -> None:
        """Another folder than the one it knows is in the volume."""
        self.under_run("mv", self.snapshots, self.house.data / "elsewhere")

    def restore(self, target: Path) -> Path:
        self.under_run("cp", "-a", self.snapshots / "last_snapshot/backup", f"{target}/backup")
        self.under_run("sh", "-c", f"cp -a {self.snapshots}/*-*/backup/. {target}/backup")
        return target / "backup" / str(self.source)[1:]


#: Two tables of Vorta's own, as its windows would fill them in.
SEED = """
import os, sys
from peewee import SqliteDatabase
from vorta.config import SETTINGS_DIR
from vorta.store.connection import init_db
from vorta.store.models import BackupProfileModel, RepoModel, SourceFileModel
init_db(SqliteDatabase(os.path.join(SETTINGS_DIR, "settings.db"), pragmas={"journal_mode": "wal"}))
repository, source, before, after = sys.argv[1:]
repo = RepoModel.create(url=repository, encryption="none")
profile = BackupProfileModel.create(name="home", repo=repo, pre_backup_cmd=before, post_backup_cmd=after)
SourceFileModel.create(dir=source, profile=profile, path_isdir=True)
"""


class Vorta(Tool):
    """Vorta without a screen, told by its command line to back up."""

    worker = "borg"
    closes = False
    tells = False

    def set_up(self) -> None:
        need("/usr/bin/vorta")
        lines = self.house.lines("vorta").splitlines()
        before, after = (line for line in lines if not line.startswith("#"))
        (repository,) = re.findall(r"repository is (\S+)\. ", lines[0])
        self.repository = Path(repository)
        self.under_run("borg", "init", "-e", "none", repository)
        done = self.host("/usr/bin/python3", "-c", SEED, repository, self.source, before, after)
        assert 0 == done.returncode, done.stderr
        self.log = self.house.folder / "vorta.out"

    def environment(self) -> dict[str, str]:
        shown = {"QT_QPA_PLATFORM": "offscreen", "XDG_RUNTIME_DIR": str(self.house.folder)}
        return {**super().environment(), **shown, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}

    def host(self, *command: str | Path) -> Done:
        """A command as the user who has the window open."""
        return self.house.host(*command, **self.environment())

    @contextmanager
    def window(self) -> Iterator[subprocess.Popen[bytes]]:
        """Vorta runs, which `--create` needs."""
        environment = {**self.house.environment, **self.environment()}
        with self.log.open("wb") as log:
            running = subprocess.Popen(["/usr/bin/vorta"], env=environment, cwd="/", stdout=log, stderr=log)
            try:
                wait_for(lambda: "Refreshing all scheduler timers" in self.said() or running.poll() is not None)
                yield running
            finally:
                running.kill()
                running.wait()

    def said(self) -> str:
        """What Vorta and its hooks have written."""
        return self.log.read_text(errors="replace")

    def back_up(self) -> Done:
        """Vorta has no status; 1 is for what it says was no backup."""
        with self.window():
            asked = self.host("/usr/bin/vorta", "--create", "home")
            assert 0 == asked.returncode, asked.stderr
            wait_for(lambda: "Finish job for site: 1" in self.said() or "  hint: " in self.said())
            wait_for(lambda: not self.house.is_open())
        refused = "  hint: " in self.said() or "has no valid" in self.said()
        return Done(int(refused), "", self.said())

    def spoil(self) -> None:
        """borg finds another thing where the repository was."""
        self.under_run("rm", self.repository / "config")

    def restore(self, target: Path) -> Path:
        newest = f"$(borg list --short --last 1 {self.repository})"
        extract = f"cd {target} && borg extract {self.repository}::{newest}"
        self.under_run("env", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes", "sh", "-c", extract)
        return target / str(self.source)[1:]


STOPPABLE = (Duplicity, RdiffBackup, Btrbk, BackInTime, Vorta)


@contextmanager
def killed_while_it_works(tool: Tool) -> Iterator[None]:
    """Start a backup, send SIGTERM to all of it in the middle, and let what is left end."""
    begun = tool.house.folder / "begun"
    if isinstance(tool, Vorta):
        with tool.window() as running:
            tool.hold_the_worker()  # it asks borg for its version before
            assert 0 == tool.host("/usr/bin/vorta", "--create", "home").returncode
            wait_for(begun.exists)
            running.send_signal(signal.SIGTERM)
            running.wait(PATIENCE)
    else:
        tool.hold_the_worker()
        running = tool.start()
        wait_for(begun.exists)
        os.killpg(running.pid, signal.SIGTERM)
        assert 0 != running.wait(PATIENCE)
        with suppress(ChildProcessError):  # where its orphans are ours; Back In Time takes a zombie for one that runs
            while True:
                os.waitpid(-running.pid, 0)
    yield
    tool.go_on()
    time.sleep(1)  # an orphan does its work
