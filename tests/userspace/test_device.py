"""A volume whose image is a block device: what is said of it without opening it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.volume import NAME, CliVolume

pytestmark = [pytest.mark.roots, pytest.mark.needs("losetup")]
MIB = 1 << 20


@pytest.fixture
def device(tmp_path: Path) -> Iterator[CliVolume]:
    """A volume in a block device of 48 MiB that it was not yet made on."""
    volume = CliVolume(tmp_path, "userspace")
    volume.prepare()
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, 48 * MIB)
    node = subprocess.run(["losetup", "--find", "--show", disk], check=True, capture_output=True, text=True)
    volume.configure(image=node.stdout.strip(), size=None)
    yield volume
    subprocess.run(["losetup", "--detach", node.stdout.strip()], check=True)


def test_a_device_has_its_own_size_and_lies_on_no_store(device: CliVolume) -> None:
    """Not the 0 bytes of its inode, nor the free space of /dev."""
    fact = json.loads(device.do("status", "--json", NAME))[0]
    assert (48 * MIB, 48 * MIB, None) == (fact["size"], fact["allocated"], fact["store_free"])
    shown = device.do("status", NAME)
    assert "48MiB, 48MiB allocated)" in shown
    assert "on the store" not in shown


@pytest.mark.parametrize("command", ["create", "open", "--dry-run open", "before-backup", "trust"])
def test_the_userspace_engine_refuses_a_device_before_it_changes_anything(device: CliVolume, command: str) -> None:
    """qemu takes regular files only; its message came late, with a hint on /dev/fuse."""
    before = device.standing()

    done = device.lukshook(*command.split(), NAME)

    assert 69 == done.returncode, done.stderr
    assert "the userspace engine cannot open a block device: /dev/loop" in done.stderr
    assert 'engine = "kernel"' in done.stderr
    assert before == device.standing()


def test_check_says_that_the_engine_cannot_open_a_device(device: CliVolume) -> None:
    """It reported no failure, and opening failed."""
    done = device.lukshook("check", NAME)

    assert 69 == done.returncode, done.stdout
    assert "fail     the userspace engine cannot open a block device" in done.stdout
