"""What a killed fuse2fs leaves is mended with real tools: a super block whose checksum does not fit."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from attrs import evolve

from lukshook.errors import Refused
from lukshook.filesystems import ext4_repair
from lukshook.filesystems.kind import Facts
from lukshook.layers import filesystem
from lukshook.layers.base import Opening
from lukshook.layers.filesystem import facts
from lukshook.system.command import SystemRunner
from lukshook.system.secret import Secret
from lukshook.volume.judgement import Accepting
from lukshook.volume.known_state import Known

pytestmark = [pytest.mark.files, pytest.mark.needs("mkfs.ext4", "e2fsck", "debugfs")]
#: Places in the super block that libext2fs writes apart: free blocks, time of the last write, state, KiB written.
FIELDS = {"free blocks": 0x0C, "time": 0x30, "state": 0x3A, "written": 0x178}


@pytest.fixture(name="image")
def _image(tmp_path: Path) -> Path:
    """64 MiB: one group, so there is no second super block."""
    image = tmp_path / "image"
    with image.open("xb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", image], check=True, capture_output=True)
    return image


def found(image: Path) -> Facts:
    """What the super block says."""
    facts_of = facts("ext4", str(image))
    assert facts_of is not None
    return facts_of


def e2fsck(option: str, image: Path) -> int:
    """Its exit status."""
    return subprocess.run(["e2fsck", option, image], check=False, capture_output=True).returncode


def tear(image: Path, place: int) -> None:
    """Change two bytes and leave the checksum as it was."""
    with image.open("r+b") as file:
        file.seek(1024 + place)
        old = file.read(2)
        file.seek(1024 + place)
        file.write(bytes([old[0] ^ 1, old[1]]))


def test_a_whole_super_block_is_not_torn(image: Path) -> None:
    """Our checksum is the one that mkfs has written."""
    assert not ext4_repair.is_torn(str(image))


def test_without_checksums_nothing_is_torn(image: Path) -> None:
    """The field is not in use then."""
    subprocess.run(["tune2fs", "-O", "^metadata_csum", image], check=True, capture_output=True)
    tear(image, 0x3FC)

    assert not ext4_repair.is_torn(str(image))


@pytest.mark.parametrize("place", FIELDS.values(), ids=FIELDS)
def test_a_torn_super_block_is_mended(image: Path, place: int) -> None:
    """Where e2fsck alone gives up; what was written stays as it was counted."""
    tear(image, place)
    before = found(image)
    assert ext4_repair.is_torn(str(image))
    assert 8 == e2fsck("-fy", image)

    assert 0 == ext4_repair.repair(str(image), SystemRunner()).code

    assert not ext4_repair.is_torn(str(image))
    assert 0 == e2fsck("-fn", image)
    assert (before.uuid, True) == (found(image).uuid, (found(image).written or 0) >= (before.written or 0))


@pytest.mark.parametrize("options", [("-b", "4096"), ("-b", "1024"), ("-b", "4096", "-O", "^64bit")])
@pytest.mark.parametrize("blank", [True, False])
def test_inode_tables_that_were_never_written(image: Path, options: tuple[str, ...], blank: bool) -> None:
    """As mkfs was told."""
    lazily = ("-E", f"nodiscard,lazy_itable_init={int(blank)}")
    with image.open("r+b") as file:
        file.truncate(300 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", *options, *lazily, image], check=True, capture_output=True)

    assert blank == ext4_repair.has_blank_tables(str(image))


def opening(warnings: list[str]) -> Opening:
    """Of a volume that this host does not know yet."""
    runner, trust = SystemRunner(), Accepting("v", Known())
    return Opening("v", runner, Path("/nowhere"), lambda: Secret(b""), "", trust, warn=warnings.append)


@pytest.mark.parametrize("state", ["clean", "not clean"])
def test_an_ordinary_user_is_told_that_it_was_mended(image: Path, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the state was written already, and only the checksum was not."""
    tear(image, FIELDS["time" if state == "clean" else "state"])
    assert (state == "clean") == found(image).clean
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    warnings: list[str] = []

    filesystem.Spec().open(str(image), opening(warnings))

    assert "was not closed cleanly" in warnings[0]
    assert (True, 0) == (found(image).clean, e2fsck("-fn", image))


def test_root_refuses_it(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's ext4 does not leave that behind; it is left as it is."""
    tear(image, FIELDS["state"])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    before = image.read_bytes()

    with pytest.raises(Refused, match="is damaged and cannot be repaired automatically"):
        filesystem.Spec().open(str(image), opening([]))

    assert before == image.read_bytes()


def test_what_cannot_be_mended_says_so(image: Path) -> None:
    """A super block that is none: the last check is not passed."""
    with image.open("r+b") as file:
        file.seek(1024)
        file.write(bytes(1024))

    assert ext4_repair.repair(str(image), SystemRunner()).code


@pytest.mark.parametrize("doubted", [True, False])
def test_after_lost_writes_what_calls_itself_clean_is_checked_whole(image: Path, doubted: bool) -> None:
    """A bitmap that never reached the store: the super block knows nothing of it."""
    subprocess.run(["debugfs", "-w", "-R", "freeb 1 30", image], check=True, capture_output=True)
    assert found(image).clean
    assert e2fsck("-fn", image)

    filesystem.Spec().open(str(image), evolve(opening([]), doubted=doubted))

    assert doubted == (0 == e2fsck("-fn", image))


@pytest.mark.parametrize("user", [0, 1000])
def test_a_root_folder_that_is_lost_is_never_called_repaired(
    image: Path, user: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a file system that was unmounted; nor by the next opening, when e2fsck has noted there what it found."""
    subprocess.run(["debugfs", "-w", "-R", "clri <2>", image], check=True, capture_output=True)
    assert found(image).clean
    monkeypatch.setattr(os, "geteuid", lambda: user)

    for doubted in (True, True, False):
        with pytest.raises(Refused, match="is damaged and cannot be repaired automatically"):
            filesystem.Spec().open(str(image), evolve(opening([]), doubted=doubted))
        assert not found(image).clean
