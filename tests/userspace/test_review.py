"""What a careful stranger tried, and must not get through with."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from lukshook.layers import mount
from lukshook.system import kernel
from lukshook.system.command import read
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


def under_fstab(volume: CliVolume, options: str, *script: Sequence[object]) -> subprocess.CompletedProcess[str]:
    """Commands in a mount namespace of their own, where /etc/fstab has a line for the mount point."""
    fstab = volume.folder / "fstab"
    fstab.write_text(f"/dev/mapper/something {volume.mountpoint} ext4 {options} 0 0\n")
    lines = [shlex.join(map(str, command)) for command in (("mount", "--bind", fstab, "/etc/fstab"), *script)]
    argv = ["unshare", "--mount", "sh", "-ec", "\n".join(lines)]
    return subprocess.run(argv, env=volume.environment, capture_output=True, text=True, check=False)


LUKSHOOK = (sys.executable, "-m", "lukshook")


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


def test_an_image_that_is_away_keeps_its_pins_and_header_backup(volume: CliVolume) -> None:
    """`create` for a volume that is known would forget all that opens the old image safely."""
    aside = volume.image.with_name("aside")
    volume.image.rename(aside)
    before = {file.name: file.read_bytes() for file in volume.state_folder.iterdir() if file.is_file()}

    said = volume.refusal(73, "create", NAME)

    assert "already has state for volume" in said
    assert before == {file.name: file.read_bytes() for file in volume.state_folder.iterdir() if file.is_file()}
    aside.rename(volume.image)
    volume.do("before-backup", NAME)
    volume.do("after-backup", NAME)


def test_unmounting_behind_our_back_is_no_success(volume: CliVolume) -> None:
    """umount exits 0 also where writing failed, so nobody knows what became of the backup."""
    volume.do("before-backup", NAME)
    subprocess.run([*(["umount"] if ROOT else ["fusermount3", "-u"]), volume.mountpoint], check=True)

    said = volume.refusal(74, "after-backup", NAME)

    assert "was no longer mounted at" in said
    assert volume.is_bare()
    assert "LAST RESULT   not safe" in volume.do("status", NAME)


def test_options_of_run_stand_before_the_command(volume: CliVolume) -> None:
    """`--soft` may stand behind the name; anything else there is a slip, not a program."""
    assert "" == volume.do("run", NAME, "--soft", "--", "true")
    assert "has no option --sof" in volume.refusal(64, "run", NAME, "--sof", "--", "true")


def test_a_link_in_the_place_of_the_data_folder_is_refused(volume: CliVolume, tmp_path: Path) -> None:
    """Whoever can write into the volume must not lead the next backup out of it."""
    volume.do("before-backup", NAME)
    volume.data.rmdir()
    volume.data.symlink_to(tmp_path)
    volume.do("after-backup", NAME)

    assert "symbolic link" in volume.refusal(65, "before-backup", NAME)
    assert volume.is_bare()


def test_who_said_after_is_no_user_any_more(volume: CliVolume) -> None:
    """When closing failed because somebody stands in the volume, `close` by hand does it as soon as they are gone."""
    volume.do("before-backup", NAME)
    with subprocess.Popen(["sleep", "60"], cwd=volume.mountpoint) as holder:
        begun = time.monotonic()
        assert "sleep" in volume.refusal(71, "after-backup", NAME)
        assert 30 <= time.monotonic() - begun
        holder.kill()

    volume.do("close", NAME)
    assert volume.is_bare()


def test_the_userspace_engine_does_not_pretend_to_compact(volume: CliVolume) -> None:
    """qemu swallows it."""
    assert "cannot be compacted" in volume.refusal(69, "compact", NAME, "--yes")


@pytest.mark.roots
def test_a_block_device_in_the_place_of_the_image_is_refused(volume: CliVolume, tmp_path: Path) -> None:
    """A store can make one that leads to a disk of this machine: no command takes that disk for the image."""
    disk, content = tmp_path / "disk", os.urandom(32 << 20)
    disk.write_bytes(content)
    image = volume.image.rename(volume.image.with_name("aside"))
    loop = subprocess.run(["losetup", "--find", "--show", disk], capture_output=True, text=True, check=True).stdout
    try:
        os.mknod(volume.image, stat.S_IFBLK | 0o600, Path(loop.strip()).stat().st_rdev)
        for command in ("header restore", "open", "header verify", "key rotate"):
            assert "is a block device" in volume.refusal(65, *command.split(), NAME)
        shutil.rmtree(volume.state_folder)
        assert "already exists" in volume.refusal(73, "create", NAME)
    finally:
        subprocess.run(["losetup", "--detach", loop.strip()], check=True)
    assert content == disk.read_bytes()
    volume.image.unlink()
    image.rename(volume.image)
