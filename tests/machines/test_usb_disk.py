"""A USB disk, as far as Debian can tell: plugged in, it backs up, is powered off, and comes back.

qemu emulates the machine, its USB controller and the disk. Kernel, systemd, udev, udisks and dm-crypt are Debian's own,
and so is what a user sees: somebody has logged in, and dunst shows the messages. The tests of a release share one
machine, in this order.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from attrs import frozen

from lukshook.errors import Unavailable
from support import debian_roots as roots
from support import whole_machine
from support.configuration import configuration
from support.unit_volume import UnitVolume
from support.whole_machine import WholeMachine

pytestmark = [
    pytest.mark.slow,  # an emulated processor is some 20 times slower
    pytest.mark.needs("mmdebstrap", "unshare", "setpriv", "pivot_root", "mkfs.ext4", whole_machine.QEMU),
    pytest.mark.skipif(os.geteuid() != 0, reason="a root folder is built and entered by root"),
]
#: Seconds for what takes one on a machine with a processor of its own.
PATIENCE = 900.0
UUID = "8d9b5d9a-6f0c-4c2e-9d43-0f7a5f6d2c11"
NODE = f"/dev/disk/by-uuid/{UUID}"
UNIT = "lukshook-offsite-disk.service"
CONFIG = configuration(
    "offsite",
    image="/srv/disk/backup.img",
    mountpoint="/mnt/back-up",
    size="64MiB",
    key="file:/etc/lukshook/offsite.key",
)
#: Somebody who logs in, and the desktop of that user, as far as a message needs one.
DESKTOP_PACKAGES = ("login", "libpam-systemd", "dbus-user-session", "libnotify-bin", "dunst", "xvfb")
DESKTOP = """[Service]
User=anna
PAMName=login
TTYPath=/dev/tty7
StandardInput=tty
Environment=DISPLAY=:1
ExecStart=/bin/sh -c 'Xvfb :1 & until test -S /tmp/.X11-unix/X1; do sleep 1; done; exec dunst'
"""
#: dunst's own question for what it has shown; what still stands there is closed first.
SHOWN = """
uid=$(id -u anna)
dunst() {
    runuser -u anna -- env DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$uid/bus busctl --user --json=short call \
        org.freedesktop.Notifications /org/freedesktop/Notifications org.dunstproject.cmd0 $1
}
dunst NotificationCloseAll >/dev/null
dunst NotificationListHistory
"""
#: Notes how each start of the service has ended.
NOTING = """[Unit]
OnSuccess=note@success.service
OnFailure=note@failure.service
"""
NOTE = """[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo %i >>/job/ended'
"""
SET_UP = "useradd --create-home anna; mkdir -p /srv/disk /etc/lukshook /mnt/back-up /job; touch /job/ended"
PULLED_OUT = ("Backup offsite", "failed: the disk was pulled out too early")
FAILED = ("Backup offsite", f"failed, so the disk stays on: journalctl -u {UNIT}")
DONE = ("Backup offsite", "done, unplug the disk")


@frozen
class Place:
    """A machine, and a disk that somebody plugs in."""

    machine: WholeMachine
    disk: Path

    @property
    def house(self) -> UnitVolume:
        return UnitVolume(self.machine, SET_UP)

    def plug_in(self) -> None:
        """Returns at once."""
        self.machine.plug_in(self.disk)

    def pull_out(self) -> None:
        """Returns when the machine has seen it."""
        self.machine.pull_out()
        self.house.wait_for(f"! test -e {NODE}", PATIENCE)

    def run_instead(self, script: str) -> None:
        """The service runs *script* as its backup; "" for what is printed."""
        house = self.house
        house.write("/job/backup", f"touch /job/begun\n{script}\n")
        house.sh("rm -f /job/begun")
        command = "ExecStart=\nExecStart=/usr/local/bin/lukshook run offsite -- sh -e /job/backup\n"
        house.unit(f"{UNIT}.d/other.conf", f"[Service]\n{command if script else ''}")

    def ended(self) -> list[str]:
        """How each start of the service has ended."""
        return self.house.sh("cat /job/ended").split()

    def back_up(self) -> str:
        """Plug the disk in; how the service has ended."""
        number = len(self.ended())
        self.plug_in()
        return self.end_after(number)

    def end_after(self, number: int) -> str:
        """Wait for one more end than *number*; which it is."""
        self.house.wait_for(f"test $(wc -l </job/ended) -gt {number}", PATIENCE)
        return self.ended()[-1]

    def shown(self) -> list[tuple[str, str]]:
        """Title and text of the messages that the user has seen, in their order."""
        found = json.loads(self.house.sh(SHOWN))["data"][0]
        newest_first = [(one["summary"]["data"], one["body"]["data"]) for one in found]
        return newest_first[::-1]

    def usb_disks(self) -> str:
        """The kernel's name for each disk at the USB controller; it has none for one that is powered off."""
        return self.house.sh("ls -d /sys/bus/usb/drivers/usb-storage/*:* 2>/dev/null || true").strip()


@pytest.fixture(name="place", scope="module", params=roots.RELEASES)
def _place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The volume lies on the disk, the printed unit is enabled, and the disk is not plugged in."""
    folder = tmp_path_factory.mktemp("usb")
    disk = folder / "disk"
    with disk.open("xb") as file:
        file.truncate(200 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-U", UUID, disk], check=True)
    try:
        built = whole_machine.build(request.param, folder, whole_machine.ANY_HARDWARE, *DESKTOP_PACKAGES)
    except roots.CannotBuild as error:
        pytest.fail(f"no machine with {roots.RELEASES[request.param]} could be built: {error}", pytrace=False)
    try:
        with WholeMachine(built) as machine:
            place = Place(machine, disk)
            set_up(place)
            yield place
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


@pytest.fixture(autouse=True)
def _nothing_plugged_in(place: Place) -> Iterator[None]:
    """A test that fails leaves no disk to the next one."""
    yield
    with suppress(Unavailable):
        place.machine.pull_out()


def set_up(place: Place) -> None:
    """As docs/removable-disks.md says."""
    house = place.house
    house.sh(house.set_up)
    house.unit("desktop.service", DESKTOP)
    house.sh("systemctl start desktop")
    house.wait_for(SHOWN, PATIENCE)
    place.plug_in()
    house.wait_for(f"test -e {NODE}", PATIENCE)
    assert "ID_BUS=usb" in house.sh(f"udevadm info --query=property --name={NODE}")
    house.sh(f"mount {NODE} /srv/disk")
    house.write("/etc/lukshook/config.toml", CONFIG)
    house.sh("umask 077; lukshook key new >/etc/lukshook/offsite.key; lukshook create offsite")
    house.unit(UNIT, house.lines("removable-disk"))
    house.unit("note@.service", NOTE)
    house.unit(f"{UNIT}.d/note.conf", NOTING)
    house.sh(f"systemctl enable {UNIT}; umount /srv/disk")
    place.pull_out()


def check_done(place: Place, content: str) -> None:
    """Backed up, closed, powered off; the user was told."""
    house = place.house
    assert DONE == place.shown()[-1]
    assert ("", "") == (place.usb_disks(), house.sh(f"findmnt --noheadings {NODE} /srv/disk || true"))
    assert ("done", "") == (house.status()["last_result"], house.what_stands())
    place.pull_out()
    place.run_instead(f"grep -qx {content} /mnt/back-up/data/home/anna/file")
    assert "success" == place.back_up(), house.journal("-u", UNIT)
    place.pull_out()


def test_a_user_is_logged_in(place: Place) -> None:
    """The user who gets the messages has a session of logind."""
    assert "anna" in place.house.sh("loginctl --no-legend list-sessions")


@pytest.mark.parametrize("also", ["", f"mkdir -p /media/disk; mount {NODE} /media/disk"])
def test_a_disk_that_is_plugged_in_is_backed_up(place: Place, also: str) -> None:
    """Each time, also where somebody has mounted it elsewhere too, and then it is powered off."""
    house, number = place.house, len(place.ended())
    house.sh(f"echo {number} >/home/anna/file")
    place.run_instead(f"rsync -aAXH --delete /home /mnt/back-up/data; {also}" if also else "")

    assert "success" == place.back_up(), house.journal("-u", UNIT)

    check_done(place, str(number))


def test_a_backup_that_fails_leaves_the_disk_on(place: Place) -> None:
    """The volume is closed, and the disk stays mounted. It can be pulled out then, and the next plug backs up."""
    house = place.house
    house.sh("echo later >/home/anna/file")
    place.run_instead("exit 23")
    messages = len(place.shown())

    assert "failure" == place.back_up()

    assert [FAILED] == place.shown()[messages:]
    said = house.sh("journalctl --sync; journalctl --no-pager --boot --identifier=lukshook")
    assert "run offsite: ended with 23 after" in said, house.journal("-u", UNIT)  # so it was opened, and closed
    assert "failed" == house.status()["last_result"]
    assert "" == house.what_stands()
    assert place.usb_disks()
    assert "/srv/disk" in house.sh(f"findmnt --noheadings {NODE}")
    place.pull_out()
    place.run_instead("")
    assert "success" == place.back_up(), house.journal("-u", UNIT)
    check_done(place, "later")


def test_a_disk_that_is_pulled_out_in_the_middle(place: Place) -> None:
    """The backup does not count, nothing stays open, and with the next plug it is repaired and backed up."""
    house = place.house
    before, number, messages = house.status()["last_success"], len(place.ended()), len(place.shown())
    house.sh("echo last >/home/anna/file")
    place.run_instead("while :; do date >>/mnt/back-up/data/lost; sync /mnt/back-up/data/lost; sleep 1; done")
    place.plug_in()
    house.wait_for("test -e /job/begun", PATIENCE)
    house.wait_for("test -s /mnt/back-up/data/lost", PATIENCE)

    place.pull_out()

    assert "failure" == place.end_after(number)
    assert [PULLED_OUT] == place.shown()[messages:]
    assert "" == house.sh("findmnt --noheadings /srv/disk || true")
    assert before == house.status()["last_success"]
    assert "" == house.what_stands()
    place.run_instead("")
    assert "success" == place.back_up(), house.journal("-u", UNIT)
    check_done(place, "last")
