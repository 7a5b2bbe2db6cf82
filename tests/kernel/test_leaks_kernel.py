"""The leak counter sees loop devices, mounts and mappings, and sees them go."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support import leaks


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def new_things(counter: leaks.Counter, before: leaks.Snapshot) -> list[str]:
    return [line for line in counter.snapshot().leaked_since(before) if not line.startswith("process ")]


@pytest.fixture
def counter(tmp_path: Path) -> leaks.Counter:
    return leaks.Counter(roots=(tmp_path,), folders=(), alone="LUKSHOOK_GUEST" in os.environ)


@pytest.mark.needs("losetup")
def test_a_loop_device_is_noticed(tmp_path: Path, counter: leaks.Counter) -> None:
    """A loop device on a file of the test is named with its file."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    before = counter.snapshot()
    device = run("losetup", "--find", "--show", str(image))
    try:
        assert [f"loop device {device} on {image}"] == new_things(counter, before)
    finally:
        run("losetup", "--detach", device)
    assert [] == counter.leaked_since(before)


@pytest.mark.needs("mount")
def test_a_mount_is_noticed(tmp_path: Path, counter: leaks.Counter) -> None:
    """A mount is named with its mount point."""
    before = counter.snapshot()
    run("mount", "-t", "tmpfs", "leaktest", str(tmp_path))
    try:
        leaked = new_things(counter, before)
        assert [f"mount {tmp_path} of leaktest"] == [line.partition(" (")[0] for line in leaked]
    finally:
        run("umount", str(tmp_path))
    assert [] == counter.leaked_since(before)


@pytest.mark.needs("dmsetup")
def test_a_mapping_is_noticed(counter: leaks.Counter) -> None:
    """A mapping is named."""
    before = counter.snapshot()
    run("dmsetup", "create", "leaktest", "--table", "0 8 error")
    try:
        leaked = new_things(counter, before)
        assert ["mapping leaktest"] == [line.partition(" (")[0] for line in leaked]
    finally:
        run("dmsetup", "remove", "leaktest")
    assert [] == counter.leaked_since(before)
