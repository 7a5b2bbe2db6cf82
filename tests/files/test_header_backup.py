"""Header backup, verify and restore on real LUKS headers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from attrs import evolve

from lukshook.errors import Denied, Exists, Refused, Unavailable
from lukshook.volume import header_backup, key_slots, known_state
from lukshook.volume.known_state import Known
from support import key_volume
from support.key_volume import KeyVolume, opens

pytestmark = [
    pytest.mark.files,
    pytest.mark.skipif(not shutil.which("cryptsetup"), reason="cryptsetup is not installed"),
]


@pytest.fixture(params=["luks2", "luks1"])
def house(tmp_path: Path, request: pytest.FixtureRequest) -> KeyVolume:
    (tmp_path / "house").mkdir()
    return key_volume.build(tmp_path / "house", request.param)


@pytest.fixture
def luks2(tmp_path: Path) -> KeyVolume:
    (tmp_path / "house").mkdir()
    return key_volume.build(tmp_path / "house")


def spoil(house: KeyVolume, length: int = 1024 * 1024) -> None:
    """Overwrite the start of the image with noise."""
    with house.image.open("r+b") as image:
        image.write(os.urandom(length))


def forget(house: KeyVolume) -> None:
    """As on another host: nothing is known of the volume."""
    known_state.KnownState(house.site.state_folder, house.volume.name).save(Known())


def test_a_broken_header_is_mended_from_the_backup(house: KeyVolume) -> None:
    """One command, and the key opens the image again."""
    spoil(house)
    assert not opens(house.image, house.key("own"))
    assert 0 in header_backup.restore(house.volume, house.site, None)
    assert opens(house.image, house.key("own"))
    assert "" != header_backup.verify(house.volume, house.site).uuid


def test_a_header_is_mended_from_a_file_on_a_host_that_knows_nothing(house: KeyVolume, tmp_path: Path) -> None:
    """The recovery sheet's case: new machine, key, image with a broken header, and the header's copy."""
    copy = tmp_path / "copy"
    header_backup.back_up(house.volume, house.site, copy)
    shutil.rmtree(house.site.state_folder)
    spoil(house)
    header_backup.restore(house.volume, house.site, copy)
    assert opens(house.image, house.key("own"))


def test_the_backup_is_one_that_cryptsetup_takes(house: KeyVolume) -> None:
    """Without lukshook: `cryptsetup luksHeaderRestore`."""
    spoil(house)
    key_volume.cryptsetup("luksHeaderRestore", f"--header-backup-file={house.backup()}", str(house.image))
    assert opens(house.image, house.key("own"))


def test_a_backup_is_readable_by_its_owner_alone(luks2: KeyVolume, tmp_path: Path) -> None:
    """Mode 0600, and never over another file."""
    copy = tmp_path / "copy"
    header_backup.back_up(luks2.volume, luks2.site, copy)
    assert 0o600 == copy.stat().st_mode & 0o777
    with pytest.raises(Exists):
        header_backup.back_up(luks2.volume, luks2.site, copy)


def test_another_volumes_header_is_not_restored(luks2: KeyVolume, tmp_path: Path) -> None:
    """By the pins, and where there are none by the UUID on the image; the image is left as it is."""
    (tmp_path / "other").mkdir()
    other = key_volume.build(tmp_path / "other")
    before = luks2.image.read_bytes()
    with pytest.raises(Refused, match="is not the last known header"):
        header_backup.restore(luks2.volume, luks2.site, other.backup())
    forget(luks2)
    with pytest.raises(Refused, match="has the header of another volume"):
        header_backup.restore(luks2.volume, luks2.site, other.backup())
    assert before == luks2.image.read_bytes()


def test_a_header_from_before_a_rotation_is_not_restored(luks2: KeyVolume, tmp_path: Path) -> None:
    """It would let the removed key in again."""
    copy = tmp_path / "copy"
    header_backup.back_up(luks2.volume, luks2.site, copy)
    key_slots.rotate(luks2.volume, luks2.site)
    with pytest.raises(Refused, match="is not the last known header") as caught:
        header_backup.restore(luks2.volume, luks2.site, copy)
    assert "removed keys" in caught.value.hint


def test_a_header_that_the_key_does_not_open_is_not_restored(luks2: KeyVolume, tmp_path: Path) -> None:
    """Where nothing else tells: a broken header, a host that knows nothing, another volume's backup."""
    (tmp_path / "other").mkdir()
    other = key_volume.build(tmp_path / "other")
    forget(luks2)
    spoil(luks2)
    before = luks2.image.read_bytes()
    with pytest.raises(Denied):
        header_backup.restore(luks2.volume, luks2.site, other.backup())
    assert before == luks2.image.read_bytes()


