"""A line in /etc/fstab for the mount point: mount(8) adds its options, and a backup works with them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence

import pytest

from lukshook.layers import mount
from lukshook.system.command import read
from support.volume import NAME, CliVolume

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")
LUKSHOOK = (sys.executable, "-m", "lukshook")


def under_fstab(volume: CliVolume, options: str, *script: Sequence[object]) -> subprocess.CompletedProcess[str]:
    """Commands in a mount namespace of their own, where /etc/fstab has a line for the mount point."""
    fstab = volume.folder / "fstab"
    fstab.write_text(f"/dev/mapper/something {volume.mountpoint} ext4 {options} 0 0\n")
    lines = [shlex.join(map(str, command)) for command in (("mount", "--bind", fstab, "/etc/fstab"), *script)]
    argv = ["unshare", "--mount", "sh", "-ec", "\n".join(lines)]
    return subprocess.run(argv, env=volume.environment, capture_output=True, text=True, check=False)


@pytest.mark.roots
def test_options_in_fstab_that_cannot_be_changed_are_no_loss(volume: CliVolume) -> None:
    """mount(8) adds them to a remount of that mount point, and ext4 refuses data= then."""
    before, after = ((*LUKSHOOK, command, NAME) for command in ("before-backup", "after-backup"))

    done = under_fstab(volume, "noauto,noatime,data=journal", before, after)

    assert (0, "") == (done.returncode, done.stderr)
    assert volume.is_bare()


@pytest.mark.roots
def test_growing_keeps_the_mount_options_whatever_fstab_says(volume: CliVolume) -> None:
    """Neither of the two remounts takes nosuid, nodev and noexec from a volume in use."""
    place = str(volume.mountpoint)
    look = read("findmnt", "--noheadings", "--output=VFS-OPTIONS", "--mountpoint", place)
    growing = [command.argv for command in mount.growing("ext4", place, look)]
    before, after = ((*LUKSHOOK, command, NAME) for command in ("before-backup", "after-backup"))

    done = under_fstab(volume, "noauto,defaults", before, *growing, look.argv, after)

    assert (0, "") == (done.returncode, done.stderr)
    assert ["rw,nosuid,nodev,noexec,noatime"] * 2 == done.stdout.split()
