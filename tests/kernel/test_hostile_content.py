"""What lies in a volume, who else has it, and where memory goes, against real dm-crypt."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from lukshook.errors import Refused
from lukshook.system import kernel
from lukshook.volume import key_slots, trust
from support import kernel_volume
from support.kernel_volume import Before, KernelVolume, tool
from support.volume import NAME, CliVolume, closing

pytestmark = pytest.mark.needs("cryptsetup", "dmsetup", "losetup", "mkfs.ext4", "debugfs", "mkswap", "swapon")


@pytest.fixture
def house(tmp_path: Path) -> KernelVolume:
    return kernel_volume.build(tmp_path)


def elsewhere(house: KernelVolume, name: str) -> KernelVolume:
    """The same image, as another host knows it: one with a state folder of its own."""
    return evolve(house, site=evolve(house.site, state_folder=house.folder / name))


def test_a_file_system_that_cannot_be_made_clean_is_not_mounted(house: KernelVolume) -> None:
    """Exit status 65 after a look of e2fsck's; the volume is closed again."""
    house.write("file", b"x")
    key = bytes(house.key().reveal())
    tool("cryptsetup", "open", "--key-file=-", str(house.image), "by_hand", given=key)
    for damage in ("clri <2>", "ssv state 0"):
        tool("debugfs", "-w", "-R", damage, "/dev/mapper/by_hand")
    tool("cryptsetup", "close", "by_hand")
    before = house.image.read_bytes()
    with pytest.raises(Refused, match="is damaged and cannot be repaired automatically"):
        house.open()
    assert kernel.mapping("lukshook-house") is None
    assert kernel.mount_at(house.volume.mountpoint) is None
    assert len(before) == house.image.stat().st_size


def test_a_volume_is_shown_only_after_the_proof(house: KernelVolume) -> None:
    """Until then it is mounted where nobody but root can look."""
    seen: list[object] = []

    def look() -> None:
        private = house.site.run_folder / "house.private"
        seen.append(kernel.mount_at(private) is not None)
        seen.append(kernel.mount_at(house.volume.mountpoint) is None)
        seen.append(oct(house.site.run_folder.stat().st_mode & 0o777))

    house.open(runner=Before("mount --bind", look))
    assert [True, True, "0o700"] == seen
    assert not (house.site.run_folder / "house.private").exists()
    house.close()


def test_honest_hosts_raise_no_alarm(house: KernelVolume) -> None:
    """A second host writes in between, and this host is restored from a copy of what it knew earlier."""
    house.write("first", b"1")
    other = elsewhere(house, "other")
    other.write("second", os.urandom(1 << 20))
    shutil.copytree(house.site.state_folder, house.folder / "backup")
    house.write("third", os.urandom(1 << 20))
    other.write("fourth", b"4")
    restored = elsewhere(house, "backup")
    restored.open()
    assert {"first", "second", "third", "fourth"} == {entry.name for entry in restored.volume.data.iterdir()}
    restored.close()


def test_a_host_is_told_of_the_keys_another_one_changed(house: KernelVolume) -> None:
    """65 until `trust`, which the new key has to open."""
    other = elsewhere(house, "other")
    other.write("file", b"x")
    key_slots.rotate(house.volume, house.site)
    with pytest.raises(Refused, match="of the header is"):
        other.open()
    trust.trust(other.volume, other.site)
    other.open()
    other.close()


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[CliVolume]:
    volume = CliVolume(tmp_path)
    volume.prepare()
    yield from closing(volume)


@pytest.fixture
def area(tmp_path: Path) -> Path:
    """A file for swapping, all of its blocks there."""
    area = tmp_path / "swap"
    area.write_bytes(os.urandom(16 << 20))
    area.chmod(0o600)
    return area


def warnings(volume: CliVolume, *words: str) -> list[str]:
    done = volume.lukshook(*words)
    assert 0 == done.returncode, done.stderr
    return done.stderr.splitlines()


def test_swap_in_the_clear_is_warned_of_once(volume: CliVolume, area: Path) -> None:
    """The kernel swaps to a plain file: the first command that asks for the key says so, the next does not."""
    tool("mkswap", str(area))
    tool("swapon", str(area))
    try:
        (said,) = warnings(volume, "create", NAME)
        assert said.startswith(f"warning: swap is not encrypted ({area})")
        assert [] == warnings(volume, "key", "test", NAME)
    finally:
        tool("swapoff", str(area))


def test_swap_on_dm_crypt_is_not_warned_of(volume: CliVolume, area: Path) -> None:
    """With a key that nobody knows, as crypttab(5) makes it."""
    tool("cryptsetup", "open", "--type=plain", "--cipher=aes-xts-plain64", "--key-size=512", "--key-file=/dev/urandom",
         str(area), "by_hand")  # fmt: skip
    tool("mkswap", "/dev/mapper/by_hand")
    tool("swapon", "/dev/mapper/by_hand")
    try:
        assert [] == warnings(volume, "create", NAME)
    finally:
        tool("swapoff", "/dev/mapper/by_hand")
        tool("cryptsetup", "close", "by_hand")
