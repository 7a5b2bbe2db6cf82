"""Something else, or nothing, lies in the place of the image or of the data folder."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from support.volume import NAME, CliVolume

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")


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


def test_a_link_in_the_place_of_the_data_folder_is_refused(volume: CliVolume, tmp_path: Path) -> None:
    """Whoever can write into the volume must not lead the next backup out of it."""
    volume.do("before-backup", NAME)
    volume.data.rmdir()
    volume.data.symlink_to(tmp_path)
    volume.do("after-backup", NAME)

    assert "symbolic link" in volume.refusal(65, "before-backup", NAME)
    assert volume.is_bare()


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
