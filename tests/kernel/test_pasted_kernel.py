"""The scripts of pasted_dry_run_cases.py, on real dm-crypt, in a file and on a block device."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.pasted_dry_run_cases import (  # noqa: F401 - pytest finds them here
    blank_in,
    filled,
    paste,
    test_a_pasted_after_backup_closes,
    test_a_pasted_before_backup_opens,
    test_a_pasted_create_makes_the_volume,
    test_a_pasted_resize_changes_the_size,
)
from support.volume import NAME, CliVolume

pytestmark = pytest.mark.needs("cryptsetup", "dmsetup", "losetup", "mkfs.ext4")


@pytest.fixture
def blank(tmp_path: Path) -> Iterator[CliVolume]:
    """A configured volume of which nothing is there yet."""
    yield from blank_in(tmp_path, "kernel")


@pytest.fixture
def volume(blank: CliVolume) -> CliVolume:
    """A volume with a file in it, closed."""
    return filled(blank)


def test_a_block_device_needs_no_loop_device(blank: CliVolume) -> None:
    """Nobody attaches one, and no line acts on another device; a whole life by pasted lines."""
    disk = blank.folder / "disk"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    done = subprocess.run(["losetup", "--find", "--show", disk], capture_output=True, text=True, check=True)
    node = done.stdout.strip()
    try:
        blank.configure(image=node, size=None)
        assert "losetup" not in paste(blank, "create", NAME)
        blank.do("run", NAME, "--", "sh", "-c", f"echo content > {blank.data}/file")
        assert "losetup" not in paste(blank, "before-backup", NAME)
        assert "content\n" == (blank.data / "file").read_text()
        for command in (["umount", str(blank.mountpoint)], ["cryptsetup", "close", f"lukshook-{NAME}"]):
            subprocess.run(command, check=True)
    finally:
        subprocess.run(["losetup", "--detach", node], check=True)


def test_a_pasted_resize_grows_a_volume_in_use(volume: CliVolume) -> None:
    """The image, the loop device, the mapping and the file system, one after the other."""
    volume.do("before-backup", NAME)
    before = os.statvfs(volume.mountpoint).f_blocks

    paste(volume, "resize", NAME, "80MiB")

    assert 80 << 20 == volume.image.stat().st_size
    assert os.statvfs(volume.mountpoint).f_blocks > before
    volume.do("after-backup", NAME)
    volume.do("before-backup", NAME)
    assert "content\n" == (volume.data / "file").read_text()
    volume.do("after-backup", NAME)


def test_a_pasted_compact_gives_blocks_back(volume: CliVolume) -> None:
    """What was deleted is a hole in the image afterwards, and the volume is closed."""
    volume.do("run", NAME, "--", "sh", "-c", f"head -c 8M /dev/urandom > {volume.data}/large; rm {volume.data}/large")
    before = volume.image.stat().st_blocks

    paste(volume, "compact", NAME)

    assert [] == volume.standing()
    assert volume.image.stat().st_blocks < before
    volume.do("open", NAME, "--read-only")
    assert "content\n" == (volume.data / "file").read_text()
    volume.do("close", NAME)
