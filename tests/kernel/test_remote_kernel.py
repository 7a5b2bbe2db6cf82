"""A remote image under dm-crypt, by a loop device on what shows it: at places of every kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import rekey_cases
from support.ceph_cluster import OUTSIDE, ClusterOutside
from support.far_cases import check_the_whole_life, kind_of, kinds
from support.far_host import free_port, nbd_server
from support.far_places import Place, place_of, running
from support.far_volume import back_up, house_with, in_it, nothing_stands
from support.volume import NAME, CliVolume, closing

pytestmark = pytest.mark.needs("cryptsetup", "qemu-storage-daemon", "fusermount3", "socat", "nbdkit", "nbdfuse")
CLUSTER = os.environ.get(OUTSIDE)
#: A cluster does not come up in the test kernel. `test_ceph_kernel.py` starts one outside, and these tests again.
WITHOUT = () if CLUSTER else ("rbd",)


@pytest.fixture
def far(kind: str, tmp_path: Path) -> Iterator[Place]:
    """A place of that *kind*."""
    cluster = ClusterOutside(Path(CLUSTER)) if CLUSTER else None
    yield from running(place_of(kind, tmp_path / "place", cluster))


@pytest.fixture
def volume(far: Place, tmp_path: Path) -> Iterator[CliVolume]:
    """A volume whose image is to lie there, not created yet."""
    yield from closing(house_with("kernel", tmp_path / "house", far.url, ledger=True, patience="5m", **far.options))


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
@pytest.mark.parametrize("kind", [kind_of("path", is_slow=True), *kinds(but=WITHOUT)])
def test_the_whole_life_of_a_volume(far: Place, volume: CliVolume) -> None:
    """With real backup tools; what the recovery sheet says is typed as it stands there."""
    check_the_whole_life(far, volume, tools=True, opens=True)


@pytest.mark.needs("dmsetup", "mkfs.ext4")
@pytest.mark.parametrize("kind", kinds(but=("ssh", "nbd", "nbds", *WITHOUT)))
def test_the_volume_key_is_replaced(far: Place, volume: CliVolume) -> None:
    """The line breaks and everything here is killed meanwhile; nothing is lost, and the old key opens nothing."""
    volume.configure(image=far.url, patience="5m", **far.options)  # without a ledger, which takes longer here
    volume.do("create", NAME)
    back_up(volume, "file")
    rekey_cases.check_far(volume, far.stumble, lambda: in_it(volume, "file"))
    assert nothing_stands(volume)
    assert ["backup.img"] == far.images()
