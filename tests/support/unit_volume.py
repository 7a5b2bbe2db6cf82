"""A volume on a machine that systemd runs: units, drop-ins and what `lukshook hooks` prints, as a user saves it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Protocol

from attrs import frozen

from support.configuration import configuration

UNITS = "/etc/systemd/system"
CONFIG = configuration(
    "offsite",
    image="/disk/store/backup.img",
    mountpoint="/mnt/back-up",
    size="64MiB",
    fill="sparse",
    space="warn",
    key="file:/etc/lukshook/offsite.key",
)
#: What is known across boots lies on the disk, as on a machine that is started again.
SET_UP = """
mkdir -p /disk/state /disk/etc /disk/store /var/lib/lukshook /etc/lukshook /mnt/back-up /job
mount --bind /disk/state /var/lib/lukshook
mount --bind /disk/etc /etc/lukshook
"""


class Ended(Protocol):
    """How a command ended."""

    @property
    def returncode(self) -> int: ...
    @property
    def stdout(self) -> str: ...


class Machine(Protocol):
    """Where commands run as root: `guest.Guest`, `whole_machine.WholeMachine`."""

    def run(self, argv: Sequence[str], *, check: bool = False, stdin: bytes = b"") -> Ended: ...


@frozen
class UnitVolume:
    """Shell commands and units on *guest*. *set_up*: a script that makes the folders of the volume."""

    guest: Machine
    set_up: str = SET_UP

    def create(self, config: str = CONFIG) -> None:
        """The volume "offsite", its configuration and its key in a file."""
        self.sh(self.set_up)
        self.write("/etc/lukshook/config.toml", config)
        self.sh("umask 077; lukshook key new >/etc/lukshook/offsite.key; lukshook create offsite")

    def sh(self, script: str, *, status: int = 0) -> str:
        """What *script* prints on stdout and stderr together, as a user sees it."""
        result = self.guest.run(["sh", "-ec", f"exec 2>&1; {script}"])
        assert status == result.returncode, result.stdout
        return result.stdout

    def write(self, path: str, text: str) -> None:
        """Make a file, with its folder."""
        self.guest.run(["sh", "-ec", f'mkdir -p "$(dirname {path})"; cat >{path}'], stdin=text.encode(), check=True)

    def unit(self, name: str, text: str) -> None:
        """Save a unit or a drop-in (UNIT.d/NAME.conf)."""
        self.write(f"{UNITS}/{name}", text)
        self.sh("systemctl daemon-reload")

    def lines(self, host: str) -> str:
        """What `lukshook hooks` prints."""
        return self.guest.run(["lukshook", "hooks", host, "offsite"], check=True).stdout

    def drop_in(self, unit: str) -> None:
        """Save the lines of host systemd for *unit*."""
        self.unit(f"{unit}.d/lukshook.conf", self.lines("systemd"))

    def show(self, unit: str, what: str) -> str:
        """A property of a unit."""
        return self.sh(f"systemctl show --value --property={what} {unit}").strip()

    def status(self) -> dict[str, Any]:
        """What `lukshook status` knows."""
        found: dict[str, Any] = json.loads(self.sh("lukshook status --json offsite"))[0]
        return found

    def wait_for(self, condition: str, seconds: float = 120) -> None:
        """Wait until a shell command succeeds."""
        deadline = time.monotonic() + seconds
        while self.guest.run(["sh", "-c", condition]).returncode:
            assert time.monotonic() < deadline, f"{condition}\n{self.journal()}"
            time.sleep(0.1)

    def what_stands(self) -> str:
        """Mounts, mappings, loop devices, private mounts and records of the volume: nothing when it is closed."""
        return self.sh("""
            findmnt --noheadings --output=TARGET --source=/dev/mapper/lukshook-offsite || true
            dmsetup ls | grep -v "No devices found" || true
            losetup --list --noheadings --output=BACK-FILE
            ls /run/lukshook 2>/dev/null | grep -v '[.]lock$' || true
        """).strip()

    def journal(self, *match: str) -> str:
        """The journal of this boot."""
        return self.sh(f"journalctl --no-pager --boot --output=short-monotonic {' '.join(match)}")

    def entries(self, *match: str) -> list[dict[str, str]]:
        """The journal's entries with their fields.

        Of a process that ends at once the journal may not see any more in which unit it was.
        """
        text = self.sh(f"journalctl --sync; journalctl --no-pager --boot --output=json {' '.join(match)}")
        return [json.loads(line) for line in text.splitlines()]
