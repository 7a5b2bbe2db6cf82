"""Closing after a backup that somebody else has disturbed: unmounted, or kept busy."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from support.volume import NAME, CliVolume

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")
ROOT = os.geteuid() == 0


def test_unmounting_behind_our_back_is_no_success(volume: CliVolume) -> None:
    """umount exits 0 also where writing failed, so nobody knows what became of the backup."""
    volume.do("before-backup", NAME)
    subprocess.run([*(["umount"] if ROOT else ["fusermount3", "-u"]), volume.mountpoint], check=True)

    said = volume.refusal(74, "after-backup", NAME)

    assert "was no longer mounted at" in said
    assert volume.is_bare()
    assert "LAST RESULT   not safe" in volume.do("status", NAME)


def test_after_a_loss_the_file_system_is_checked_once(volume: CliVolume) -> None:
    """The whole of it, although it calls itself clean: lost writes may have been those of directories and bitmaps."""
    volume.do("before-backup", NAME)
    subprocess.run([*(["umount"] if ROOT else ["fusermount3", "-u"]), volume.mountpoint], check=True)
    volume.refusal(74, "after-backup", NAME)

    checks = []
    for _ in range(2):
        opened = volume.lukshook("-v", "before-backup", NAME)
        assert 0 == opened.returncode, opened.stderr
        checks.append("e2fsck -f" in opened.stderr)
        volume.do("after-backup", NAME)

    assert [True, False] == checks


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
