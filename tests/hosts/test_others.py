"""Backup tools by the printed lines, as a user would copy them: each with the same cases."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from lukshook.system import kernel
from support.host_tool import Host, last_result
from support.host_volume import HostVolume, kernel_state, need, same
from support.lukshook_process import Done
from support.stoppable_tools import STOPPABLE, Tool, killed_while_it_works

pytestmark = pytest.mark.hosts


class Backupninja(Host):
    """Two files between which the user's own actions stand; here one that copies."""

    def set_up(self) -> None:
        need("backupninja")
        folder = self.house.folder / "backup.d"
        folder.mkdir(mode=0o700)
        parts = re.split(r"^# .*Save this part as (\S+\.sh).*\n", self.house.lines("backupninja"), flags=re.MULTILINE)
        files = dict(zip(parts[1::2], parts[2::2], strict=True))
        assert ["10-lukshook.sh", "90-lukshook.sh"] == sorted(files)
        files["20-copy.sh"] = f'rsync -a {self.source}/ {self.house.data}/home/ || error "rsync failed"\n'
        for name, text in files.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o600)
        self.log = self.house.folder / "log"
        settings = f"configdirectory = {folder}\nlogfile = {self.log}\nreportemail =\nreportprom =\nloglevel = 4\n"
        (self.house.folder / "backupninja.conf").write_text(settings)

    def back_up(self) -> Done:
        self.log.unlink(missing_ok=True)
        done = self.house.host("backupninja", "--now", "--conffile", self.house.folder / "backupninja.conf")
        for lock in Path("/var/lock/backupninja").glob(f"{self.house.folder}".replace("/", "_") + "*"):
            lock.unlink()
        return attrs.evolve(done, stderr=done.stderr + self.log.read_text())

    def restore(self, target: Path) -> Path:
        self.under_run("cp", "-a", self.house.data / "home", target)
        return target / "home"


class Duply(Host):
    """A profile of duply without encryption of its own."""

    def set_up(self) -> None:
        need("duply")
        self.script = self.house.script("duply")
        (target,) = re.findall("TARGET='[^']*'", self.script.read_text())
        profile = self.house.folder / ".duply/profile"
        profile.mkdir(parents=True)
        (profile / "conf").write_text(f"GPG_KEY='disabled'\n{target}\nSOURCE='{self.source}'\nMAX_AGE=1M\n")

    def back_up(self) -> Done:
        return self.house.host(self.script, "profile", "backup")

    def restore(self, target: Path) -> Path:
        done = self.house.host(self.script, "profile", "restore", target / "restored")
        assert 0 == done.returncode, done.stderr
        return target / "restored"


class Rsbackup(Host):
    """One volume of one host, on this machine."""

    def set_up(self) -> None:
        need("rsbackup")
        self.script = self.house.script("rsbackup")
        (store,) = re.findall("store /.*", self.script.read_text())
        (once,) = re.findall("Once: (.*)", self.script.read_text())
        done = self.house.host("sh", "-c", once.replace("DEVICE", "disk"))
        assert 0 == done.returncode, done.stderr
        (self.house.folder / "logs").mkdir()
        (self.house.folder / "rsbackup.conf").write_text(
            f"{store}\ndevice disk\nlogs {self.house.folder}/logs\nlock {self.house.folder}/rsbackup.lock\n"
            f"host localhost\n  hostname localhost\n  volume home {self.source}\n"
        )

    def back_up(self) -> Done:
        return self.house.host(self.script, "--config", self.house.folder / "rsbackup.conf", "--backup")

    def restore(self, target: Path) -> Path:
        self.under_run("cp", "-a", self.house.mountpoint / "localhost/home", target)
        return max((target / "home").iterdir())


