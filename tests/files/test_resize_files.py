"""File systems in plain files, changed by the real tools through the table's commands."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from lukshook.command import SystemRunner
from lukshook.layers import filesystem

MIB = 1 << 20
RUNNER = SystemRunner()
pytestmark = pytest.mark.needs("mkfs.ext4", "e2fsck", "resize2fs", "debugfs")


@pytest.fixture(name="image")
def _image(tmp_path: Path) -> Path:
    """An ext4 of 128 MiB in a file, with 20 MiB in it."""
    image, content = tmp_path / "image", tmp_path / "content"
    image.touch()
    os.truncate(image, 128 * MIB)
    content.write_bytes(os.urandom(20 * MIB))
    for command in filesystem.make_commands(filesystem.Spec(), str(image)):
        RUNNER.run(command)
    subprocess.run(["debugfs", "-w", "-R", f"write {content} content", image], check=True, capture_output=True)
    return image


def resize(image: Path, length: int) -> int | None:
    """Check and resize as a closed volume is; the size after."""
    for command in filesystem.recheck_commands("ext4", str(image)):
        RUNNER.run(command)
    RUNNER.run(filesystem.resize_command("ext4", str(image), None, length))
    return filesystem.size("ext4", str(image), None, RUNNER)


def content_of(image: Path, place: Path) -> bytes:
    """The file inside, read by another tool."""
    subprocess.run(["debugfs", "-R", f"dump content {place}", image], check=True, capture_output=True)
    return place.read_bytes()


def test_the_size_that_is_asked_for_is_the_size_it_gets(image: Path, tmp_path: Path) -> None:
    """Up with the file and down again; what is inside stays."""
    os.truncate(image, 300 * MIB)
    assert [300 * MIB, 200 * MIB, 64 * MIB] == [resize(image, length * MIB) for length in (300, 200, 64)]
    os.truncate(image, 64 * MIB)
    assert (tmp_path / "content").read_bytes() == content_of(image, tmp_path / "out")
    subprocess.run(["e2fsck", "-f", "-n", image], check=True, capture_output=True)


def test_the_minimum_is_told_without_changing_a_byte(image: Path) -> None:
    """More than what is in it, less than all."""
    before = hashlib.sha256(image.read_bytes()).digest()
    least = filesystem.minimum("ext4", str(image), RUNNER)
    assert least is not None
    assert 20 * MIB < least < 64 * MIB
    assert before == hashlib.sha256(image.read_bytes()).digest()


def test_a_file_system_that_is_not_clean_tells_no_minimum(image: Path) -> None:
    """It has to be checked first."""
    subprocess.run(["debugfs", "-w", "-R", "set_super_value state 2", image], check=True, capture_output=True)
    assert filesystem.minimum("ext4", str(image), RUNNER) is None


def test_a_kind_that_is_not_shrunk_has_no_minimum(image: Path) -> None:
    """Nothing is run for it."""
    assert filesystem.minimum("xfs", str(image), RUNNER) is None


def test_the_kind_in_a_file_is_known_by_its_super_block(image: Path, tmp_path: Path) -> None:
    """And nothing is known in noise."""
    noise = tmp_path / "noise"
    noise.write_bytes(os.urandom(MIB))
    assert ["ext4", None] == [filesystem.kind_of(str(image)), filesystem.kind_of(str(noise))]
