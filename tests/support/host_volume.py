"""A configured volume as a backup tool meets it, and questions to the kernel about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import attrs
import pytest

from lukshook.system import kernel
from support.lukshook_process import Done
from support.volume import CliVolume

LUKSHOOK = Path(sysconfig.get_path("scripts"), "lukshook")


@attrs.frozen
class HostVolume(CliVolume):
    """A volume with a *tree* to back up; its mount point is the folder *mount_name*."""

    engine: str = "auto"
    tree: Path = attrs.field(kw_only=True)
    mount_name: str = attrs.field(default="mnt", kw_only=True)

    @property
    def config(self) -> Path:
        return self.folder / "lukshook.toml"

    @property
    def image(self) -> Path:
        return self.folder / "backup.img"

    @property
    def mountpoint(self) -> Path:
        return self.folder / self.mount_name

    @property
    def key(self) -> Path:
        return self.folder / "offsite.key"

    @property
    def environment(self) -> dict[str, str]:
        """What the host sees: a PATH without this virtual environment, as cron's or systemd's."""
        return {
            "HOME": str(self.folder),
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            **self.own_folders,
        }

    def host(self, *command: str | Path, **more: str) -> Done:
        """Run a backup tool as its user would; *more* are variables on top of `environment`."""
        done = subprocess.run(
            command,
            env={**self.environment, **more},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def lukshook(self, *arguments: str | Path, **more: str) -> Done:
        """Run the installed command with this configuration."""
        return self.host(LUKSHOOK, "-c", self.config, *arguments, **more)

    def lines(self, host: str, version: str = "", **more: str) -> str:
        """The very lines that the user is told to copy, for *version* of the host, else for the installed one."""
        chosen = ("--tool-version", version) if version else ()
        printed = self.lukshook("hooks", host, "offsite", *chosen, **more)
        assert (0, "") == (printed.returncode, printed.stderr)
        return printed.stdout

    def script(self, host: str, *changes: tuple[str, str]) -> Path:
        """The printed lines as an executable file, with the user's own folders in place of the example's."""
        text = self.lines(host)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = self.folder / f"{host}.sh"
        path.write_text(text)
        path.chmod(0o700)
        return path

    def is_open(self) -> bool:
        """Is anything mounted on the mount point but its own guard, as the kernel has it?"""
        return any(not line.split()[3].endswith(f"/{self.mountpoint.name}") for line in self._mounted())

    def is_guarded(self) -> bool:
        """Is the bare mount point such that root cannot write there?"""
        return bool(self._mounted()) or kernel.is_immutable(self.mountpoint)

    def _mounted(self) -> list[str]:
        return [line for line in mounts() if line.split()[4] == str(self.mountpoint)]

    def closed_and_bare(self) -> bool:
        """Nothing mounted, and nothing was ever written to the bare mount point."""
        return not self.is_open() and not any(self.mountpoint.iterdir())

    def spoil_key(self) -> None:
        """Leave a key of the right form that does not fit."""
        self.set_key(bytes(32))


def build(volume: HostVolume, size: str = "1GiB") -> HostVolume:
    """Create the volume, and leave it closed."""
    volume.prepare()
    volume.configure(size=size)
    made = volume.lukshook("create", "offsite")
    assert 0 == made.returncode, made.stderr
    assert volume.closed_and_bare()
    return volume


def kernel_state(below: Path) -> tuple[list[str], list[str]]:
    """What the kernel holds: mount points and backing files of loops *below* a folder, and all mappings."""
    points = [line.split()[4] for line in mounts()]
    loops = [path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    mappings = sorted(path.read_text().strip() for path in Path("/sys/block").glob("dm-*/dm/name"))
    return sorted(path for path in points + loops if path.startswith(f"{below}/")), mappings


def mounts() -> list[str]:
    """The lines of mountinfo."""
    return Path("/proc/self/mountinfo").read_text().splitlines()


def same(expected: Path, actual: Path) -> bool:
    """Are two trees equal in names, kinds, modes, times, links and contents? Tells the first difference."""
    done = subprocess.run(
        ["rsync", "-aHXAnc", "--delete", "--itemize-changes", f"{expected}/", f"{actual}/"],
        capture_output=True,
        text=True,
        check=True,
    )
    if done.stdout:
        print(done.stdout.splitlines()[:20])
    return not done.stdout


def need(tool: str | Path) -> str:
    """The path of *tool*; without it the test is skipped, or fails if LUKSHOOK_REQUIRE_HOSTS is set."""
    found = shutil.which(tool)
    if not found and os.environ.get("LUKSHOOK_REQUIRE_HOSTS"):
        pytest.fail(f"{tool} is not installed")
    if not found:
        pytest.skip(f"{tool} is not installed")
    return found
