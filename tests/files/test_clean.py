"""When a file system needs no check before it is mounted: asked of ext4 images that real tools made."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lukshook.filesystems.kind import Facts
from lukshook.layers.filesystem import facts

pytestmark = pytest.mark.files


def tool(*argv: str | Path) -> None:
    """Run one of e2fsprogs' tools."""
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    subprocess.run([str(word) for word in argv], check=True, env=path, capture_output=True)


def found(image: Path) -> Facts:
    """What the super block says."""
    facts_of = facts("ext4", str(image))
    assert facts_of is not None
    return facts_of


@pytest.fixture(name="image")
def _image(tmp_path: Path) -> Path:
    image = tmp_path / "image"
    with image.open("xb") as file:
        file.truncate(16 << 20)
    tool("mkfs.ext4", "-q", image)
    return image


def test_fresh_is_clean(image: Path) -> None:
    """A file system that was just made needs no check."""
    assert found(image).clean


@pytest.mark.parametrize(
    "damage",
    ["ssv state 0", "ssv state 3", "ssv error_count 1", "feature needs_recovery"],
    ids=["not unmounted", "errors", "errors noted", "journal to replay"],
)
def test_damaged_is_not_clean(image: Path, damage: str) -> None:
    """What was not unmounted in good order, or has noted errors, is checked."""
    tool("debugfs", "-w", "-R", damage, image)

    assert not found(image).clean


@pytest.mark.parametrize(
    "due",
    [("-c", "1", "-C", "1"), ("-i", "1d", "-T", "20200101"), ("-i", "1d", "-T", "20990101")],
    ids=["mounts", "time", "checked in the future"],
)
def test_due_is_not_clean(image: Path, due: tuple[str, ...]) -> None:
    """A check that tune2fs(8) was told to do regularly is done."""
    tool("tune2fs", *due, image)

    assert not found(image).clean


@pytest.mark.parametrize("later", [("-c", "9", "-C", "1"), ("-i", "9999d", "-T", "now")], ids=["mounts", "time"])
def test_not_due_yet_is_clean(image: Path, later: tuple[str, ...]) -> None:
    """A regular check whose time has not come is left out."""
    tool("tune2fs", *later, image)

    assert found(image).clean


def test_a_repair_from_a_backup_super_block_lowers_the_count(tmp_path: Path) -> None:
    """So lukshook takes what was repaired like that for an older image, until it is told."""
    image = tmp_path / "image"
    with image.open("xb") as file:
        file.truncate(256 << 20)
    tool("mkfs.ext4", "-q", "-b", "4096", image)
    tool("debugfs", "-w", "-R", "ssv kbytes_written 100000", image)
    before = found(image).written
    with image.open("r+b") as file:
        file.seek(1024)
        file.write(bytes(1024))
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(
        ["e2fsck", "-fy", "-b", "32768", "-B", "4096", image], env=path, capture_output=True, check=False
    )
    assert 1 == done.returncode
    after = found(image).written
    assert before == 100000
    assert after is not None and after < 1000
