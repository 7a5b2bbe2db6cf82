"""Lengths that do not fit, and mounts that fail: what is damage, and what is only not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lukshook import size
from lukshook.errors import Refused, Unavailable
from lukshook.layers import mount
from lukshook.layers.base import Opening
from lukshook.luks import header
from lukshook.system.command import Result, change
from lukshook.system.secret import Secret
from lukshook.volume.judgement import Pinned, check_known_length
from lukshook.volume.known_state import Known
from support.fake_runner import FakeRunner

OFFSET = 16 << 20


@given(st.integers(0, 1 << 50), st.integers(0, 1 << 50))
def test_two_sizes_that_differ_are_shown_differently(one: int, other: int) -> None:
    """However close they are."""
    assume(one != other)
    found, wanted = size.show_instead(one, other).removesuffix(" bytes").split(" instead of ")

    assert found.lstrip("~") != wanted.lstrip("~")


@given(st.integers(1, 1 << 45), st.integers(-(1 << 20), 1 << 20))
def test_a_known_length_is_short_by_a_byte_and_never_by_more(extent: int, more: int) -> None:
    """A longer image is fine."""
    known, length = Known(pins={"offset": OFFSET}, extent=extent), OFFSET + extent + more
    if more >= 0:
        check_known_length("v", known, length)
    else:
        with pytest.raises(Refused, match="is shorter than its file system"):
            check_known_length("v", known, length)


@given(st.sampled_from([512, 4096]), st.integers(1, 1 << 30), st.integers(0, 4095))
def test_a_length_that_can_be_mapped_is_one_of_whole_sectors(sector: int, sectors: int, more: int) -> None:
    """What is less than 512 bytes is seen by neither engine."""
    digest = header.Digest("sha256", 1000, "", "")
    judged = header.Header("luks2", "", "", 64, sector, OFFSET, digest, ())
    length = OFFSET + sector * sectors + more
    if more // 512 * 512 % sector:
        with pytest.raises(Refused, match=f"not a whole number of its {sector}-byte sectors"):
            header.check_sectors("the image", judged, length)
    else:
        header.check_sectors("the image", judged, length)


SAID = {
    "mount(2) system call failed: Structure needs cleaning.": Refused,
    "mount(2) system call failed: Bad message.": Refused,
    "wrong fs type, bad option, bad superblock on /dev/x, missing codepage or helper program, or other error.": Refused,
    "can't read superblock on /dev/x.": Refused,
    "unknown filesystem type 'xfs'.": Unavailable,
    "permission denied.": Unavailable,
    "/dev/x already mounted or mount point busy.": Unavailable,
}


def mounting(said: str, device: Path) -> None:
    runner = FakeRunner({"mount": Result(32, err=f"mount: /mnt: {said}\n       dmesg(1) may have more information.\n")})
    opening = Opening("v", runner, device.parent, lambda: Secret(b""), "", Pinned("v", Known()))
    mount._run(change("mount", "-t", "ext4", "--", str(device), "/mnt"), opening)


@pytest.mark.parametrize("said", SAID)
def test_what_the_kernel_says_of_the_content_is_damage(said: str, tmp_path: Path) -> None:
    """65; all else is 69, or what the system call gives."""
    device = tmp_path / "device"
    device.write_bytes(bytes(1 << 16))

    with pytest.raises(SAID[said], match="cannot be mounted"):
        mounting(said, device)


def test_a_device_that_gives_nothing_is_no_damage(tmp_path: Path) -> None:
    """The kernel says the same of a store that fails."""
    with pytest.raises(Unavailable):
        mounting("can't read superblock on /dev/x.", tmp_path / "gone")
