"""The kernel these tests run on really encrypts: the tools alone, without lukshook."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

MIB = 1 << 20
FORMAT = ("--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--sector-size", "4096")
TEXT = b"in the clear " * 4096


def run(*argv: str, key: bytes | None = None) -> str:
    return subprocess.run(argv, check=True, input=key, stdout=subprocess.PIPE).stdout.decode().strip()


@pytest.mark.needs("cryptsetup", "dmsetup", "losetup", "mkfs.ext4", "mount")
def test_files_written_through_dm_crypt_are_in_the_image_encrypted(tmp_path: Path) -> None:
    """luksFormat, open, mkfs, mount and close work, and no plaintext reaches the image."""
    image, point, key = tmp_path / "image", tmp_path / "point", os.urandom(32)
    with image.open("xb") as file:
        file.truncate(64 * MIB)
    point.mkdir()
    run("cryptsetup", "luksFormat", "-q", *FORMAT, "--key-file=-", str(image), key=key)
    device = run("losetup", "--find", "--show", "--direct-io=on", str(image))
    run("cryptsetup", "open", "--key-file=-", device, "smoketest", key=key)
    assert "crypt" == run("dmsetup", "table", "smoketest").split()[2]
    run("mkfs.ext4", "-q", "/dev/mapper/smoketest")
    run("mount", "/dev/mapper/smoketest", str(point))
    (point / "file").write_bytes(TEXT)
    run("umount", str(point))
    run("cryptsetup", "close", "smoketest")
    run("losetup", "--detach", device)
    assert TEXT[:13] not in image.read_bytes()


@pytest.mark.needs("chattr")
def test_the_disk_of_the_tests_takes_the_immutable_flag(tmp_path: Path) -> None:
    """Temporary folders of these tests lie on a real file system."""
    run("chattr", "+i", str(tmp_path))
    try:
        with pytest.raises(PermissionError):
            (tmp_path / "file").touch()
    finally:
        run("chattr", "-i", str(tmp_path))
