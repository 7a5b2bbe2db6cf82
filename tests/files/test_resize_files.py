"""File systems in plain files, changed by the real tools through the table's commands."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from lukshook.layers import filesystem
from lukshook.system.command import CommandFailed, Result, SystemRunner
from support.fake_runner import FakeRunner

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


@pytest.mark.parametrize(
    ("features", "size", "mounted", "unmounted"),
    [
        ("none", 300, "", ""),
        ("sparse_super2", 300, "it has the feature sparse_super2", ""),
        ("bigalloc", 300, "", "it has the feature bigalloc"),
        ("stable_inodes", 300, "", ""),
        ("stable_inodes", 64, "it has the feature stable_inodes", "it has the feature stable_inodes"),
        ("^resize_inode,meta_bg", 300, "", ""),
        ("^resize_inode", 300, "", ""),
        ("^64bit", (16 << 20) + 1, *("without the feature 64bit it has 2^32 blocks at most",) * 2),
        ("^64bit", 16 << 20, "", ""),
        ("64bit", 256 << 20, *("it would have more than 2^32 inodes",) * 2),
        ("64bit", 255 << 20, "", ""),
    ],
)
def test_a_size_that_its_features_never_allow_is_known_before(
    tmp_path: Path, features: str, size: int, mounted: str, unmounted: str
) -> None:
    """By how resize2fs would have to do it; a size in MiB."""
    image = tmp_path / "made"
    image.touch()
    os.truncate(image, 128 * MIB)
    subprocess.run(
        ["mkfs.ext4", "-q", "-b", "4096", "-i", "65536", "-O", features, image], check=True, capture_output=True
    )
    found = tuple(filesystem.hindrance("ext4", str(image), size * MIB, mounted=how) for how in (True, False))
    assert (mounted, unmounted) == found


@pytest.mark.parametrize(("features", "size"), [("bigalloc", 300), ("stable_inodes", 64)])
def test_what_is_said_to_be_impossible_is(tmp_path: Path, features: str, size: int) -> None:
    """The tool itself refuses it."""
    image = tmp_path / "made"
    image.touch()
    os.truncate(image, 128 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-O", features, image], check=True, capture_output=True)
    os.truncate(image, max(size, 128) * MIB)
    RUNNER.run(filesystem.recheck_commands("ext4", str(image))[0])
    with pytest.raises(CommandFailed):
        RUNNER.run(filesystem.resize_command("ext4", str(image), None, size * MIB))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("", ""),
        ("set_inode_field <7> links_count 0", "Resize inode not valid.  Recreate? no"),
        ("clri content", "? no"),
        ("freeb 1000 20", "? no"),
    ],
)
def test_a_whole_check_says_what_is_wrong_and_changes_nothing(image: Path, fault: str, said: str) -> None:
    """Also where e2fsck exits 0, as for a damaged resize inode."""
    if fault:
        subprocess.run(["debugfs", "-w", "-R", fault, image], check=True, capture_output=True)
    before = image.read_bytes()
    wrong = filesystem.what_is_wrong("ext4", str(image), RUNNER)
    assert bool(said) == bool(wrong)
    assert said in wrong
    assert before == image.read_bytes()


def test_an_extent_tree_that_could_be_smaller_is_no_error() -> None:
    """e2fsck asks about it in passing, and exits 0."""
    told = "Inode 12 extent tree (at level 1) could be narrower.  Optimize? no\n"
    assert "" == filesystem.what_is_wrong("ext4", "/dev/x", FakeRunner({"e2fsck": Result(0, told)}))
