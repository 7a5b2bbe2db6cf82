"""Where a mount point can lie: behind a link, and where its guard is a bind mount."""

from __future__ import annotations

import os
import subprocess

import pytest

from lukshook.system import kernel
from support.volume import NAME, CliVolume

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")
ROOT = os.geteuid() == 0


def test_links_above_the_mount_point(volume: CliVolume) -> None:
    """/home may be a link to /var/home: the kernel knows the mount by its real path, and so do we."""
    real, link = volume.folder / "real", volume.folder / "link"
    real.mkdir()
    link.symlink_to(real)
    (real / "mnt").mkdir()
    volume.configure(mountpoint=str(link / "mnt"))

    volume.do("before-backup", NAME)
    assert (real / "mnt/data").is_dir()
    volume.do("after-backup", NAME)

    assert [] == volume.standing()
    if ROOT:
        subprocess.run(["chattr", "-i", real / "mnt"], check=True)


@pytest.mark.roots
def test_a_guard_that_was_cut_off_half_way_is_finished(
    volume: CliVolume, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Where there is no chattr +i, the guard is a bind mount that is made read-only afterwards."""
    folder = tmp_path_factory.mktemp("ram")
    subprocess.run(["mount", "-t", "ramfs", "ramfs", folder], check=True)
    try:
        (folder / "mnt").mkdir()
        subprocess.run(["mount", "--bind", folder / "mnt", folder / "mnt"], check=True)
        volume.configure(mountpoint=str(folder / "mnt"))

        volume.do("before-backup", NAME)
        assert (folder / "mnt/data").is_dir()
        volume.do("after-backup", NAME)

        with pytest.raises(OSError, match="Read-only file system"):
            (folder / "mnt/file").touch()
        assert 1 == [found.target for found in kernel.mounts()].count(str(folder / "mnt"))
    finally:
        subprocess.run(["umount", "--recursive", folder], check=True)
