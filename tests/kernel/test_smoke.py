"""The kernel these tests run on really encrypts: the tools alone, then a first volume by `init`."""

from __future__ import annotations

import os
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.volume import NAME, CliVolume, closing

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


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[CliVolume]:
    """A machine without a configuration."""
    made = CliVolume(tmp_path)
    made.prepare()
    made.config.unlink()
    made.key.unlink()
    yield from closing(made)


@pytest.mark.needs("cryptsetup", "dmsetup", "losetup", "mkfs.ext4", "mount")
def test_init_answers_everything_from_its_options(volume: CliVolume, tmp_path: Path) -> None:
    """As a script would set a machine up: the kernel engine is chosen, and the first backup is proven to be there."""
    options = {
        "--image": volume.image,
        "--mountpoint": volume.mountpoint,
        "--size": "64MiB",
        "--key": f"file:{volume.key}",
        "--host": "rsync",
    }
    words = [word for option, value in options.items() for word in (option, str(value))]

    said = volume.do("init", NAME, *words, "--create", "--yes")

    assert "engine kernel: " in said
    assert f"run {NAME} -- rsync -aAXH --delete --numeric-ids /home/ {volume.data}/home/" in said
    assert tomllib.loads(volume.config.read_text())["volumes"][NAME]["ledger"]
    assert volume.is_bare()
    (tmp_path / "letter").write_bytes(TEXT)
    volume.do("run", NAME, "--", "cp", str(tmp_path / "letter"), f"{volume.data}/")
    assert "compared with the ledger, all intact" in volume.do("verify", NAME)
    assert TEXT[:13] not in volume.image.read_bytes()
    volume.do("open", NAME, "--read-only")
    assert volume.mappings()
    assert TEXT == (volume.data / "letter").read_bytes()
    volume.do("close", NAME)
