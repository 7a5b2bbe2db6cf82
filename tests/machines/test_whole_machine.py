"""lukshook on whole machines, Debian 12 and 13 with their own kernel, systemd, udev and udisks: the kernel engine.

The tests of a release share one machine, in this order, and the last two start it again.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from support import debian_roots as roots
from support import whole_machine
from support.unit_volume import CONFIG, UnitVolume
from support.whole_machine import Disk, WholeMachine

pytestmark = [
    pytest.mark.slow,  # an emulated processor is some 20 times slower
    pytest.mark.needs("mmdebstrap", "unshare", "setpriv", "pivot_root", "mkfs.ext4", whole_machine.QEMU),
    pytest.mark.skipif(os.geteuid() != 0, reason="a root folder is built and entered by root"),
]
#: Seconds for what takes one on a machine with a processor of its own.
PATIENCE = 900.0
SET_UP = "mkdir -p /srv/store /etc/lukshook /mnt/back-up /job"
OURS = CONFIG.replace("/disk/store", "/srv/store")
#: A job whose script a test writes.
JOB = """[Service]
Type=oneshot
ExecStart=/bin/sh /job/script
"""
TIMER = """[Timer]
OnActiveSec=1
AccuracySec=1
"""
BORGMATIC_12 = """location:
    source_directories: [/etc/lukshook]
    repositories: [/mnt/back-up/data/borg]
storage:
    unknown_unencrypted_repo_access_is_ok: true
retention:
    keep_daily: 7
consistency:
    checks: [{name: disabled}]
"""
BORGMATIC_13 = """source_directories: [/etc/lukshook]
repositories:
    - path: /mnt/back-up/data/borg
unknown_unencrypted_repo_access_is_ok: true
keep_daily: 7
checks: [{name: disabled}]
"""
BORGMATIC = {"bookworm": BORGMATIC_12, "trixie": BORGMATIC_13}


class Life:
    """One machine after the other, from one disk."""

    def __init__(self, release: str, disk: Disk) -> None:
        self.release = release
        self.disk = disk
        self.machine = WholeMachine(disk)

    @property
    def house(self) -> UnitVolume:
        """The volume on the machine that runs now."""
        return UnitVolume(self.machine, SET_UP)

    def boot(self) -> UnitVolume:
        """Start it again."""
        self.machine = WholeMachine(self.disk).__enter__()
        return self.house


@pytest.fixture(scope="module", params=roots.RELEASES)
def life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """A machine on which the volume "offsite" was created."""
    folder = tmp_path_factory.mktemp("whole")
    try:
        life = Life(request.param, whole_machine.build(request.param, folder))
    except roots.CannotBuild as error:
        pytest.fail(f"no machine with {roots.RELEASES[request.param]} could be built: {error}", pytrace=False)
    try:
        life.boot().create(OURS)
        yield life
    finally:
        life.machine.power_cut()
        subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


def job(house: UnitVolume, script: str) -> None:
    """The service "job", which runs *script* with the lines of host systemd around it."""
    house.write("/job/script", script)
    house.unit("job.service", JOB)
    house.drop_in("job.service")


def test_udev_and_udisks_leave_it_alone(life: Life) -> None:
    """Both look at every new device; a volume opens and closes all the same, and nothing of it stays."""
    house = life.house
    house.sh("systemctl is-active systemd-udevd udisks2")

    for number in range(2):
        house.sh(f"lukshook open offsite; echo {number} >/mnt/back-up/data/file; udisksctl dump >/job/udisks")
        assert "lukshook-offsite" in house.sh("cat /job/udisks")
        house.sh("lukshook close offsite")
        assert "" == house.what_stands()
    assert "1\n" == house.sh("lukshook run offsite -- cat /mnt/back-up/data/file")


def test_a_timer_starts_a_service_with_hooks(life: Life) -> None:
    """The drop-in that `lukshook hooks systemd` prints opens the volume before, and closes it after."""
    house = life.house
    job(house, "findmnt --noheadings --output=SOURCE /mnt/back-up\ntouch /mnt/back-up/data/by-timer\n")
    house.unit("job.timer", TIMER)

    house.sh("systemctl start job.timer")
    house.wait_for("systemctl show --property=ExecMainExitTimestampMonotonic job | grep -v =0", PATIENCE)
    house.wait_for("systemctl show --property=ActiveState job | grep -E 'inactive|failed'", PATIENCE)

    assert "success" == house.show("job", "Result"), house.journal("-u", "job")
    assert "/dev/mapper/lukshook-offsite" in house.journal("-u", "job")
    assert ("done", "") == (house.status()["last_result"], house.what_stands())


def test_borgmatic_as_it_is_shipped(life: Life) -> None:
    """Debian's own sandboxed unit and the drop-in; only its minute of waiting is taken out."""
    house = life.house
    house.write("/etc/borgmatic/config.yaml", BORGMATIC[life.release])
    house.sh("lukshook run offsite -- borg init --encryption=none /mnt/back-up/data/borg")
    house.unit("borgmatic.service.d/at-once.conf", "[Service]\nExecStartPre=\n")
    house.drop_in("borgmatic.service")

    house.sh("systemctl start borgmatic || { journalctl --no-pager -u borgmatic; false; }")

    assert ("done", "") == (house.status()["last_result"], house.what_stands())
    assert 1 == len(house.sh("lukshook run offsite -- borg list --short /mnt/back-up/data/borg").splitlines())


