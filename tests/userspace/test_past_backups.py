"""Every backup of a real volume is in its history, and what hinders that costs no backup."""

from __future__ import annotations

import json

import pytest

from support.volume import NAME, CliVolume

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "mkfs.ext4")


def test_each_backup_is_noted_once(volume: CliVolume) -> None:
    """A good one and a failed one; opening by hand, looking and a second "after" are none."""
    volume.do("run", NAME, "--", "dd", "if=/dev/zero", f"of={volume.data}/file", "bs=1M", "count=4", "status=none")
    volume.do("before-backup", NAME)
    volume.do("after-backup", NAME, "--failed")
    volume.do("after-backup", NAME)
    volume.do("open", NAME, "--read-only")
    volume.do("close", NAME)

    first, second = json.loads(volume.do("history", NAME, "--json"))["runs"]

    (status,) = json.loads(volume.do("status", "--json"))
    assert ("done", "failed") == (first["result"], second["result"])
    assert 4 << 20 <= first["written"] < 8 << 20
    assert 4 << 20 < first["used"] < first["capacity"] == status["capacity"]
    assert first["ended"] == pytest.approx(status["last_success"], abs=60)
    assert first["duration"] > 0


def test_a_history_that_cannot_be_written_fails_no_backup(volume: CliVolume) -> None:
    (volume.state_folder / f"{NAME}.history").unlink(missing_ok=True)
    (volume.state_folder / f"{NAME}.history").mkdir()

    done = volume.lukshook("run", NAME, "--", "true")

    assert 0 == done.returncode
    assert f"warning: the history of volume {NAME} is not written: Is a directory\n" == done.stderr
