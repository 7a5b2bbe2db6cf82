"""Cases of an image that somebody else has attached to a loop device: whatever is written there is not seen by us."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.volume import NAME, CliVolume


@contextmanager
def attached(file: Path) -> Iterator[str]:
    """A loop device on *file*."""
    argv = ["losetup", "--find", "--show", str(file)]
    node = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield node
    finally:
        subprocess.run(["losetup", "--detach", node], check=True)


@pytest.mark.parametrize("command", ["before-backup", "open --read-only"])
def test_the_image_is_not_opened_beside_it(volume: CliVolume, command: str) -> None:
    """69, and the device stays as it is: both would destroy each other's data. A lock does not show it."""
    before = volume.standing()
    with attached(volume.image) as node:
        standing = volume.standing()
        assert f"is already attached to {node}, and not by lukshook" in volume.refusal(69, *command.split(), NAME)
        assert standing == volume.standing()
        assert "0" == Path(f"/sys/block/{Path(node).name}/loop/autoclear").read_text().strip()
    assert before == volume.standing()
    volume.do("before-backup", NAME)
    volume.do("after-backup", NAME)


def test_another_name_of_the_image_does_not_hide_it(volume: CliVolume) -> None:
    """A hard link: the kernel says which file it is."""
    other = volume.folder / "other"
    os.link(volume.image, other)
    with attached(other) as node:
        assert node in volume.refusal(69, "before-backup", NAME)
    other.unlink()