def test_what_is_no_header_is_not_restored(luks2: KeyVolume, tmp_path: Path) -> None:
    """A file of noise, and no file at all."""
    noise = tmp_path / "noise"
    noise.write_bytes(os.urandom(65536))
    with pytest.raises(Refused, match="is not a header backup"):
        header_backup.restore(luks2.volume, luks2.site, noise)
    luks2.backup().unlink()
    with pytest.raises(Unavailable, match="cannot be read"):
        header_backup.restore(luks2.volume, luks2.site, None)


def test_one_damaged_copy_is_told_and_mended(luks2: KeyVolume) -> None:
    """LUKS2 keeps its metadata twice; with one of them damaged the image opens still, and verify says so."""
    spoil(luks2, 4096)
    with pytest.raises(Refused, match="one of the two copies"):
        header_backup.verify(luks2.volume, luks2.site)
    header_backup.restore(luks2.volume, luks2.site, None)
    assert 2 == header_backup.verify(luks2.volume, luks2.site).copies


@pytest.mark.parametrize("damaged", [0, 16384])
def test_half_a_header_does_not_replace_a_whole_backup(luks2: KeyVolume, damaged: int) -> None:
    """Whichever copy is damaged, the backup has both, and repairs it."""
    before = luks2.backup().read_bytes()
    with luks2.image.open("r+b") as image:
        image.seek(damaged)
        image.write(os.urandom(4096))
    with pytest.raises(Refused, match="one of the two copies") as caught:
        header_backup.back_up(luks2.volume, luks2.site, None)
    assert "lukshook header restore house" in caught.value.hint
    assert before == luks2.backup().read_bytes()
    header_backup.restore(luks2.volume, luks2.site, None)
    assert 2 == header_backup.verify(luks2.volume, luks2.site).copies
    header_backup.back_up(luks2.volume, luks2.site, None)


def test_a_backup_that_is_not_the_images_header_is_told(luks2: KeyVolume, tmp_path: Path) -> None:
    """And one that is missing."""
    (tmp_path / "other").mkdir()
    shutil.copy(key_volume.build(tmp_path / "other").backup(), luks2.backup())
    with pytest.raises(Refused, match="is not the header of the image"):
        header_backup.verify(luks2.volume, luks2.site)
    luks2.backup().unlink()
    with pytest.raises(Unavailable):
        header_backup.verify(luks2.volume, luks2.site)


def test_an_unknown_key_writes_nothing(luks2: KeyVolume) -> None:
    """`header restore` with the wrong key: exit status 77."""
    luks2.new_key("stranger")
    volume = evolve(luks2.volume, key=(luks2.source("stranger"),))
    before = luks2.image.read_bytes()
    with pytest.raises(Denied):
        header_backup.restore(volume, luks2.site, None)
    assert before == luks2.image.read_bytes()


def put_something_else(house: KeyVolume, what: str) -> None:
    """Lay what another disk may have where the image was yesterday."""
    if what == "another volume":
        (house.folder / "other").mkdir()
        other = key_volume.build(house.folder / "other")
        house.image.write_bytes(other.image.read_bytes())
    elif what == "the second header of another volume":
        (house.folder / "other").mkdir()
        whole = key_volume.build(house.folder / "other").image.read_bytes()
        house.image.write_bytes(bytes(16384) + whole[16384:])
    elif what == "a partition table":
        entry = bytes([0, 0, 2, 0, 0x83, 0, 3, 0]) + (2048).to_bytes(4, "little") + (4096).to_bytes(4, "little")
        house.image.write_bytes(bytes(446) + entry + bytes(48) + b"\x55\xaa" + bytes(24 * 1024 * 1024 - 512))
    else:
        house.image.write_bytes(bytes(32 * 1024 * 1024))
        subprocess.run([what, house.image], check=True, capture_output=True)


@pytest.mark.needs("wipefs", "mkswap", "mkfs.ext4")
@pytest.mark.parametrize(
    "what",
    [
        "another volume",
        "the second header of another volume",
        "a partition table",
        "mkfs.ext4",
        "mkswap",
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_a_header_is_not_restored_over_something_else(luks2: KeyVolume, what: str, known: bool) -> None:
    """/dev/sdb1 can be a different disk today. What this host knows of the volume says nothing about that disk."""
    put_something_else(luks2, what)
    if not known:
        forget(luks2)
    before = luks2.image.read_bytes()

    with pytest.raises(Refused, match=r"has the header of another volume|is not a LUKS image") as caught:
        header_backup.restore(luks2.volume, luks2.site, None)

    assert "wipefs" in caught.value.hint
    assert before == luks2.image.read_bytes()
    assert not luks2.folder.joinpath("state/house.header.next").exists()


@pytest.mark.parametrize("length", [4096, 16384, 32768, 16 * 1024 * 1024])
def test_a_header_of_ours_that_was_zeroed_is_restored(luks2: KeyVolume, length: int) -> None:
    """From its beginning on, up to the whole of it."""
    with luks2.image.open("r+b") as image:
        image.write(bytes(length))

    assert (0,) == header_backup.restore(luks2.volume, luks2.site, None)

    assert opens(luks2.image, luks2.key("own"))
