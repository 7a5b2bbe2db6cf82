"""An image at a remote place: behind a shell (ssh), or behind an NBD server. Both ends are real."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.far_host import FarHost, far_host
from support.volume import NAME, CliVolume, closing

pytestmark = pytest.mark.needs(
    "cryptsetup", "qemu-storage-daemon", "fusermount3", "fuse2fs", "mkfs.ext4", "socat", "nbdkit"
)
needs_sshd = [pytest.mark.needs("ssh", "/usr/sbin/sshd", "ssh-keygen"), pytest.mark.roots]  # nobody has no shell


def some(number: int = 3_000_000) -> bytes:
    return os.urandom(number)


def nothing_stands(volume: CliVolume) -> bool:
    """Whether neither mount nor process nor private folder is left, only locks."""
    left = [name for name in os.listdir(volume.run_folder) if not name.endswith(".lock")]
    return volume.is_bare() and not left


@pytest.fixture
def far(tmp_path: Path) -> Iterator[FarHost]:
    with far_host(tmp_path / "far") as host:
        yield host


@pytest.fixture
def volume(far: FarHost, tmp_path: Path) -> Iterator[CliVolume]:
    """A volume whose image is to lie on the far host, not created yet."""
    yield from closing(house(tmp_path / "house", far.url(), ssh_config=str(far.config)))


def house(folder: Path, url: str, **options: object) -> CliVolume:
    volume = CliVolume(folder, "userspace")
    volume.prepare()
    volume.configure(image=url, **options)
    return volume


def back_up(volume: CliVolume, name: str) -> bytes:
    content = some()
    volume.do("before-backup", NAME)
    (volume.data / name).write_bytes(content)
    volume.do("after-backup", NAME)
    return content


@pytest.mark.roots
@pytest.mark.needs("ssh", "/usr/sbin/sshd", "ssh-keygen")
class TestShell:
    """`ssh://`."""

    def test_the_whole_life_of_a_volume(self, far: FarHost, volume: CliVolume) -> None:
        """It is made, written, grown, shrunk, gets a new key; and what lies at the far end opens by itself."""
        told = volume.do("create", NAME)
        assert far.url() in told
        assert ["backup.img"] == os.listdir(far.store)
        content = back_up(volume, "file")
        for words in (("resize", NAME, "96MiB"), ("resize", NAME, "80MiB", "--yes"), ("key", "rotate", NAME)):
            volume.do(*words)
        assert 80 << 20 == (far.store / "backup.img").stat().st_size
        volume.do("key", "test", NAME)
        status = json.loads(volume.do("status", "--json"))[0]
        assert (far.url(), False, "closed") == (status["image"], status["connected"], status["state"])
        checked = volume.do("check", NAME)
        assert "locks out other hosts" in checked
        assert nothing_stands(volume)

        shutil.move(far.store / "backup.img", volume.image)
        volume.configure()
        volume.do("open", NAME, "--read-only")
        assert content == (volume.data / "file").read_bytes()
        volume.do("close", NAME)