class Borg(Host):
    """borg by the script that goes in its place."""

    def set_up(self) -> None:
        need("borg")
        self.script = self.house.script("borg")
        made = self.borg("init", "--encryption=none")
        assert 0 == made.returncode, made.stderr

    def borg(self, *arguments: str | Path) -> Done:
        """Any command of borg, in a folder of its own, since `extract` writes there."""
        folder = self.house.folder / "restored"
        folder.mkdir(exist_ok=True)
        command = f"cd '{folder}' && exec {self.script} \"$@\""
        return self.house.host("sh", "-c", command, "sh", *arguments, BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes")

    def back_up(self) -> Done:
        return self.borg("create", "::{now}", self.source)

    def restore(self, target: Path) -> Path:
        (newest,) = self.borg("list", "--short", "--last", "1").stdout.split()
        done = self.borg("extract", f"::{newest}")
        assert 0 == done.returncode, done.stderr
        return self.house.folder / "restored" / str(self.source)[1:]


class Cron(Host):
    """The line as cron starts it: by sh, in HOME, with a short PATH."""

    def set_up(self) -> None:
        script = self.house.folder / "backup-to"
        script.write_text(f'#!/bin/sh\nexec rsync -a {self.source}/ "$1/home/"\n')
        script.chmod(0o700)
        (line,) = (line for line in self.house.lines("cron").splitlines() if not line.startswith("#"))
        self.line = line.partition(" root ")[2].replace("/usr/local/sbin/backup-to", str(script))

    def back_up(self) -> Done:
        return self.house.host("sh", "-c", self.line, PATH="/usr/bin:/bin")

    def restore(self, target: Path) -> Path:
        self.under_run("cp", "-a", self.house.data / "home", target)
        return target / "home"


Make = Callable[[HostVolume], Host]
STOPPED = [pytest.param(tool, marks=pytest.mark.slow) for tool in STOPPABLE]
EACH = pytest.mark.parametrize("make", [Backupninja, Duply, Rsbackup, Borg, Cron, *STOPPED])


@pytest.fixture(autouse=True)
def _no_pool(house: HostVolume) -> Iterator[None]:
    """btrbk's source is unmounted before the watch over mounts looks. Who lists loop devices keeps one for a while."""
    before = kernel_state(house.folder)
    yield
    if house.folder.joinpath("pool").exists():
        subprocess.run(["umount", house.folder / "pool"], check=False, capture_output=True)
        kernel.wait_until(lambda: before == kernel_state(house.folder), 30)


@EACH
def test_what_was_backed_up_is_given_back(house: HostVolume, make: Make, tmp_path: Path) -> None:
    """A backup that works is known as one; the volume is closed, and what is restored is what there was."""
    host = make(house)

    done = host.back_up()

    assert (0, True) == (done.returncode, house.closed_and_bare()), done.stdout + done.stderr
    assert "done" == last_result(house)
    target = tmp_path / "target"
    target.mkdir()
    assert same(host.source, host.restore(target))


@EACH
def test_failing_backup_is_reported_and_closed(house: HostVolume, make: Make) -> None:
    """The tool fails, the status says so, and the volume is closed."""
    host = make(house)
    host.spoil()

    done = host.back_up()

    assert 0 != done.returncode or not host.tells
    assert ("failed", True) == (last_result(house), house.closed_and_bare()), done.stdout + done.stderr


@EACH
def test_volume_that_does_not_open(house: HostVolume, make: Make) -> None:
    """With a wrong key nothing is backed up, the tool fails and tells lukshook's reason, and nothing lies outside."""
    host = make(house)
    house.spoil_key()

    done = host.back_up()

    assert 0 != done.returncode
    assert "the key does not open volume offsite" in done.stdout + done.stderr
    assert house.closed_and_bare()


@pytest.mark.parametrize("make", STOPPED)
def test_killed_in_the_middle(house: HostVolume, make: Callable[[HostVolume], Tool]) -> None:
    """SIGTERM while it works: closed, or closed by the next run where nobody is left to close, and that one works."""
    tool = make(house)

    with killed_while_it_works(tool):
        assert house.is_open() == (not tool.closes)

    done = tool.back_up()
    assert (0, True, "done") == (done.returncode, house.closed_and_bare(), last_result(house)), (
        done.stdout + done.stderr
    )
