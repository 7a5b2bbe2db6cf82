"""Who can look into an open volume: permissions of its root folder and of `data`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.volume import NAME, CliVolume


def modes(volume: CliVolume) -> tuple[int, int]:
    """Those of the root folder and of `data`."""
    return volume.mountpoint.stat().st_mode & 0o777, volume.data.stat().st_mode & 0o777


def opened(volume: CliVolume, *options: str) -> tuple[int, int]:
    """The same in a volume that is opened for it, by hand where there are options."""
    volume.do(*(("open", *options) if options else ("before-backup",)), NAME)
    try:
        return modes(volume)
    finally:
        volume.do(*(("close",) if options else ("after-backup",)), NAME)


def test_a_new_volume_is_its_users_alone(volume: CliVolume) -> None:
    """Nothing of it is configured."""
    assert (0o700, 0o700) == opened(volume)


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_a_new_volume_has_the_mode_that_is_configured(tmp_path: Path, umask: int) -> None:
    """Whatever the umask is."""
    volume = CliVolume(tmp_path, "userspace")
    volume.prepare()
    volume.configure(mode="0750")
    try:
        volume.start("create", NAME, prepare=lambda: void(os.umask(umask))).wait()
        assert (0o750, 0o750) == opened(volume)
    finally:
        volume.remove()


def void(value: object) -> None:
    """Nothing."""


def test_opening_for_writing_sets_the_mode_of_the_root_folder_alone(volume: CliVolume) -> None:
    """`data` and what is in it belong to whoever writes there; a read-only opening changes nothing."""
    volume.do("before-backup", NAME)
    volume.mountpoint.chmod(0o777)
    volume.data.chmod(0o711)
    (volume.data / "file").touch(mode=0o644)
    volume.do("after-backup", NAME)

    assert (0o777, 0o711) == opened(volume, "--read-only")
    assert (0o700, 0o711) == opened(volume)
    volume.configure(mode="0755")
    assert (0o700, 0o711) == opened(volume, "--read-only")
    assert (0o755, 0o711) == opened(volume)


def test_resize_and_trust_keep_the_mode(volume: CliVolume) -> None:
    """They open it as a backup does."""
    volume.configure(mode="0770")
    assert "mode" in volume.refusal(78, "status", NAME)
    volume.configure(mode="0750")
    volume.do("before-backup", NAME)
    volume.data.chmod(0o711)
    volume.do("after-backup", NAME)

    volume.do("resize", NAME, "72MiB")
    volume.do("trust", NAME)

    assert (0o750, 0o711) == opened(volume, "--read-only")


def test_a_helper_without_configuration_keeps_it_as_well(volume: CliVolume) -> None:
    """lukshook-resize knows of no mode."""
    volume.configure(mode="0755")
    assert (0o755, 0o700) == opened(volume)

    volume.do("lukshook-resize", str(volume.image), "72MiB", "--key", f"file:{volume.key}")

    assert (0o755, 0o700) == opened(volume, "--read-only")


@pytest.mark.roots
def test_the_mode_is_set_before_the_volume_can_be_seen(volume: CliVolume) -> None:
    """A dry run shows the order."""
    lines = volume.do("--dry-run", "before-backup", NAME).splitlines()
    show = next(number for number, line in enumerate(lines) if line.startswith("mount --bind"))

    assert f"chmod 0700 -- {volume.run_folder}/{NAME}.private" in lines[:show]
