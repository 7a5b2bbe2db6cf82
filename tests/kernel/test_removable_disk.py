"""A disk that starts its own backup: plugged in, backed up, closed, powered off; on dm-crypt, with systemd and udev.

The disk is a loop device, which udev sees come and go like any other. udisksctl and notify-send are stand-ins: the one
notes its arguments and lets the disk go, the other notes what a user would see.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from support.configuration import configuration
from support.guest import Guest
from support.unit_volume import SET_UP, UNITS, UnitVolume

pytestmark = [
    pytest.mark.outside,
    pytest.mark.slow,
    pytest.mark.needs("linux.uml", "systemctl", "udevadm", "dbus-daemon", "dmsetup", "mkfs.ext4"),
]
UUID = "8d9b5d9a-6f0c-4c2e-9d43-0f7a5f6d2c11"
UNIT = "lukshook-offsite-disk.service"
CONFIG = configuration(
    "offsite",
    image="/srv/disk/backup.img",
    mountpoint="/mnt/back-up",
    size="64MiB",
    fill="sparse",
    space="warn",
    key="file:/etc/lukshook/offsite.key",
)
#: The disk, with the volume on it; what a desktop has; and who is logged in: nobody (65534), with a bus.
DISK = f"""
mkdir -p /srv/disk /run/user/65534
truncate --size=200M /disk/usb.img
mkfs.ext4 -q -U {UUID} /disk/usb.img
cat >/usr/local/bin/udisksctl <<'END'
#!/bin/sh
echo "$*" >>/job/udisksctl
losetup --detach $(losetup --noheadings --output=NAME --associated=/disk/usb.img)
END
cat >/usr/local/bin/notify-send <<'END'
#!/bin/sh
echo "$(id -un) $DBUS_SESSION_BUS_ADDRESS $*" >>/tmp/told
END
chmod 755 /usr/local/bin/udisksctl /usr/local/bin/notify-send
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("/run/user/65534/bus")'
chown nobody /run/user/65534/bus
"""
PLUG = "losetup --find /disk/usb.img"
OFF = f"power-off --no-user-interaction --block-device=/dev/disk/by-uuid/{UUID}\n"
TOLD = "nobody unix:path=/run/user/65534/bus Backup offsite "


@pytest.fixture(name="house", scope="module")
def _house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnitVolume]:
    with Guest(disk=tmp_path_factory.mktemp("removable") / "disk", systemd=True) as guest:
        house = UnitVolume(guest, f"{SET_UP}{DISK}")
        house.sh(f"{house.set_up}{PLUG}; udevadm settle; mount /dev/disk/by-uuid/{UUID} /srv/disk")
        house.write("/etc/lukshook/config.toml", CONFIG)
        house.sh("umask 077; lukshook key new >/etc/lukshook/offsite.key; lukshook create offsite")
        unit = house.lines("removable-disk")
        assert "rsync -aAXH --delete /home /mnt/back-up/data" in unit
        house.unit(UNIT, unit.replace("rsync -aAXH --delete /home /mnt/back-up/data", "sh -e /job/backup"))
        house.sh(f"systemctl enable {UNIT}; umount /srv/disk; {unplug()}")
        yield house


def unplug() -> str:
    return "losetup --detach $(losetup --noheadings --output=NAME --associated=/disk/usb.img)"


def plug_in(house: UnitVolume, backup: str) -> None:
    """Plug the disk in; return when its service has ended."""
    house.write("/job/backup", backup)
    house.sh("rm -f /job/udisksctl /tmp/told /job/began")
    house.sh(PLUG)
    house.wait_for("test -e /job/began || systemctl is-failed " + UNIT)
    house.wait_for(f"systemctl show -p ActiveState {UNIT} | grep -Eq '=(inactive|failed)'")


def test_a_good_backup_powers_the_disk_off(house: UnitVolume) -> None:
    """Twice: the second time, the disk is the same one that comes again."""
    for number in (1, 2):
        plug_in(house, f"touch /job/began; echo {number} >/mnt/back-up/data/file")

        assert OFF == house.sh("cat /job/udisksctl")
        assert f"{TOLD}done, unplug the disk\n" == house.sh("cat /tmp/told")
        assert ("inactive", "success") == (house.show(UNIT, "ActiveState"), house.show(UNIT, "Result"))
        assert ("done", "") == (house.status()["last_result"], house.what_stands())
        assert "" == house.sh("findmnt --noheadings /srv/disk || true")
        house.wait_for(f"! test -e /dev/disk/by-uuid/{UUID}")


def test_a_backup_that_fails_leaves_the_disk_on(house: UnitVolume) -> None:
    """Closed, and still mounted for whoever looks; the message says where."""
    plug_in(house, "touch /job/began; exit 23")

    assert "no" == house.sh("test -e /job/udisksctl && echo yes || echo no").strip()
    assert f"{TOLD}failed, so the disk stays on: journalctl -u {UNIT}\n" == house.sh("cat /tmp/told")
    assert "failed" == house.show(UNIT, "ActiveState")
    assert "failed" == house.status()["last_result"]
    assert "/srv/disk" in house.sh("findmnt --noheadings /srv/disk")
    assert "" == house.sh("dmsetup ls | grep lukshook || true").strip()
    house.sh(f"umount /srv/disk; {unplug()}")


def test_the_key_by_prompt(house: UnitVolume) -> None:
    """systemd's password agents are asked; who answers does not have to be there before."""
    key = house.sh("cat /etc/lukshook/offsite.key").strip()
    asking = "command:systemd-ask-password --timeout=300 Key_of_offsite:"
    house.write("/etc/lukshook/config.toml", CONFIG.replace("file:/etc/lukshook/offsite.key", asking))
    house.write("/job/backup", "touch /job/began; echo asked >/mnt/back-up/data/file")
    house.sh("rm -f /job/udisksctl /tmp/told /job/began")

    house.sh(PLUG)
    house.wait_for("ls /run/systemd/ask-password/ask.*")
    house.sh("grep -q Key_of_offsite: /run/systemd/ask-password/ask.*; test ! -e /job/began")
    reply = "/lib/systemd/systemd-reply-password 1 $(sed -n s/^Socket=//p /run/systemd/ask-password/ask.*)"
    house.sh(f"printf %s '{key}' | {reply}")

    house.wait_for("test -e /job/udisksctl")
    house.wait_for(f"systemctl show -p ActiveState {UNIT} | grep -q =inactive")
    assert f"{TOLD}done, unplug the disk\n" == house.sh("cat /tmp/told")
    house.write("/etc/lukshook/config.toml", CONFIG)
    assert key not in house.sh(f"journalctl --no-pager --unit={UNIT}; cat {UNITS}/{UNIT}")


def test_a_disk_that_is_pulled_out_stops_the_service(house: UnitVolume) -> None:
    """The command is ended, and the backup does not count as done."""
    before = house.status()["last_success"]
    house.write("/job/backup", "touch /job/began; sleep 300")
    house.sh(f"rm -f /job/udisksctl /tmp/told /job/began; {PLUG}")
    house.wait_for("test -e /job/began")
    began = time.monotonic()

    house.sh(f"systemctl stop 'dev-disk-by\\x2duuid-{UUID.replace('-', chr(92) + 'x2d')}.device' || true")
    house.sh(f"umount --lazy /srv/disk; {unplug()}")
    house.wait_for(f"systemctl show -p ActiveState {UNIT} | grep -Eq '=(inactive|failed)'")

    assert time.monotonic() - began < 250
    assert before == house.status()["last_success"]
    assert "no" == house.sh("test -e /job/udisksctl && echo yes || echo no").strip()
