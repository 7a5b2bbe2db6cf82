"""An image that is not as long as its file system needs, with the kernel engine, for each kind of file system."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import short_image
from support.volume import NAME, CliVolume, copied, created

pytestmark = pytest.mark.needs("cryptsetup", "dmsetup", "losetup", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "debugfs")
KINDS = {"ext4": "64MiB", "xfs": "352MiB", "btrfs": "160MiB"}


@pytest.fixture(scope="module", params=KINDS)
def of_kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliVolume]:
    """A volume of one kind of file system that was created once."""
    subprocess.run(["modprobe", request.param], check=False)
    folder = tmp_path_factory.mktemp(request.param)
    yield from created(folder, "kernel", size=KINDS[request.param], filesystem=request.param)


@pytest.fixture
def copy(of_kind: CliVolume, tmp_path: Path) -> Iterator[CliVolume]:
    """A volume that is closed."""
    yield from copied(of_kind, tmp_path)


@pytest.mark.parametrize(("of_kind", "end"), short_image.pairs(KINDS, short_image.SHORTER), indirect=["of_kind"])
def test_a_shorter_image_is_refused(copy: CliVolume, end: str) -> None:
    """65 with one line from whatever looks, also where 75 was asked for; resize does not cover the traces."""
    offset = short_image.offset_of(copy)

    short_image.check_refused(copy, offset, short_image.SHORTER[end](offset, copy.image.stat().st_size))


@pytest.mark.parametrize("change", [short_image.SECTOR, -short_image.SECTOR])
def test_a_length_that_cannot_be_mapped_is_called_that(copy: CliVolume, change: int) -> None:
    """A LUKS2 mapping has sectors of 4096 bytes; without what was known, nobody knows more."""
    os.truncate(copy.image, copy.image.stat().st_size + change)
    short_image.forget_extent(copy)

    assert "not a whole number of its 4096-byte sectors" in copy.refusal(65, "before-backup", NAME, "--soft")
    assert 65 == copy.lukshook("check", NAME).returncode
    assert copy.is_bare()


def test_a_host_that_has_never_seen_the_size_sees_it_when_it_opens(copy: CliVolume) -> None:
    """An older lukshook wrote the state: `check` cannot tell, an opening and a resize can."""
    short_image.forget_extent(copy)
    length = copy.image.stat().st_size - short_image.MIB
    os.truncate(copy.image, length)

    assert short_image.LINE in copy.refusal(65, "resize", NAME, "+64MiB")
    assert short_image.LINE in copy.refusal(65, "before-backup", NAME, "--soft")
    assert length == copy.image.stat().st_size


def test_an_image_that_was_cut_while_it_is_open_does_not_grow(copy: CliVolume) -> None:
    """Zeroes would take the place of what is lost, and nobody would know."""
    copy.do("open", NAME)
    length = copy.image.stat().st_size
    os.truncate(copy.image, length - short_image.MIB)

    said = copy.refusal(65, "resize", NAME, "+64MiB")

    assert short_image.LINE in said
    assert length - short_image.MIB == copy.image.stat().st_size
    assert short_image.LINE in str(short_image.facts(copy)["problem"])
    os.truncate(copy.image, length)
    copy.do("close", NAME)


def test_what_is_known_follows_a_resize_of_an_open_volume(copy: CliVolume) -> None:
    """A byte less than it has grown to is too little."""
    copy.do("open", NAME)
    copy.do("resize", NAME, "+128MiB")  # the kernel resizes btrfs to no less than 256 MiB
    copy.do("close", NAME)
    assert (0, None) == (copy.lukshook("check", NAME).returncode, short_image.facts(copy)["problem"])

    os.truncate(copy.image, copy.image.stat().st_size - short_image.MIB)

    assert short_image.LINE in copy.lukshook("check", NAME).stdout


def by_hand(volume: CliVolume, *lines: str) -> None:
    """Change what is in a closed volume, behind lukshook's back."""
    script = f"""set -e
        base64 --decode {volume.key} | cryptsetup open --key-file=- {volume.image} by_hand
        trap 'cryptsetup close by_hand' EXIT
        """ + "\n".join(lines)
    subprocess.run(["sh", "-c", script], check=True, capture_output=True)


@pytest.mark.parametrize("of_kind", ["ext4", "xfs"], indirect=True)  # btrfs is checked before every mount
def test_damage_under_a_clean_super_block_is_refused_at_the_first_opening(copy: CliVolume) -> None:
    """Everything up to 32 MiB but the super block is gone; of ext4 the inode of the root folder alone."""
    zero = "dd if=/dev/zero of=/dev/mapper/by_hand bs=4096 conv=fsync"
    zeroes = (f"{zero} seek=1 count=15", f"{zero} seek=17 count=8000")
    root = ("debugfs -w -R 'clri <2>' /dev/mapper/by_hand",)
    by_hand(copy, *(root if "ext4" in copy.config.read_text() else zeroes))

    assert "damaged" in copy.refusal(65, "before-backup", NAME, "--soft")
    assert copy.is_bare()
