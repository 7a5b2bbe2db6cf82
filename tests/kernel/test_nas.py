"""examples/nas-nfs and examples/nas-smb as their READMEs say, with systemd, a real NFS server and a real Samba."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from attrs import frozen

from support.guest import PROJECT, Guest
from support.nas import NFS, SMB, Nas
from support.store_examples import EXAMPLES, replaced, text
from support.unit_volume import UnitVolume

pytestmark = [
    pytest.mark.outside,
    pytest.mark.slow,  # a machine for each server, and servers that are down for longer than lukshook waits
    pytest.mark.needs("linux.uml", "systemctl", "udevadm", "dbus-daemon", "rsync", "dmsetup"),
    pytest.mark.needs(*NFS.programs, *SMB.programs),
]
#: A backup that writes, and waits for the disk each time, until it is told to stop; then it keeps the digest.
WRITER = """
import hashlib, os, pathlib
digest, stop = hashlib.sha256(), pathlib.Path("/run/stop")
with open("/mnt/backupspace/data/file", "wb", buffering=0) as file:
    while not stop.exists() or file.tell() < 4_000_000:
        if file.tell() > 20_000_000:
            file.seek(0); file.truncate(); digest = hashlib.sha256()
        digest.update(block := os.urandom(200_000)); file.write(block); os.fsync(file.fileno())
        pathlib.Path("/run/blocks").write_text(str(file.tell()))
pathlib.Path("/run/digest").write_text(digest.hexdigest())
"""


@frozen
class Setup:
    """A machine with a NAS, and a volume there."""

    house: UnitVolume
    nas: Nas


@pytest.fixture(params=[NFS, SMB], ids=lambda nas: nas.example, scope="module")
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """As the README says."""
    nas: Nas = request.param
    with Guest(disk=tmp_path_factory.mktemp(nas.example) / "disk", systemd=True) as guest:
        house = UnitVolume(guest)
        house.sh(f"echo 127.0.0.1 nas.example.org >>/etc/hosts\n{nas.prepare}\n{nas.start}")
        house.sh("mount -t tmpfs none /home; mount -t tmpfs -o mode=700 none /var/lib/lukshook; echo mine >/home/file")
        house.sh(f"ln -sf {PROJECT}/.venv/bin/lukshook /usr/local/bin/; cp -r {EXAMPLES}/{nas.example} /run/example")
        house.write("/run/example/config.toml", replaced(text(nas.example, "config.toml"), ("500GiB", "64MiB")))
        house.sh(f"cd /run/example\n{instructions(nas.example)}")
        yield Setup(house, nas)


def instructions(example: str) -> str:
    """The lines of the README from the one on that nothing is installed."""
    lines = re.findall(r"^ {4}(.*)$", text(example, "README.md").partition("## Every day")[0], re.MULTILINE)
    begin = next(number for number, line in enumerate(lines) if line.startswith("install -D"))
    return "\n".join(lines[begin:])


def test_the_first_backup_is_there(setup: Setup) -> None:
    """The service has made it, on the NAS, and closed the volume."""
    assert ("success", "done", "") == (
        setup.house.show("backup", "Result"),
        setup.house.status()["last_result"],
        setup.house.what_stands(),
    )
    assert "mine\n" == setup.house.sh("lukshook run offsite -- cat /mnt/backupspace/data/home/file")
    assert "warning" not in setup.house.sh("lukshook check offsite")
    assert "backup.img\n" == setup.house.sh("ls /disk/nas/volume1/backup")


def test_another_host_is_kept_out(setup: Setup) -> None:
    """By the server."""
    setup.house.sh("lukshook before-backup offsite")
    try:
        setup.house.sh(setup.nas.is_locked)
    finally:
        setup.house.sh("lukshook after-backup offsite")
    with pytest.raises(AssertionError):
        setup.house.sh(setup.nas.is_locked)


def test_a_server_that_restarts_loses_nothing(setup: Setup) -> None:
    """The backup waits for it."""
    house = setup.house
    house.write("/run/writer", WRITER)
    house.sh("rm -f /run/stop; systemd-run --quiet --unit=writer lukshook run offsite -- python3 /run/writer")
    house.wait_for("test -s /run/blocks")
    house.sh(setup.nas.stop)
    house.sh(setup.nas.start)
    house.sh("rm /run/blocks; touch /run/stop")
    house.wait_for("! systemctl is-active --quiet writer", 300)

    assert ("done", "") == (house.status()["last_result"], house.what_stands()), house.journal("-u", "writer")
    found = house.sh("lukshook run offsite -- sha256sum /mnt/backupspace/data/file").split()[0]
    assert house.sh("cat /run/digest") == found


def test_a_server_that_is_away_when_the_backup_ends(setup: Setup) -> None:
    """It stays open and says so; when the server is back it is closed, and nothing is lost."""
    house = setup.house
    house.sh("lukshook before-backup offsite; head -c 5000000 /dev/urandom >/mnt/backupspace/data/file")
    written = house.sh("sha256sum </mnt/backupspace/data/file")
    house.sh(setup.nas.stop)
    assert "does not answer" in house.sh("lukshook after-backup offsite", status=71)
    assert "open" == house.status()["state"]
    house.sh(setup.nas.start)

    house.wait_for("lukshook after-backup offsite", 300)
    assert "" == house.what_stands()
    assert written == house.sh("lukshook run offsite -- sh -c 'sha256sum </mnt/backupspace/data/file'")


def test_a_server_that_is_off_when_the_backup_begins(setup: Setup) -> None:
    """Nothing is backed up to the bare folder; once the NAS is on, the automount finds it."""
    house = setup.house
    house.sh(f"umount /srv/nas; {setup.nas.stop}")
    house.sh("lukshook before-backup offsite", status=69)
    assert "" == house.what_stands()
    house.sh(setup.nas.start)
    house.wait_for("lukshook run offsite -- true", 300)
