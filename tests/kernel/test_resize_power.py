"""A power cut while a volume changes its size: what the disk holds then is whole, and the same command finishes."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.guest import Guest, Result

pytestmark = [pytest.mark.outside, pytest.mark.needs("linux.uml", "modprobe", "mkfs.ext4", "cryptsetup")]
MIB = 1 << 20
HOME = "/disk/home"
LUKSHOOK = f"{sysconfig.get_path('scripts')}/lukshook"
CUT = str(Path(__file__).parents[1] / "support/kill_after_command.py")
ENVIRONMENT = {"LUKSHOOK_STATE_DIR": f"{HOME}/state", "LUKSHOOK_CONFIG": f"{HOME}/config.toml"}
MAKE = f"""
mkdir -p {HOME}/mount
head -c 32 /dev/urandom | base64 >{HOME}/key
cat >{HOME}/config.toml <<END
[volumes.v]
image = "{HOME}/image"
mountpoint = "{HOME}/mount"
size = "96MiB"
key = "file:{HOME}/key"
END
chmod 600 {HOME}/key
{LUKSHOOK} create v >/dev/null
{LUKSHOOK} resize v 256MiB
{LUKSHOOK} open v
for number in 1 2 3 4 5; do head -c 3000000 /dev/urandom >{HOME}/mount/data/$number; done
cd {HOME}/mount/data
sha256sum * >{HOME}/digests
cd /
{LUKSHOOK} close v
sync
"""
LOOK = f"""
{LUKSHOOK} open v
cd {HOME}/mount/data
sha256sum --check --quiet {HOME}/digests
cd /
{LUKSHOOK} close v
losetup --find --show --read-only {HOME}/image >/tmp/loop
base64 -d {HOME}/key | cryptsetup open --readonly --key-file=- "$(cat /tmp/loop)" checked
e2fsck -f -n /dev/mapper/checked
cryptsetup close checked
losetup --detach "$(cat /tmp/loop)"
"""


def sh(guest: Guest, script: str) -> Result:
    done = guest.run(["sh", "-e", "-c", script], env=ENVIRONMENT, timeout=600)
    assert 0 == done.returncode, done.stdout + done.stderr
    return done


def cut_short(guest: Guest, after: str, arguments: Sequence[str]) -> None:
    """lukshook until the command that begins with *after* has ended, and then no power."""
    argv = [sys.executable, CUT, after, "lukshook", *arguments]
    assert -9 == guest.run(argv, env=ENVIRONMENT, timeout=600).returncode
    guest.power_cut()


@pytest.fixture(name="made", scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with a volume on it that is closed and flushed."""
    disk = tmp_path_factory.mktemp("made") / "disk"
    with Guest(disk=disk, disk_size=900 * MIB) as guest:
        sh(guest, MAKE)
    return disk


@pytest.fixture(name="disk")
def _disk(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    subprocess.run(["cp", "--sparse=always", made, tmp_path / "disk"], check=True)
    return tmp_path / "disk"


GROW, SHRINK = ("resize", "v", "+64MiB"), ("resize", "v", "-64MiB", "--yes")
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("arguments", "after", "target"),
    [
        pytest.param(GROW, "fallocate", 320, id="grow: the file"),
        pytest.param(GROW, "cryptsetup open", 320, id="grow: opened", marks=SLOW),
        pytest.param(GROW, "mount --options-source=mtab -o remount,init_itable", 320, id="grow: mounted", marks=SLOW),
        pytest.param(GROW, "resize2fs", 320, id="grow: the file system"),
        pytest.param(SHRINK, "cryptsetup close", 192, id="shrink: looked at", marks=SLOW),
        pytest.param(SHRINK, "e2fsck -f", 192, id="shrink: checked", marks=SLOW),
        pytest.param(SHRINK, "resize2fs", 192, id="shrink: the file system"),
        pytest.param(SHRINK, "truncate", 192, id="shrink: the file", marks=SLOW),
    ],
)
def test_after_a_power_cut_the_volume_opens_and_the_same_command_finishes(
    disk: Path, arguments: tuple[str, ...], after: str, target: int
) -> None:
    """Right after a step, with nothing flushed that the step did not flush."""
    with Guest(disk=disk) as guest:
        cut_short(guest, after, arguments)
    with Guest(disk=disk) as guest:
        sh(guest, LOOK)
        sh(guest, f"{LUKSHOOK} {' '.join(arguments)}")
        assert f"{target * MIB}\n" == sh(guest, f"stat -c %s {HOME}/image").stdout
        sh(guest, LOOK)


def test_a_power_cut_below_a_volume_that_grows_in_use(disk: Path) -> None:
    """What was synced before is there; the volume opens, and grows as it was going to."""
    with Guest(disk=disk) as guest:
        sh(guest, f"{LUKSHOOK} open v")
        cut_short(guest, "resize2fs", GROW)
    with Guest(disk=disk) as guest:
        sh(guest, LOOK)
        sh(guest, f"{LUKSHOOK} {' '.join(GROW)}")
        assert f"{320 * MIB}\n" == sh(guest, f"stat -c %s {HOME}/image").stdout
        sh(guest, LOOK)
