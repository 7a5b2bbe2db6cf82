"""A remote image under dm-crypt, by a loop device on what shows it: at places of every kind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.far_cases import check_the_whole_life, kinds
from support.far_host import free_port, nbd_server
from support.far_places import place
from support.far_volume import house_with
from support.volume import NAME, CliVolume, closing

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "socat", "nbdkit", "nbdfuse")


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    """The backup waits, and all of it is there."""
    port, image = free_port(), tmp_path / "export"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    for volume in closing(CliVolume(tmp_path / "house", "kernel")):
        volume.prepare()
        volume.configure(image=f"nbd://127.0.0.1:{port}/", patience="120s")
        with nbd_server(port, "file", str(image)) as server:
            volume.do("create", NAME)
            volume.do("before-backup", NAME)
            content = os.urandom(3_000_000)
            (volume.data / "file").write_bytes(content)
            server.kill()
            server.wait(10)
            ending = volume.start("after-backup", NAME)
            with nbd_server(port, "file", str(image)):
                done = ending.wait()
                assert 0 == done.returncode, done.stderr
                volume.do("open", NAME, "--read-only")
                assert content == (volume.data / "file").read_bytes()
                volume.do("close", NAME)
        assert volume.is_bare()


@pytest.mark.needs("dmsetup", "rsync", "mkfs.ext4")
@pytest.mark.parametrize("kind", kinds(but=("rbd",)))  # a cluster does not come up in the test kernel
def test_the_whole_life_of_a_volume(kind: str, tmp_path: Path) -> None:
    """With real backup tools; what the recovery sheet says is typed as it stands there."""
    with place(kind, tmp_path / "place") as far:
        volume = house_with("kernel", tmp_path / "house", far.url, ledger=True, patience="5m", **far.options)
        for one in closing(volume):
            check_the_whole_life(far, one, tools=True, opens=True)