def test_servers_for_tests_do_not_start(life: Life) -> None:
    """What tests/run installs runs neither now nor after the next boot; apt alone would start it for good."""
    house = life.house
    house.sh("DEBIAN_FRONTEND=noninteractive apt-get -qqy --no-install-recommends install tang")
    house.sh("systemctl is-active tangd.socket && systemctl is-enabled tangd.socket")
    house.sh("DEBIAN_FRONTEND=noninteractive apt-get -qqy purge tang")

    house.sh(f"python3 -I /root/lukshook/tests/support/quiet_install.py {' '.join(whole_machine.SERVERS)}")

    for unit in whole_machine.SERVERS.values():
        shown = house.sh(f"systemctl show --property=LoadState,ActiveState,UnitFileState --value {unit}")
        assert ["loaded", "inactive", "disabled"] == shown.split(), unit
    house.sh("test ! -e /usr/sbin/policy-rc.d")


def test_a_shutdown_closes_what_is_open(life: Life) -> None:
    """The unit that `lukshook hooks systemd-shutdown` prints; the next boot finds nothing to repair."""
    house = life.house
    house.unit("lukshook-close-offsite.service", house.lines("systemd-shutdown"))
    house.sh("systemctl enable --now lukshook-close-offsite")
    house.sh("lukshook open offsite; echo kept >/mnt/back-up/data/open")
    opened = house.sh("date +%s")

    console = life.machine.power_off()

    assert "Power down" in console
    house = life.boot()
    found = house.status()
    assert (True, 0) == (found["last_close"] >= float(opened), found["unclean"])
    assert "kept\n" == house.sh("lukshook run offsite -- cat /mnt/back-up/data/open")


def test_a_backup_goes_on_after_a_power_cut(life: Life) -> None:
    """What was flushed is there, the next run opens the volume, and nothing of the one before stands in its way."""
    house = life.house
    job(house, "cd /mnt/back-up/data; echo kept >flushed; sync\ntouch /job/begun; while :; do date >>lost; done\n")
    house.sh("systemctl start --no-block job")
    house.wait_for("test -e /job/begun", PATIENCE)

    life.machine.power_cut()

    house = life.boot()
    assert "" == house.what_stands()
    assert "kept\n" == house.sh("lukshook run offsite -- cat /mnt/back-up/data/flushed")
    assert "done" == house.status()["last_result"]
    assert "" == house.what_stands()
